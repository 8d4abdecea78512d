"""How long is trained, beside gamma.

focaljax sweep experiments/length/sweep.py --workdir runs/length [--config.data=bccd|coco]

Focal loss begins far smaller than cross entropy, and with SGD so do its steps: does it need longer? With AdamW, whose
steps have one size, it should not.
"""

from focaljax.sweeps import Row, Sweep

OPTIMIZERS = {
    "SGD": {"optim.name": "sgd", "optim.learning_rate": 0.01, "optim.weight_decay": 1e-4},
    "AdamW": {"optim.name": "adamw", "optim.learning_rate": 3e-3, "optim.weight_decay": 0.05},
}
# A quarter of the published length, and all of it; of the small sets the config's, and four times that.
STEPS = {"shapes": (400, 1600), "bccd": (300, 1200), "coco": (22_500, 90_000)}
# gamma, alpha: the best of each gamma in the paper's table 1b, and the best of gamma 2 on `shapes`.
LOSSES = ((0.0, 0.75), (0.5, 0.5), (2.0, 0.25), (2.0, 0.75))
PAPER = {(0.0, 0.75, 90_000): 0.311, (0.5, 0.5, 90_000): 0.329, (2.0, 0.25, 90_000): 0.340}


def get_sweep():
    return Sweep(
        "length of training",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            Row(
                f"{name}, {steps} steps: gamma {gamma}, alpha {alpha}",
                {**optimizer, "loss.gamma": gamma, "loss.alpha": alpha, **_length(data, steps)},
                paper={"AP": PAPER[gamma, alpha, steps]} if name == "SGD" and (gamma, alpha, steps) in PAPER else {},
                data=(data,),
            )
            for name, optimizer in OPTIMIZERS.items()
            for data, lengths in STEPS.items()
            for steps in lengths
            for gamma, alpha in LOSSES
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), table 1b",
    )


def _length(data, steps):
    """The schedule of coco falls at two thirds and eight ninths, those of the others are cosines."""
    milestones = {"optim.milestones": (steps * 2 // 3, steps * 8 // 9)} if data == "coco" else {}
    return {"optim.steps": steps, **milestones}

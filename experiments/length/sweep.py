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
# Plain cross entropy; then gamma and alpha: the best of each gamma in the paper's table 1b, and that of gamma 2 on
# `shapes`. Each with what the paper has after 90,000 steps.
LOSSES = {
    "cross entropy": ({"loss.classification": "cross_entropy"}, 0.302),
    "gamma 0.0, alpha 0.75": ({"loss.gamma": 0.0, "loss.alpha": 0.75}, 0.311),
    "gamma 0.5, alpha 0.5": ({"loss.gamma": 0.5, "loss.alpha": 0.5}, 0.329),
    "gamma 2.0, alpha 0.25": ({"loss.gamma": 2.0, "loss.alpha": 0.25}, 0.340),
    "gamma 2.0, alpha 0.75": ({"loss.gamma": 2.0, "loss.alpha": 0.75}, None),
}


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
                f"{name}, {steps} steps: {loss}",
                {**optimizer, **settings, **_length(data, steps)},
                paper={"AP": paper} if name == "SGD" and steps == 90_000 and paper else {},
                data=(data,),
            )
            for name, optimizer in OPTIMIZERS.items()
            for data, lengths in STEPS.items()
            for steps in lengths
            for loss, (settings, paper) in LOSSES.items()
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), table 1b",
    )


def _length(data, steps):
    """The schedule of coco falls at two thirds and eight ninths, those of the others are cosines."""
    milestones = {"optim.milestones": (steps * 2 // 3, steps * 8 // 9)} if data == "coco" else {}
    return {"optim.steps": steps, **milestones}

"""Training with and without the prior bias.

focaljax sweep experiments/prior/sweep.py --workdir runs/prior [--config.data=bccd|coco]

Without it every anchor starts with the score .5: cross entropy diverges in the paper, or is swamped by background.
"""

from focaljax.sweeps import Row, Sweep

LOSSES = {
    "cross entropy": {"loss.classification": "cross_entropy"},
    "focal loss": {"loss.gamma": 2.0, "loss.alpha": 0.25},
}
# The paper, with SGD: cross entropy diverges without it, which is no AP, and has 30.2 with it.
PAPER = {
    ("cross entropy", 0.01): {"AP": 0.302},
    ("focal loss", 0.01): {"AP": 0.34},
}
# As coco's config, at a quarter of its rate. Where it diverges, steps that are not finite are left out, to the end.
SGD = {
    "optim.name": "sgd",
    "optim.learning_rate": 0.0025,
    "optim.weight_decay": 1e-4,
    "optim.clip_norm": 0.0,
    "optim.nonfinite": "skip",
}


def get_sweep():
    return Sweep(
        "prior bias",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            *(
                Row(
                    f"{name}, prior {_shown(prior)}",
                    {**loss, "model.prior": prior},
                    paper=PAPER.get((name, prior), {}),
                )
                for name, loss in LOSSES.items()
                for prior in (0.01, 0.1, 0.5)
            ),
            # Which of the two makes the bias needed, the optimiser or that gradients are not clipped.
            *(
                Row(
                    f"{name}: cross entropy, prior {_shown(prior)}",
                    {**settings, **LOSSES["cross entropy"], "model.prior": prior},
                    data=("shapes",),
                )
                for name, settings in (
                    ("SGD, clipped", {key: value for key, value in SGD.items() if key != "optim.clip_norm"}),
                    ("AdamW, not clipped", {"optim.clip_norm": 0.0, "optim.nonfinite": "skip"}),
                )
                for prior in (0.01, 0.5)
            ),
            *(
                Row(
                    f"SGD, not clipped: {name}, prior {_shown(prior)}",
                    {**SGD, **loss, "model.prior": prior},
                    paper=PAPER.get((name, prior), {}),
                    data=("shapes", "bccd"),
                )
                for name, loss in LOSSES.items()
                for prior in (0.01, 0.5)
            ),
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), section 5.1",
        settings={"coco": {"optim.nonfinite": "skip"}},
    )


def _shown(prior):
    return f"{prior} (none)" if prior == 0.5 else f"{prior}"

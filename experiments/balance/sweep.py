"""The classification loss beside the box loss.

focaljax sweep experiments/balance/sweep.py --workdir runs/balance [--config.data=bccd|coco]

Gamma and alpha also change how large the classification loss is, and with it what boxes count beside it; so does OHEM,
which divides by all anchors it keeps. What of their effect is that? Each with box losses of three or four weights, and
the heaviest in a training four times as long, to be set beside `length`.
"""

from focaljax.sweeps import Row, Sweep

# A third of the config's, the config's, three times it, nine times it.
WEIGHTS = {"shapes": (0.5, 1.5, 4.5), "bccd": (1 / 3, 1.0, 3.0, 9.0), "coco": (1 / 3, 1.0, 3.0)}
OHEM = {"loss.mining": "ohem", "loss.mining_ratio": 0, "loss.mining_iou": 0.7, "loss.mining_size": 512}
LOSSES = {
    "cross entropy, alpha 0.75": {"loss.gamma": 0.0, "loss.alpha": 0.75},
    "focal loss, alpha 0.25": {"loss.gamma": 2.0, "loss.alpha": 0.25},
    "OHEM, NMS 0.7, 512 anchors": {"loss.classification": "cross_entropy", **OHEM},
}
# Steps, and the weight of the boxes.
LONG = {"shapes": (1600, 4.5), "bccd": (1200, 9.0)}
IN_LONG = {
    "plain cross entropy": {"loss.classification": "cross_entropy"},
    "focal loss, alpha 0.25": {"loss.gamma": 2.0, "loss.alpha": 0.25},
    "focal loss, alpha 0.75": {"loss.gamma": 2.0, "loss.alpha": 0.75},
}
# OHEM divides by the anchors it keeps; with at most one object an image, as on shapes, it is nearly the same.
BY_BATCH = ("cross entropy, alpha 0.75", "focal loss, alpha 0.25")


def get_sweep():
    return Sweep(
        "classification beside boxes",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            Row(
                f"{name}, boxes x {weight:.3g}",
                {**settings, "loss.box_weight": weight},
                data=tuple(data for data, weights in WEIGHTS.items() if weight in weights),
            )
            for name, settings in LOSSES.items()
            for weight in sorted({weight for weights in WEIGHTS.values() for weight in weights})
        ]
        + [
            Row(
                f"{steps} steps: {name}, boxes x {weight:.3g}",
                {**settings, "loss.box_weight": weight, "optim.steps": steps},
                data=(data,),
            )
            for data, (steps, weight) in LONG.items()
            for name, settings in IN_LONG.items()
        ]
        + [
            Row(
                f"{name}, by batch, boxes x 9",
                {**LOSSES[name], "loss.normalizer": "batch", "loss.box_weight": 9.0},
                data=("bccd",),
            )
            for name in BY_BATCH
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), section 4.1",
    )

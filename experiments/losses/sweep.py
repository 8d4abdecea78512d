"""The losses of the library side by side.

focaljax sweep experiments/losses/sweep.py --workdir runs/losses [--config.data=bccd|coco]

Each has the settings of its paper; focal loss also the alpha that is better on shapes (table 1b).
"""

from focaljax.sweeps import Row, Sweep

LOSSES = {
    "cross entropy": {"loss.classification": "cross_entropy"},
    "balanced cross entropy": {"loss.classification": "balanced_cross_entropy", "loss.alpha": 0.75},
    "focal loss, alpha 0.25": {},
    "focal loss, alpha 0.75": {"loss.alpha": 0.75},
    "softmax cross entropy": {"loss.classification": "softmax_cross_entropy"},
    "softmax focal loss": {"loss.classification": "softmax_focal"},
    "quality focal loss": {"loss.classification": "quality_focal"},
    "varifocal loss": {"loss.classification": "varifocal", "loss.alpha": 0.75},
    "GHM": {"loss.classification": "ghm", "loss.ghm_bins": 30, "loss.ghm_momentum": 0.75},
    "poly-1 focal loss": {"loss.classification": "poly1_focal", "loss.poly_epsilon": 1.0},
    "poly-1 focal loss, epsilon -1": {"loss.classification": "poly1_focal", "loss.poly_epsilon": -1.0},
}


def get_sweep():
    return Sweep(
        "losses",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [Row(name, settings) for name, settings in LOSSES.items()],
        source="Lin et al. 2017 (arXiv 1708.02002), section 3",
    )

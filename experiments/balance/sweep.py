"""The classification loss beside the box loss.

focaljax sweep experiments/balance/sweep.py --workdir runs/balance [--config.data=bccd|coco]

Gamma and alpha also change how large the classification loss is, and with it what boxes count beside it. What of their
effect is that? Cross entropy and focal loss with box losses of three weights.
"""

from focaljax.sweeps import Row, Sweep

# A third of the config's, the config's, three times it.
WEIGHTS = {"shapes": (0.5, 1.5, 4.5), "bccd": (1 / 3, 1.0, 3.0), "coco": (1 / 3, 1.0, 3.0)}
# Name, gamma, alpha.
LOSSES = (("cross entropy, alpha 0.75", 0.0, 0.75), ("focal loss, alpha 0.25", 2.0, 0.25))


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
                {"loss.gamma": gamma, "loss.alpha": alpha, "loss.box_weight": weight},
                data=tuple(data for data, weights in WEIGHTS.items() if weight in weights),
            )
            for name, gamma, alpha in LOSSES
            for weight in sorted({weight for weights in WEIGHTS.values() for weight in weights})
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), section 4.1",
    )

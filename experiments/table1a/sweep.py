"""Table 1a: alpha-balanced cross entropy, by alpha.

focaljax sweep experiments/table1a/sweep.py --workdir runs/table1a [--config.data=bccd|coco]

Without focusing, the weight of the objects is all there is to set against the many easy background anchors.
"""

from focaljax.sweeps import Row, Sweep

# alpha -> the paper's AP
PAPER = {0.1: 0.0, 0.25: 0.108, 0.5: 0.302, 0.75: 0.311, 0.9: 0.308, 0.99: 0.287, 0.999: 0.251}


def get_sweep():
    return Sweep(
        "alpha-balanced cross entropy",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            Row(
                f"alpha {alpha}",
                {"loss.classification": "balanced_cross_entropy", "loss.alpha": alpha},
                paper={"AP": AP},
            )
            for alpha, AP in PAPER.items()
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), table 1a",
    )

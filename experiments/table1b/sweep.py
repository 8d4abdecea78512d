"""Table 1b: focal loss by gamma and alpha.

focaljax sweep experiments/table1b/sweep.py --workdir runs/table1b [--config.data=bccd|coco]

The paper prints of each gamma the alpha that was best on COCO, and in section 5.1 that alpha .5 is .4 lower for gamma
2; of the others, which may be best elsewhere, it has no number. gamma 0 is cross entropy; table 1a has more alphas.
"""

import itertools

from focaljax.sweeps import Row, Sweep

# gamma, alpha -> the paper's AP
PAPER = {
    (0.0, 0.75): 0.311,
    (0.1, 0.75): 0.314,
    (0.2, 0.75): 0.319,
    (0.5, 0.5): 0.329,
    (1.0, 0.25): 0.337,
    (2.0, 0.25): 0.340,
    (2.0, 0.5): 0.336,
    (5.0, 0.25): 0.322,
}


def get_sweep():
    return Sweep(
        "focal loss by gamma",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            Row(
                f"gamma {gamma}, alpha {alpha}",
                {"loss.gamma": gamma, "loss.alpha": alpha},
                paper={"AP": PAPER[gamma, alpha]} if (gamma, alpha) in PAPER else {},
            )
            for gamma, alpha in sorted({*PAPER, *itertools.product((0.0, 0.5, 1.0, 2.0, 5.0), (0.25, 0.5, 0.75))})
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), table 1b",
    )

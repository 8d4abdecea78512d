"""Table 1b: focal loss by gamma, each with the alpha that is best for it in the paper.

focaljax sweep experiments/table1b/sweep.py --workdir runs/table1b [--config.data=bccd|coco]

gamma 0 is the best row of table 1a.
"""

from focaljax.sweeps import Row, Sweep

# gamma, alpha -> the paper's AP
PAPER = {
    (0.0, 0.75): 0.311,
    (0.1, 0.75): 0.314,
    (0.2, 0.75): 0.319,
    (0.5, 0.5): 0.329,
    (1.0, 0.25): 0.337,
    (2.0, 0.25): 0.340,
    (5.0, 0.25): 0.322,
}


def get_sweep():
    return Sweep(
        "focal loss by gamma",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            Row(f"gamma {gamma}, alpha {alpha}", {"loss.gamma": gamma, "loss.alpha": alpha}, paper={"AP": AP})
            for (gamma, alpha), AP in PAPER.items()
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), table 1b",
    )

"""Table 3: FL*, another loss of the same form.

focaljax sweep experiments/table3/sweep.py --workdir runs/table3 [--config.data=bccd|coco]

The exact form of the loss matters little.
"""

from focaljax.sweeps import Row, Sweep

# gamma, beta -> the paper's AP
PAPER = {(2.0, 1.0): 0.338, (4.0, 0.0): 0.339}


def get_sweep():
    return Sweep(
        "FL*",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            Row("focal loss", {"loss.gamma": 2.0, "loss.alpha": 0.25}, paper={"AP": 0.340}),
            *(
                Row(
                    f"FL*, gamma {gamma}, beta {beta}",
                    {"loss.classification": "focal_star", "loss.gamma": gamma, "loss.star_beta": beta},
                    paper={"AP": AP},
                )
                for (gamma, beta), AP in PAPER.items()
            ),
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), table 3",
    )

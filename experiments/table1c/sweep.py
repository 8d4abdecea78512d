"""Table 1c: anchors by scales and ratios.

focaljax sweep experiments/table1c/sweep.py --workdir runs/table1c [--config.data=bccd|coco]

More than six to nine anchors a position do not help.
"""

from focaljax.sweeps import Row, Sweep

SCALES = {1: (1.0,), 2: (1.0, 2**0.5), 3: (1.0, 2 ** (1 / 3), 2 ** (2 / 3)), 4: (1.0, 2**0.25, 2**0.5, 2**0.75)}
RATIOS = {1: (1.0,), 3: (0.5, 1.0, 2.0)}
# scales, ratios -> the paper's AP
PAPER = {
    (1, 1): 0.303, (2, 1): 0.319, (3, 1): 0.318, (1, 3): 0.324, (2, 3): 0.342, (3, 3): 0.340, (4, 3): 0.338,
}  # fmt: skip


def get_sweep():
    return Sweep(
        "anchors",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            Row(
                f"{scales} scales, {ratios} ratios",
                {"anchors.scales": SCALES[scales], "anchors.ratios": RATIOS[ratios]},
                paper={"AP": AP},
            )
            for (scales, ratios), AP in PAPER.items()
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), table 1c",
    )

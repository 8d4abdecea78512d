"""What the loss is divided by.

focaljax sweep experiments/normalizer/sweep.py --workdir runs/normalizer [--config.data=bccd|coco]

By the assigned anchors of each image (the paper), of the batch, by their moving average (detectron2), or by nothing. Of
focal loss, and of plain cross entropy.
"""

from focaljax.sweeps import Row, Sweep


def get_sweep():
    return Sweep(
        "normalisers",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [Row(name, {"loss.normalizer": name}) for name in ("image", "batch", "ema", "none")]
        + [
            Row(f"cross entropy: {name}", {"loss.classification": "cross_entropy", "loss.normalizer": name})
            for name in ("image", "batch", "none")
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), section 4.1",
    )

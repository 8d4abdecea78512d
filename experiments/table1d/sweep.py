"""Table 1d: focal loss against hard example mining, OHEM's and SSD's.

focaljax sweep experiments/table1d/sweep.py --workdir runs/table1d [--config.data=bccd|coco]

The paper has ResNet-101 here, and so has COCO; mining chooses anchors for the classification, boxes are those of all
assigned anchors. Of 1:3 there is one size on small data: with 8 positives and 24 negatives an image all three are the
same. Focal loss has the alpha that is best on COCO, and the one that is better on shapes (table 1b).
"""

from focaljax.sweeps import Row, Sweep

# overlap of the suppression, anchors of an image -> the paper's AP
OHEM = {
    (0.7, 128): 0.311, (0.7, 256): 0.318, (0.7, 512): 0.306, (0.5, 128): 0.328, (0.5, 256): 0.310, (0.5, 512): 0.276,
}  # fmt: skip
WITH_RATIO = {128: 0.311, 256: 0.283, 512: 0.240}
CROSS_ENTROPY = {"loss.classification": "cross_entropy", "loss.mining": "ohem", "loss.mining_ratio": 0}


def get_sweep():
    return Sweep(
        "focal loss against mining",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            *(
                Row(
                    f"OHEM, NMS {iou}, {size} anchors",
                    {**CROSS_ENTROPY, "loss.mining_iou": iou, "loss.mining_size": size},
                    paper={"AP": AP},
                )
                for (iou, size), AP in OHEM.items()
            ),
            *(
                Row(
                    f"OHEM 1:3, NMS 0.5, {size} anchors",
                    {**CROSS_ENTROPY, "loss.mining_ratio": 3, "loss.mining_iou": 0.5, "loss.mining_size": size},
                    paper={"AP": AP},
                    data=() if size == 128 else ("coco",),
                )
                for size, AP in WITH_RATIO.items()
            ),
            Row(
                "SSD: softmax, 3 negatives to a positive",
                {"loss.classification": "softmax_cross_entropy", "loss.mining": "hard_negatives"},
            ),
            Row("focal loss, alpha 0.25", {"loss.gamma": 2.0, "loss.alpha": 0.25}, paper={"AP": 0.360}),
            Row("focal loss, alpha 0.75", {"loss.gamma": 2.0, "loss.alpha": 0.75}),
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), table 1d",
        settings={"coco": {"model.backbone": "resnet101", "init.weights": "resnet101-63fe2227.pth"}},
    )

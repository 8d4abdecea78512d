"""Table 1e: AP by image size and depth.

focaljax sweep experiments/table1e/sweep.py --workdir runs/table1e [--config.data=bccd|coco]

AP rises with the size of the images, and with the depth of the network on large ones. On COCO the size is that of the
shorter side, as in the paper, whose numbers are those of test-dev.
"""

from focaljax.sweeps import Row, Sweep

# Sizes and depths that a CPU trains in minutes; the anchors are the same, so that larger images have smaller objects
# matched better, as in the paper. Data set -> backbone -> heights of the images; width by height of the data set.
SMALL = {
    "shapes": {"resnet_tiny": (64, 84, 104, 124, 144), "resnet18": (104, 144)},
    "bccd": {"resnet_tiny": (60, 90, 120, 150, 180), "resnet18": (120, 180)},
}
WIDE = {"shapes": 1.0, "bccd": 4 / 3}
WEIGHTS = {50: "resnet50-0676ba61.pth", 101: "resnet101-63fe2227.pth"}
# depth -> image size -> the paper's AP
PAPER = {
    50: {400: 0.305, 500: 0.325, 600: 0.343, 700: 0.351, 800: 0.357},
    101: {400: 0.319, 500: 0.344, 600: 0.360, 700: 0.371, 800: 0.378},
}


def get_sweep():
    return Sweep(
        "image size and depth",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            *(
                Row(
                    f"{backbone}, {_size(data, height)} px",
                    {"model.backbone": backbone, "data.image_size": (height, round(WIDE[data] * height))},
                    data=(data,),
                )
                for data, backbones in SMALL.items()
                for backbone, heights in backbones.items()
                for height in heights
            ),
            *(
                Row(
                    f"ResNet-{depth}, {size} px",
                    {
                        "model.backbone": f"resnet{depth}",
                        "init.weights": WEIGHTS[depth],
                        "data.image_size": (size, round(size * 5 / 3)),
                    },
                    paper={"AP": AP},
                    data=("coco",),
                )
                for depth, of_sizes in PAPER.items()
                for size, AP in of_sizes.items()
            ),
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), table 1e",
    )


def _size(data, height):
    """Squares by their side, as the paper's."""
    return f"{height}" if WIDE[data] == 1 else f"{height} x {round(WIDE[data] * height)}"

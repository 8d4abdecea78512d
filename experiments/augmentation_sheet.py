"""Draws a sheet of training images and their boxes, a row for each augmentation: what docs/augmentation.md shows.

python experiments/augmentation_sheet.py --config configs/shapes.py --out sheet.jpg [--config.KEY=VALUE ..]

Any config will do, so that its own data can be looked at. The first row is what the config itself says.
"""

import argparse
import pathlib
import sys

import cv2
import numpy as np

from focaljax.cli import datasets
from focaljax.cli.config import load_config, split_config_flags
from focaljax.cli.main import UsageError
from focaljax.data.augmentation import Augmentation
from focaljax.data.example import DataError, Source
from focaljax.data.pipeline import training_batches
from focaljax.evaluation.drawing import class_colour, write_image
from focaljax.evaluation.sheets import contact_sheet

# Caption -> settings, beside the flips that are there by default; of the multi-scale sides, shares of the image's size.
ROWS = {
    "colours": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "scale (0.8, 1.25)": {"scale": (0.8, 1.25)},
    "scale (0.1, 2.0)": {"scale": (0.1, 2.0)},
    "short_sides": {"short_sides": (0.5, 0.7, 0.9)},
    "ssd_expand": {"ssd_expand": 1.0},
    "ssd_crop": {"ssd_crop": 1.0},
    "mosaic": {"mosaic": 1.0},
    "mixup": {"mixup": 1.0},
}


def main(arguments: list[str]) -> None:
    """Draws the sheet."""
    config_arguments, others = split_config_flags(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a .jpg or .png")
    parser.add_argument("--images", type=int, default=6, help="in a row, default: 6")
    parser.add_argument("--side", type=int, default=240, help="largest of a picture, in pixels, default: 240")
    options = parser.parse_args(others)
    config = load_config(config_arguments)
    source = datasets.make_source(config, "train")
    height, width = config.data.image_size
    pictures: list[np.ndarray] = []
    captions: list[str] = []
    for caption, settings in {"config": dict(config.augment), **ROWS}.items():
        if "short_sides" in settings:
            sides = [round(side * min(height, width)) if side < 1 else side for side in settings["short_sides"]]
            settings = {**settings, "short_sides": tuple(sides), "longest_side": 2 * max(height, width)}
        pictures += training_pictures(source, Augmentation(**settings), options.images, height, width, config.seed)
        captions += [caption] + [""] * (options.images - 1)
    write_image(options.out, contact_sheet(pictures, options.images, captions=captions, max_side=options.side, gap=6))


def training_pictures(
    source: Source, augmentation: Augmentation, images: int, height: int, width: int, seed: int
) -> list[np.ndarray]:
    """Returns the first training images with their boxes drawn; the same images whatever the augmentation."""
    max_boxes = max(1, source.max_boxes * augmentation.images_in_view)
    batches = training_batches(
        source,
        batch_size=images,
        height=height,
        width=width,
        max_boxes=max_boxes,
        seed=seed,
        augmentation=augmentation,
        num_threads=0,
    )
    batch = next(batches)
    for image, boxes, labels, is_box in zip(*(batch[name] for name in ("image", "boxes", "labels", "is_box"))):
        for (x1, y1, x2, y2), label in zip(boxes[is_box].round().astype(int).tolist(), labels[is_box].tolist()):
            cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), class_colour(label), max(1, min(height, width) // 150))
    return list(batch["image"])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UsageError, DataError, OSError, ValueError) as error:
        sys.exit(f"augmentation_sheet.py: {error}")

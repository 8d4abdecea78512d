"""Sheets of many pictures: any images with captions, or the ground truth beside the detections."""

import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from focaljax.data.example import Example
from focaljax.evaluation.detections import ImageDetections
from focaljax.evaluation.drawing import INK, check_image, draw_detections
from focaljax.evaluation.lettering import put_text, shortened


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int,
    *,
    captions: Sequence[str] | None = None,
    max_side: int | None = None,
    gap: int = 12,
) -> np.ndarray:
    """Returns one white picture with the images in rows, each with its caption above it.

    Args:
        images: uint8 `[H, W, 3]` RGB each, of any sizes; each column is as wide as its widest image and each row as
            high as its highest.
        columns: number of images in a row, at least 1.
        captions: one short line for each image, cut where it is longer than the image is wide; None for none.
        max_side: larger images are reduced to fit this many pixels; None keeps all sizes.
        gap: white pixels between images and around them.

    Returns:
        uint8 `[height, width, 3]`, RGB.

    Raises:
        ValueError: if there are no images, or another number of captions than of images.
    """
    if not len(images):
        raise ValueError("a contact sheet needs at least one image")
    if columns < 1:
        raise ValueError(f"columns is {columns}, expected at least 1")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images, expected one each")
    tiles = [_reduced(image, max_side) for image in images]
    columns = min(columns, len(tiles))
    widths = [max(tile.shape[1] for tile in tiles[column::columns]) for column in range(columns)]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    text_height = max(12, round(max(widths) / 40))
    head = 0 if captions is None else round(1.6 * text_height)
    heights = [head + max(tile.shape[0] for tile in row) for row in rows]

    sheet = np.full((sum(heights) + gap * (len(rows) + 1), sum(widths) + gap * (columns + 1), 3), 255, np.uint8)
    top = gap
    for row_index, row in enumerate(rows):
        left = gap
        for column, tile in enumerate(row):
            sheet[top + head : top + head + tile.shape[0], left : left + tile.shape[1]] = tile
            if captions is not None:
                caption = shortened(captions[row_index * columns + column], widths[column], text_height)
                put_text(sheet, caption, (left, top), text_height, INK)
            left += widths[column] + gap
        top += heights[row_index] + gap
    return sheet


def comparison_sheet(
    examples: Sequence[Example],
    detections: Sequence[ImageDetections],
    class_names: Sequence[str],
    *,
    min_score: float = 0.3,
    pairs_in_row: int = 1,
    max_side: int = 640,
) -> np.ndarray:
    """Returns a sheet that shows each image twice: its ground truth on the left, the detections on the right.

    Args:
        examples: the images with their objects.
        detections: those of the same images, in the same order.
        class_names: K names.
        min_score: detections with a lower score are left out.
        pairs_in_row: number of images (shown twice each) beside each other.
        max_side: larger images are reduced to fit this many pixels before they are drawn on, so that text can be read.

    Returns:
        uint8 `[height, width, 3]`, RGB.

    Raises:
        ValueError: if there are no examples, or the image ids of the two lists differ.
    """
    example_ids = [example.image_id for example in examples]
    detection_ids = [found.image_id for found in detections]
    if example_ids != detection_ids:
        raise ValueError(f"detections are of the images {detection_ids}, expected {example_ids}, in this order")
    pictures, captions = [], []
    for example, found in zip(examples, detections):
        kept = found.above(min_score)
        image = _reduced(example.image, max_side)
        factors = np.tile(np.array(image.shape[1::-1]) / example.image.shape[1::-1], 2)
        truth = draw_detections(
            image, factors * example.boxes_xyxy, example.labels, None, class_names, is_crowd=example.is_crowd
        )
        drawn = draw_detections(image, factors * kept.boxes_xyxy, kept.labels, kept.scores, class_names)
        pictures += [truth, drawn]
        captions += [
            f"ground truth: {len(example.labels)}   {pathlib.PurePath(example.file_name).name}",
            f"detections: {len(kept)}   (score >= {min_score:g})",
        ]
    return contact_sheet(pictures, 2 * pairs_in_row, captions=captions, max_side=max_side)


def _reduced(image: np.ndarray, max_side: int | None) -> np.ndarray:
    check_image(image)
    longest = max(image.shape[:2])
    if max_side is None or longest <= max_side:
        return image
    height, width = (max(1, round(side * max_side / longest)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

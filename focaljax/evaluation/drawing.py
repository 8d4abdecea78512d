"""Pictures of detections: boxes with names and scores, and their files."""

import colorsys
import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from focaljax.evaluation.lettering import put_text, shortened, text_width

WHITE = (255, 255, 255)
INK = (24, 24, 28)

# The first classes get colours chosen by eye: far apart, and clear on bright and dark photographs.
_FIRST_COLOURS = (
    (0, 168, 255),
    (255, 82, 40),
    (0, 200, 83),
    (255, 210, 0),
    (213, 0, 249),
    (0, 225, 210),
    (255, 64, 129),
    (150, 240, 20),
    (124, 77, 255),
    (200, 120, 50),
)
# Small images are enlarged to about this size before drawing: text needs pixels.
_COMFORTABLE_SIDE = 576
_LARGEST_ENLARGEMENT = 4
_JPEG_QUALITY = 93


def class_colour(label: int) -> tuple[int, int, int]:
    """Returns the RGB colour of a class; it depends on the label alone, and differs for at least 1203 classes.

    Args:
        label: class index, from 0.

    Example:
        >>> class_colour(0)
        (0, 168, 255)
    """
    if label < len(_FIRST_COLOURS):
        return _FIRST_COLOURS[label]
    # Multiples of the golden ratio spread the hues evenly, however many classes there are; the offset keeps the first
    # of them off the colours above.
    hue = (0.53 + label * 0.61803398875) % 1.0
    saturation = (0.95, 0.7, 0.5)[label % 3]
    value = (1.0, 0.8)[label // 3 % 2]
    colour = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    # pure blue is hardly seen on dark photographs: such colours are mixed with white
    lack = max(0.0, 95 - _brightness(colour))
    red, green, blue = np.rint(colour + (255 - colour) * lack / (255 - _brightness(colour))).astype(int).tolist()
    return red, green, blue


def draw_detections(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str],
    *,
    is_crowd: np.ndarray | None = None,
    enlargement: int | None = None,
) -> np.ndarray:
    """Returns a picture of the image with boxes, class names and scores.

    Higher scores are drawn over lower ones. Name plates stay inside the picture and keep off each other where one of
    the box's corners has room. Lines and text grow with the picture.

    Args:
        image: uint8 `[H, W, 3]`, RGB; it is not changed.
        boxes_xyxy: `[D, 4]`, corners in pixels of `image`; what lies outside is cut off. D may be 0.
        labels: int `[D]`, class index in 0..K-1.
        scores: `[D]`, or None for ground truth, which has none.
        class_names: K names.
        is_crowd: bool `[D]`; crowd regions are drawn dashed. None: no crowds.
        enlargement: the whole factor by which the picture is larger than the image; None chooses 1 to 4, so that text
            is readable also on small images.

    Returns:
        uint8 `[enlargement * H, enlargement * W, 3]`, RGB.

    Raises:
        ValueError: if a shape or type does not fit, a label has no name, or a box is not finite.

    Example:
        >>> image = np.zeros((192, 128, 3), np.uint8)
        >>> draw_detections(image, np.array([[8, 8, 90, 80]]), np.array([0]), np.array([0.9]), ["cat"]).shape
        (576, 384, 3)
    """
    check_image(image)
    corners = np.asarray(boxes_xyxy, np.float64) if np.size(boxes_xyxy) else np.zeros((0, 4))
    labels = np.asarray(labels, np.int64)
    crowds = np.zeros(len(labels), bool) if is_crowd is None else np.asarray(is_crowd, bool)
    _check_boxes(corners, labels, scores, crowds, len(class_names))

    height, width = image.shape[:2]
    if enlargement is None:
        enlargement = int(np.clip(round(_COMFORTABLE_SIDE / max(height, width)), 1, _LARGEST_ENLARGEMENT))
    height, width = height * enlargement, width * enlargement
    picture = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)

    # the last pixel of a box is the one before its edge
    pixels = np.rint(corners * enlargement) - (0, 0, 1, 1)
    pixels = np.clip(pixels, 0, (width - 1, height - 1) * 2).astype(int)
    line = max(1, round(min(height, width) / 260))
    text_height = _text_height(height, width)
    order = range(len(labels)) if scores is None else np.argsort(scores, kind="stable")

    shade = picture.copy()
    for index in order:
        _draw_box(shade, pixels[index], INK, line + 2, crowds[index])
    picture = cv2.addWeighted(shade, 0.45, picture, 0.55, 0)
    for index in order:
        _draw_box(picture, pixels[index], class_colour(labels[index]), line, crowds[index])

    endings = [""] * len(labels) if scores is None else [f" {score:.2f}" for score in scores]
    texts = []
    for label, ending in zip(labels, endings):
        room = width - 2 * _padding(text_height) - text_width(ending, text_height)
        texts.append(shortened(class_names[label], room, text_height) + ending)
    sizes = np.array([_plate_size(text, text_height) for text in texts]).reshape(-1, 2)
    sizes = np.minimum(sizes, (width, height))
    # the best detections choose their places first, and are drawn last
    outlines = pixels + np.array([-1, -1, 1, 1]) * (line // 2)
    places = _plate_places(outlines, sizes, list(order)[::-1], (width, height))
    for index in order:
        _draw_plate(picture, texts[index], places[index], sizes[index], class_colour(labels[index]), text_height)
    return picture


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes an RGB image as PNG or JPEG, by the suffix. Missing parent folders are made.

    Args:
        path: a name that ends with `.png`, `.jpg` or `.jpeg`; an existing file is replaced.
        image: uint8 `[H, W, 3]`, RGB.

    Raises:
        ValueError: if the suffix is another one, or the image is none.
        OSError: if the file cannot be written; the message names it.
    """
    target = pathlib.Path(path)
    suffix = target.suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"cannot write {target}: the name must end with .png, .jpg or .jpeg")
    check_image(image)
    options = [] if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    is_encoded, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not is_encoded:
        raise ValueError(f"cannot write {target}: an image of shape {image.shape} cannot be stored as {suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded.tobytes())
    except OSError as error:
        raise OSError(error.errno, f"cannot write the picture: {error.strerror}", str(target)) from error


def check_image(image: np.ndarray) -> None:
    """Raises ValueError unless the image is uint8 `[H, W, 3]` with at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3] (RGB)")


def _brightness(colour: Sequence[float] | np.ndarray) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))  # how much each of R, G, B adds (ITU-R BT.601)


def _check_boxes(
    boxes_xyxy: np.ndarray, labels: np.ndarray, scores: np.ndarray | None, is_crowd: np.ndarray, num_classes: int
) -> None:
    count = len(labels)
    if boxes_xyxy.shape != (count, 4):
        raise ValueError(f"boxes_xyxy has shape {boxes_xyxy.shape}, expected {(count, 4)} for {count} labels")
    for name, values in (("scores", scores), ("is_crowd", is_crowd)):
        if values is not None and np.shape(values) != (count,):
            raise ValueError(f"{name} has shape {np.shape(values)}, expected {(count,)} for {count} labels")
    if not np.all(np.isfinite(boxes_xyxy)):
        raise ValueError("boxes_xyxy holds values that are not finite")
    if count and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"labels are in {labels.min()}..{labels.max()}, but there are {num_classes} class names")


def _draw_box(picture: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], line: int, is_dashed: bool) -> None:
    x1, y1, x2, y2 = box.tolist()
    if not is_dashed:
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, line)
        return
    dash = max(4, min(picture.shape[:2]) // 45)
    for x in range(x1, x2 + 1, 2 * dash):
        for y in (y1, y2):
            cv2.line(picture, (x, y), (min(x + dash, x2), y), colour, line)
    for y in range(y1, y2 + 1, 2 * dash):
        for x in (x1, x2):
            cv2.line(picture, (x, y), (x, min(y + dash, y2)), colour, line)


def _plate_places(
    boxes: np.ndarray, sizes: np.ndarray, order: Sequence[int], picture_size: tuple[int, int]
) -> np.ndarray:
    """Returns int `[D, 2]`, the top left corner (x, y) of each name plate, inside the picture.

    In the given order, each plate takes the first of its box's corners (above, inside, below) at which it covers no
    plate placed before and no small box, or else the one at which it covers least.
    """
    small = boxes[np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) < 6 * np.prod(sizes, axis=1)]
    places = np.zeros((len(boxes), 2), int)
    placed = np.zeros((0, 4), int)
    for index in order:
        (x1, y1, x2, y2), (width, height) = boxes[index], sizes[index]
        right = x2 + 1 - width
        corners = [(x1, y1 - height), (x1, y1), (right, y1 - height), (right, y1)]
        corners += [(x1, y2 + 1), (x1, y2 + 1 - height), (right, y2 + 1), (right, y2 + 1 - height)]
        starts = np.clip(corners, 0, np.maximum(np.array(picture_size) - (width, height), 0))
        ends = starts + (width, height)
        covered = _shared_area(starts, ends, placed) + 0.3 * _shared_area(starts, ends, small)
        places[index] = starts[np.argmin(covered)]
        placed = np.concatenate([placed, [[*places[index], *(places[index] + sizes[index])]]])
    return places


def _shared_area(starts: np.ndarray, ends: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    shared = np.minimum(ends[:, None], others_xyxy[:, 2:]) - np.maximum(starts[:, None], others_xyxy[:, :2])
    return np.prod(np.maximum(shared, 0), axis=2).sum(axis=1)


def _draw_plate(
    picture: np.ndarray,
    text: str,
    place: np.ndarray,
    size: np.ndarray,
    colour: tuple[int, int, int],
    text_height: int,
) -> None:
    (x, y), (width, height) = place.tolist(), size.tolist()
    picture[y : y + height, x : x + width] = colour
    padding = _padding(text_height)
    put_text(
        picture[y : y + height, x : x + width],
        text,
        (padding, padding // 2),
        text_height,
        INK if _brightness(colour) > 125 else WHITE,
    )


def _text_height(height: int, width: int) -> int:
    return int(np.clip(round(min(height, width) / 34), 12, 200))


def _padding(text_height: int) -> int:
    return max(2, text_height // 4)


def _plate_size(text: str, text_height: int) -> tuple[int, int]:
    padding = _padding(text_height)
    return text_width(text, text_height) + 2 * padding, text_height + 2 * (padding // 2)

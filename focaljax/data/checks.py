"""Checks of arguments that several of the transforms share."""

from collections.abc import Sequence

import numpy as np


def is_number(value: object) -> bool:
    """Returns whether the value is a number; a bool is none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def checked_scale_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """Returns the smallest and the largest scale as floats.

    Raises:
        ValueError: they are no such range.
    """
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(is_number(number) for number in value)
    if not is_pair or not 0 < value[0] <= value[1] <= 1000:
        raise ValueError(
            f"{name} must be two numbers, 0 < smallest <= largest <= 1000, such as (0.8, 1.25), got {value!r}."
        )
    return float(value[0]), float(value[1])


def check_image(image: np.ndarray) -> None:
    """Raises a ValueError unless the image is uint8 `[H, W, 3]` and not empty."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image must be a non-empty uint8 array of shape [H, W, 3], got {image.dtype} {image.shape}.")


def check_boxes(boxes_xyxy: np.ndarray, is_crowd: np.ndarray | None) -> None:
    """Raises a ValueError unless the boxes are `[N, 4]` and `is_crowd`, if there is one, is `[N]`."""
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4:
        raise ValueError(f"boxes_xyxy must have shape [N, 4] ((0, 4) without boxes), got {boxes_xyxy.shape}.")
    if is_crowd is not None and is_crowd.shape != (len(boxes_xyxy),):
        raise ValueError(f"is_crowd must have shape {(len(boxes_xyxy),)}, one entry a box, got {is_crowd.shape}.")

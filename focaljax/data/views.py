"""Views: an image as a detector that is no longer trained sees it, and the batches of them by shape, on the host."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from focaljax.data.resize import padded_size, resize_bilinear, shortest_edge_size
from focaljax.data.transforms import resize_and_pad

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class View:
    """One image, resized and padded for the network.

    Attributes:
        image: `[H, W, 3]`, RGB in 0..255, uint8 or float32, the content top-left, zeros elsewhere.
        size: int32 `[2]`, height and width of the content.
    """

    image: np.ndarray
    size: np.ndarray


# From an image, uint8 [H, W, 3], RGB, and a factor on the size that it usually gets, to its view.
MakeView = Callable[[np.ndarray, float], View]

# Measured on the sizes of 204 images of COCO, drawn 5000 times: 32 padded shapes at 800/1333, most of them rare. With
# no more than 4 B images waiting, batches leave less than half full; with 16 B as full as without a bound.
_MAX_WAITING = 16


def fixed_size_view(
    image: np.ndarray,
    factor: float = 1.0,
    *,
    height: int,
    width: int,
    largest_sides: tuple[int, int] | None = None,
) -> View:
    """Returns the image resized to fit into a fixed shape, as `focaljax train` sees it; see `resize_and_pad`.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        factor: on both sides of the shape and on `largest_sides`, above 0.
        height: of the shape, in pixels, at factor 1.
        width: likewise.
        largest_sides: see `resize_and_pad`.

    Example:
        >>> view = fixed_size_view(np.zeros((50, 100, 3), np.uint8), 0.5, height=128, width=128)
        >>> view.image.shape, view.size.tolist()
        ((64, 64, 3), [32, 64])
    """
    height, width = scaled_shape((height, width), factor)
    largest_sides = scaled_shape(largest_sides, factor) if largest_sides else None
    padded, size = resize_and_pad(image, height=height, width=width, largest_sides=largest_sides)
    return View(padded, np.array(size, np.int32))


def shortest_edge_view(
    image: np.ndarray,
    factor: float = 1.0,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    pad_multiple: int = 32,
    keeps_aspect_ratio: bool = True,
) -> View:
    """Returns the image resized by the rule of published detectors, in float32, and padded.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        factor: on `min_size` and `max_size`, above 0.
        min_size: of the shorter side, in pixels; see `focaljax.data.resize.shortest_edge_size`.
        max_size: of the longer side, likewise.
        pad_multiple: of which both sides of the result are multiples.
        keeps_aspect_ratio: if not, the image is stretched to `min_size` x `max_size`.

    Example:
        >>> view = shortest_edge_view(np.zeros((30, 45, 3), np.uint8), min_size=60, max_size=120)
        >>> view.image.shape, view.size.tolist()
        ((64, 96, 3), [60, 90])
    """
    min_size, max_size = scaled_shape((min_size, max_size), factor)
    height, width = image.shape[:2]
    size = (min_size, max_size)
    if keeps_aspect_ratio:
        size = shortest_edge_size(height, width, min_size=min_size, max_size=max_size)
    padded = np.zeros((*padded_size([size], multiple=pad_multiple), 3), np.float32)
    padded[: size[0], : size[1]] = resize_bilinear(image, *size)
    return View(padded, np.array(size, np.int32))


def scaled_shape(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    """Returns both sides times the factor, rounded to whole pixels, at least 1.

    Example:
        >>> scaled_shape((800, 1333), 0.8)
        (640, 1066)
    """
    height, width = (max(1, round(side * factor)) for side in shape)
    return height, width


def view_batches(
    images: Iterable[tuple[int, np.ndarray]],
    make_view: MakeView,
    *,
    scales: tuple[float, ...] = (1.0,),
    batch_size: int,
) -> Iterator[Batch]:
    """Yields batches of images whose views have the same shapes, each as soon as it is full.

    Fewer than 16 B images, of all shapes together, wait at a time: where one more would, the fullest batch leaves as it
    is. What leaves before it is full, there or at the end, is filled up by repeating its last image.

    Args:
        images: pairs of an id and an image, uint8 `[H, W, 3]`, RGB, of any sizes.
        make_view: see `MakeView`.
        scales: a view is made at each of these factors.
        batch_size: B.

    Yields:
        Of the view at the first scale `image` `[B, H, W, 3]` and `size` int32 `[B, 2]`, see `View`; `more_views`, a
        tuple with for each other scale its `image` and `size`; `image_id` int64 `[B]`;
        `original_size` int32 `[B, 2]`; and `is_valid` bool `[B]`, False for repetitions.

    Example:
        >>> images = [(7, np.zeros((32, 64, 3), np.uint8)), (8, np.zeros((32, 32, 3), np.uint8))]
        >>> for batch in view_batches(images, lambda image, _: shortest_edge_view(image, min_size=32), batch_size=2):
        ...     print(batch["image"].shape, batch["image_id"], batch["is_valid"])
        (2, 32, 64, 3) [7 7] [ True False]
        (2, 32, 32, 3) [8 8] [ True False]
    """
    waiting: dict[tuple[tuple[int, ...], ...], list[Batch]] = {}
    for image_id, image in images:
        first, *others = (make_view(image, factor) for factor in scales)
        shapes = tuple(view.image.shape for view in (first, *others))
        rows = waiting.setdefault(shapes, [])
        rows.append(
            {
                "image": first.image,
                "size": first.size,
                "more_views": tuple({"image": view.image, "size": view.size} for view in others),
                "image_id": np.int64(image_id),
                "original_size": np.array(image.shape[:2], np.int32),
                "is_valid": np.True_,
            }
        )
        is_crowded = sum(map(len, waiting.values())) == _MAX_WAITING * batch_size
        if len(rows) == batch_size or is_crowded:
            yield _batch(waiting.pop(max(waiting, key=lambda key: len(waiting[key]))), batch_size)
    for rows in waiting.values():
        yield _batch(rows, batch_size)


def _batch(rows: list[Batch], batch_size: int) -> Batch:
    """Returns the rows as one batch, filled up with the last of them."""
    rows = rows + [{**rows[-1], "is_valid": np.False_}] * (batch_size - len(rows))
    return jax.tree.map(lambda *values: np.stack(values), *rows)

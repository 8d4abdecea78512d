"""How well anchors meet the boxes of a data set: the best overlap of each box, and who is assigned to what."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from focaljax.detection.boxes import pairwise_iou
from focaljax.detection.targets import assign_anchors
from focaljax.losses import BACKGROUND, IGNORED

Array = jax.Array

# Images of one call, of which the smallest number that fits is taken; those with about as many boxes go together,
# padded to 8, 16, 32, ... rows.
_IMAGES_AT_ONCE = (1, 4, 16)
_FEWEST_ROWS = 8


@dataclasses.dataclass(frozen=True)
class AnchorCoverage:
    """What the anchors are to M boxes on n images; boxes in the order given, crowd regions are no boxes.

    Attributes:
        best_iou: float32 `[M]`, with the anchor that overlaps the box most; 0 for crowd regions.
        best_level: int64 `[M]`, that anchor's place in the list of levels.
        assigned: int64 `[M]`, number of anchors that are assigned to the box.
        positives: int64 `[n]`, anchors assigned on each image.
        ignored: int64 `[n]`.
        background: int64 `[n]`.
    """

    best_iou: np.ndarray
    best_level: np.ndarray
    assigned: np.ndarray
    positives: np.ndarray
    ignored: np.ndarray
    background: np.ndarray


def measure_coverage(
    anchors: Sequence[Array],
    boxes_xyxy: np.ndarray,
    is_crowd: np.ndarray,
    counts: np.ndarray,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    low_quality: bool = True,
    low_quality_at_zero: bool = False,
) -> AnchorCoverage:
    """Returns how well anchors meet boxes, by the matching that training uses.

    Args:
        anchors: for each level `[A_l, 4]`, corners in pixels, as `pyramid_anchors` gives them.
        boxes_xyxy: `[M, 4]`, corners in the same pixels, the boxes of an image side by side.
        is_crowd: bool `[M]`.
        counts: int `[n]`, number of boxes of each image, crowd regions included; they sum to M.
        positive_iou, negative_iou, low_quality, low_quality_at_zero: see `assign_anchors`.

    Raises:
        ValueError: the thresholds are out of order or range, or the counts do not sum to M.

    Example:
        >>> import numpy as np
        >>> from focaljax.detection import pyramid_anchors
        >>> anchors = pyramid_anchors((32, 32), levels=(3,), sizes=(8.0,), scales=(1.0,), ratios=(1.0,))
        >>> box = np.array([[4.0, 4.0, 12.0, 12.0]])
        >>> coverage = measure_coverage(anchors, box, np.array([False]), np.array([1]))
        >>> coverage.best_iou.tolist(), coverage.assigned.tolist(), coverage.background.tolist()
        ([1.0], [1], [15])
    """
    counts = np.asarray(counts, np.int64)
    if counts.sum() != len(boxes_xyxy):
        raise ValueError(f"counts must sum to the number of boxes, {len(boxes_xyxy)}, got {counts.sum()}")
    matching = (positive_iou, negative_iou, low_quality, low_quality_at_zero)
    all_anchors = jnp.concatenate(list(anchors))
    starts = np.cumsum(counts) - counts
    of_boxes = {name: np.zeros(len(boxes_xyxy), np.int64) for name in ("best_anchor", "assigned")}
    best_iou = np.zeros(len(boxes_xyxy), np.float32)
    totals = {name: np.zeros(len(counts), np.int64) for name in ("positives", "ignored", "background")}
    for images, rows in _batches(counts):
        # [images, rows]: which box stands in which row; padding rows stand for the first box, and are not read.
        is_box = np.arange(rows) < counts[images][:, None]
        index = np.where(is_box, starts[images][:, None] + np.arange(rows), 0)
        if len(boxes_xyxy):
            corners, crowd = np.asarray(boxes_xyxy, np.float32)[index], np.asarray(is_crowd, bool)[index]
        else:
            corners, crowd = np.zeros((*index.shape, 4), np.float32), np.zeros(index.shape, bool)
        missing = next(size for size in _IMAGES_AT_ONCE if size >= len(images)) - len(images)
        padded = [np.pad(a, ((0, missing), *((0, 0),) * (a.ndim - 1))) for a in (corners, crowd, is_box)]
        found = jax.tree.map(lambda array: np.asarray(array)[: len(images)], _of_images(all_anchors, *padded, matching))  # noqa: B023
        best_iou[index[is_box]] = found["best_iou"][is_box]
        for name, values in of_boxes.items():
            values[index[is_box]] = found[name][is_box]
        for name, values in totals.items():
            values[images] = found[name]
    return AnchorCoverage(
        best_iou=best_iou,
        best_level=np.searchsorted(np.cumsum([len(level) for level in anchors]), of_boxes["best_anchor"], side="right"),
        assigned=of_boxes["assigned"],
        **totals,
    )


def _batches(counts: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the images of one call, and the rows that hold the boxes of each."""
    order = np.argsort(counts, kind="stable")
    needed = np.maximum(counts[order], 1) / _FEWEST_ROWS
    powers = np.maximum(0, np.ceil(np.log2(needed))).astype(np.int64)
    for power in np.unique(powers).tolist():
        images = order[powers == power]
        for start in range(0, len(images), _IMAGES_AT_ONCE[-1]):
            yield images[start : start + _IMAGES_AT_ONCE[-1]], _FEWEST_ROWS * 2**power


@functools.partial(jax.jit, static_argnames="matching")
def _of_images(
    anchors_xyxy: Array,
    boxes_xyxy: Array,
    is_crowd: Array,
    is_box: Array,
    matching: tuple[float, float, bool, bool],
) -> dict[str, Array]:
    positive_iou, negative_iou, low_quality, low_quality_at_zero = matching
    num_boxes = boxes_xyxy.shape[1]

    def of_image(image: tuple[Array, Array, Array]) -> dict[str, Array]:
        boxes, is_crowd, is_box = image
        iou = jnp.where(is_box & ~is_crowd, pairwise_iou(anchors_xyxy, boxes), 0.0)
        # The number of its row in place of a box's class: a target then names the box.
        targets = assign_anchors(
            anchors_xyxy,
            boxes,
            jnp.arange(num_boxes, dtype=jnp.int32),
            is_crowd,
            is_box,
            positive_iou=positive_iou,
            negative_iou=negative_iou,
            low_quality=low_quality,
            low_quality_at_zero=low_quality_at_zero,
        ).labels
        rows = jnp.where(targets >= 0, targets, num_boxes)
        return {
            "best_iou": iou.max(axis=0),
            "best_anchor": iou.argmax(axis=0),
            "assigned": jnp.zeros(num_boxes, jnp.int32).at[rows].add(1, mode="drop"),
            "positives": (targets >= 0).sum(),
            "ignored": (targets == IGNORED).sum(),
            "background": (targets == BACKGROUND).sum(),
        }

    # Image by image: of many at once, an array of anchors x boxes would take gigabytes.
    return jax.lax.map(of_image, (boxes_xyxy, is_crowd, is_box))

"""Soft suppression by class: boxes that overlap a better one stay, with a lower score."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from focaljax.detection.boxes import intersection_and_union
from focaljax.detection.nms import (
    Detections,
    check_boxes,
    check_iou_threshold,
    check_max_detections,
    make_detections,
    pad_rows,
    with_finite_areas,
)

Array = jax.Array


def linear_soft_nms(
    boxes_xyxy: Array,
    scores: Array,
    labels: Array,
    *,
    iou_threshold: float = 0.3,
    min_score: float = 0.001,
    max_detections: int = 100,
) -> Detections:
    """Returns the boxes whose score is the best after each better box of the same class has lowered it linearly.

    As often as there are rows, the best remaining box is taken, with the score it then has, and the scores of the
    other boxes of its class become `s (1 - IoU)` where the IoU with it is above the threshold.

    Args:
        boxes_xyxy: `[M, 4]`, corners in pixels. A box without area overlaps nothing.
        scores: `[M]`; a row whose score is 0, negative or NaN is padding.
        labels: int `[M]`, classes.
        iou_threshold: in [0, 1]; a smaller overlap lowers nothing.
        min_score: at least 0; a box is no detection unless its lowered score is higher.
        max_detections: D, at least 1.

    Returns:
        `Detections` with D rows and the lowered scores, best first, of equal scores the first of the input first.
        Differentiable in boxes and scores; the order in which boxes are taken has no gradient.

    Raises:
        TypeError: boxes or scores are not floating point, labels no integers.
        ValueError: shapes do not fit, or a hyperparameter is out of range.

    Source: Bodla et al. 2017, Soft-NMS (arXiv 1704.04503), section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]])
        >>> kept = linear_soft_nms(boxes, jnp.array([0.75, 0.5]), jnp.zeros(2, int), max_detections=2)
        >>> print(kept.scores)
        [0.75 0.25]
    """
    check_iou_threshold(iou_threshold)
    return _soft_nms(
        boxes_xyxy,
        scores,
        labels,
        lambda iou: jnp.where(iou > iou_threshold, 1.0 - iou, 1.0),
        min_score=min_score,
        max_detections=max_detections,
    )


def gaussian_soft_nms(
    boxes_xyxy: Array,
    scores: Array,
    labels: Array,
    *,
    sigma: float = 0.5,
    min_score: float = 0.001,
    max_detections: int = 100,
) -> Detections:
    """Returns the boxes whose score is the best after each better box of the same class has lowered it smoothly.

    As `linear_soft_nms`, but every overlap counts: scores become `s exp(-IoU^2 / sigma)`.

    Args:
        boxes_xyxy, scores, labels, min_score, max_detections: as `linear_soft_nms`.
        sigma: above 0; the smaller, the nearer to hard suppression at any overlap.

    Returns:
        As `linear_soft_nms`.

    Raises:
        TypeError, ValueError: as `linear_soft_nms`.

    Source: Bodla et al. 2017, Soft-NMS (arXiv 1704.04503), section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]])
        >>> kept = gaussian_soft_nms(boxes, jnp.array([0.75, 0.5]), jnp.zeros(2, int), max_detections=2)
        >>> print(kept.scores[1].round(3))
        0.303
    """
    if not 0.0 < sigma < float("inf"):
        raise ValueError(f"sigma must be above 0 and finite, got {sigma}")
    return _soft_nms(
        boxes_xyxy,
        scores,
        labels,
        lambda iou: jnp.exp(-(iou**2) / sigma),
        min_score=min_score,
        max_detections=max_detections,
    )


def _soft_nms(
    boxes_xyxy: Array,
    scores: Array,
    labels: Array,
    factor: Callable[[Array], Array],
    *,
    min_score: float,
    max_detections: int,
) -> Detections:
    if not 0.0 <= min_score < float("inf"):
        raise ValueError(f"min_score must be at least 0 and finite, got {min_score}")
    check_max_detections(max_detections)
    boxes, scores, labels = pad_rows(1, *check_boxes(boxes_xyxy, scores, labels))
    corners = with_finite_areas(boxes, scores).T
    positions = jnp.arange(scores.size)

    def take_best(remaining: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        # Not argmax, which compares pairs of value and index and is slower.
        known = jax.lax.stop_gradient(remaining)
        best = jnp.min(jnp.where(known == jnp.max(known), positions, scores.size - 1))
        intersection, union = intersection_and_union(corners, corners[:, best, None])
        has_area = union > 0.0
        iou = jnp.where(has_area, intersection / jnp.where(has_area, union, 1.0), 0.0)
        lowered = jnp.where(labels == labels[best], remaining * factor(iou), remaining)
        return jnp.where(positions == best, 0.0, lowered), (best, remaining[best])

    scores = jnp.where(scores > 0.0, scores, 0.0)
    _, (index, taken_scores) = jax.lax.scan(take_best, scores, None, length=max_detections)
    return make_detections(boxes[index], taken_scores, labels[index], taken_scores > min_score)

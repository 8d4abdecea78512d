"""Regression losses for boxes: one value per coordinate, or one per box from its overlap with the target.

Computed in float32 (float64 if the predictions are). The losses of overlap do not change when both boxes are moved or
scaled, and are right in any unit of length: sides are measured by those of the box that encloses both, so no area
overflows or vanishes, and no epsilon is added to a denominator. Values and first derivatives are finite for corners up
to 1e37 in size; second derivatives are of the order of 1 / side^2, which float32 holds for sides above about 1e-18.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from focaljax.losses.checks import check_at_least_0

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def l1(predictions: ArrayLike, targets: ArrayLike) -> Array:
    """Returns `|predictions - targets|` for each element.

    Args:
        predictions: floating, any shape, such as box deltas `[..., 4]`.
        targets: of the same shape.

    Returns:
        One value per element, float32 (float64 for float64 predictions). The gradient at equality is 0.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> print(l1(1.0, 3.0))
        2.0
    """
    return _distance(predictions, targets)


def smooth_l1(predictions: ArrayLike, targets: ArrayLike, *, beta: float = 1.0) -> Array:
    """Returns `d^2 / (2 beta)` where `d = |predictions - targets| < beta`, else `d - beta / 2`.

    Value and first derivative are continuous; beta = 0 is `l1`.

    Args:
        predictions: floating, any shape, such as box deltas `[..., 4]`.
        targets: of the same shape.
        beta: width of the quadratic part, at least 0.

    Returns:
        One value per element, float32 (float64 for float64 predictions).

    Raises:
        TypeError: beta is not a number.
        ValueError: beta is negative or not finite, or the shapes differ.

    Source: Girshick 2015, Fast R-CNN (arXiv 1504.08083), section 2.3, where beta = 1.

    Example:
        >>> print(smooth_l1(0.5, 0.0), smooth_l1(3.0, 0.0))
        0.125 2.5
    """
    check_at_least_0("beta", beta)
    distance = _distance(predictions, targets)
    if beta == 0:
        return distance
    return jnp.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


class _Extent(NamedTuple):
    """Boxes as intervals on both axes, `low <= high`: `[..., 2]` each, (x, y)."""

    low: Array
    high: Array

    @property
    def sides(self) -> Array:
        return self.high - self.low


def iou_loss(predictions_xyxy: ArrayLike, targets_xyxy: ArrayLike) -> Array:
    """Returns `1 - IoU` of each predicted box with its target, IoU being intersection over union.

    It is 1 for boxes apart, with gradient 0: `giou_loss` and `diou_loss` pull such boxes together. The source below
    minimises `-ln IoU`, which is infinite there.

    Edges, the same for every loss of overlap here, all with finite values and derivatives:

    - IoU is 0 where neither box has an area, also where they are equal; so it is in `detection.pairwise_iou`.
    - Where boxes touch, or one has no area, the derivative is that of the side on which they overlap and it opens.
    - Where an edge of one box is level with the same edge of the other, the derivative is the mean of both sides'. For
      equal boxes with an area, the value is exactly 0, and the gradient 0 to within rounding.
    - A box with x2 < x1 (y2 < y1) counts as one without width (height) at its middle; a gradient moves it, but does
      not open it.

    Args:
        predictions_xyxy: `[..., 4]`, corners x1, y1, x2, y2, in any unit of length; each up to 1e37 in size.
        targets_xyxy: `[..., 4]`, in the same unit, of a shape that broadcasts with that of the predictions: `[1, 4]`
            with `[A, 4]` gives the loss of one box with many.

    Returns:
        `[...]`, one value per pair of boxes, in [0, 1], float32 (float64 for float64 predictions).

    Raises:
        TypeError: the boxes are not real numbers.
        ValueError: a last axis is not 4, or the shapes do not broadcast.

    Source: Yu et al. 2016, UnitBox (arXiv 1608.01471), section 3.1, with 1 - IoU instead of the logarithm.

    Example:
        >>> import jax.numpy as jnp
        >>> print(iou_loss(jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, 0.0, 3.0, 2.0])).round(4))
        0.6667
    """
    return 1.0 - _iou(*_extents(predictions_xyxy, targets_xyxy))


def giou_loss(predictions_xyxy: ArrayLike, targets_xyxy: ArrayLike) -> Array:
    """Returns `1 - GIoU = 1 - IoU + (C - U) / C` of each predicted box with its target.

    C is the area of the smallest box that encloses both, U that of their union. The second term is the share of the
    enclosing box that neither covers: it pulls boxes together that do not overlap.

    Edges: as in `iou_loss`; if the enclosing box has no area, the second term is 0 and the loss 1.

    Args:
        predictions_xyxy: `[..., 4]`, corners x1, y1, x2, y2, in any unit of length; each up to 1e37 in size.
        targets_xyxy: `[..., 4]`, in the same unit, of a shape that broadcasts with that of the predictions.

    Returns:
        `[...]`, one value per pair of boxes, in [0, 2] (a rounding error may lead out), never below `iou_loss` by more
        than such an error; float32 (float64 for float64 predictions).

    Raises:
        TypeError, ValueError: as `iou_loss`.

    Source: Rezatofighi et al. 2019 (arXiv 1902.09630), section 3, algorithm 2. torchvision adds 1e-7 to both
    denominators, and so is wrong for boxes of a small unit of length.

    Example:
        >>> import jax.numpy as jnp
        >>> print(giou_loss(jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([3.0, 0.0, 4.0, 1.0])))  # half of C is bare
        1.5
    """
    prediction, target = _extents(predictions_xyxy, targets_xyxy)
    intersection, union, enclosing = _areas(prediction, target)
    return 1.0 - _ratio(intersection, union) + _ratio(enclosing - union, enclosing)


def diou_loss(predictions_xyxy: ArrayLike, targets_xyxy: ArrayLike) -> Array:
    """Returns `1 - DIoU = 1 - IoU + d^2 / c^2` of each predicted box with its target.

    d is the distance of the boxes' centres, c the diagonal of the smallest box that encloses both.

    Edges: as in `iou_loss`; if both boxes are the same point, the second term is 0 and the loss 1.

    Args:
        predictions_xyxy: `[..., 4]`, corners x1, y1, x2, y2, in any unit of length; each up to 1e37 in size.
        targets_xyxy: `[..., 4]`, in the same unit, of a shape that broadcasts with that of the predictions.

    Returns:
        `[...]`, one value per pair of boxes, in [0, 2], float32 (float64 for float64 predictions).

    Raises:
        TypeError, ValueError: as `iou_loss`.

    Source: Zheng et al. 2020 (arXiv 1911.08287), section "Distance-IoU Loss". torchvision adds 1e-7 to both
    denominators.

    Example:
        >>> import jax.numpy as jnp
        >>> print(diou_loss(jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([3.0, 0.0, 4.0, 1.0])).round(4))  # 1 + 9 / 17
        1.5294
    """
    prediction, target = _extents(predictions_xyxy, targets_xyxy)
    return 1.0 - _iou(prediction, target) + _center_penalty(prediction, target)


def ciou_loss(predictions_xyxy: ArrayLike, targets_xyxy: ArrayLike) -> Array:
    """Returns `1 - CIoU = 1 - IoU + d^2 / c^2 + a v` of each predicted box with its target.

    The first terms are `diou_loss`; `v = 4 / pi^2 (arctan(w' / h') - arctan(w / h))^2` compares the aspect ratios of
    target and prediction, and `a = v / (1 - IoU + v)` is its weight. a counts as a constant in derivatives of every
    order, as in the paper, which derives v alone; the authors' code further replaces the factor 1 / (w^2 + h^2) in the
    gradient of v by 1, which this function does not: the gradient is that of the formula, for any unit of length.

    Edges: as in `diou_loss`; a box without any side counts as a square in v.

    Args:
        predictions_xyxy: `[..., 4]`, corners x1, y1, x2, y2, in any unit of length; each up to 1e37 in size.
        targets_xyxy: `[..., 4]`, in the same unit, of a shape that broadcasts with that of the predictions.

    Returns:
        `[...]`, one value per pair of boxes, in [0, 3], float32 (float64 for float64 predictions).

    Raises:
        TypeError, ValueError: as `iou_loss`.

    Source: Zheng et al. 2020 (arXiv 1911.08287), section "Complete IoU Loss". torchvision adds 1e-7 to the
    denominators.

    Example:
        >>> import jax.numpy as jnp
        >>> print(ciou_loss(jnp.array([0.0, 0.0, 2.0, 1.0]), jnp.array([0.0, 0.0, 2.0, 2.0])).round(4))
        0.5345
    """
    prediction, target = _extents(predictions_xyxy, targets_xyxy)
    loss = 1.0 - _iou(prediction, target)
    difference = _aspect_angle(target) - _aspect_angle(prediction)
    mismatch = 4.0 / math.pi**2 * difference * difference
    weight = jax.lax.stop_gradient(_ratio(mismatch, loss + mismatch))
    return loss + _center_penalty(prediction, target) + weight * mismatch


def _iou(a: _Extent, b: _Extent) -> Array:
    intersection, union, _ = _areas(a, b)
    return _ratio(intersection, union)


def _center_penalty(a: _Extent, b: _Extent) -> Array:
    """Returns the squared distance of the centres over the squared diagonal of the enclosing box."""
    enclosing = _enclosing_sides(a, b)
    # One scale for both axes: unlike a quotient of areas, this one changes if the axes have scales of their own.
    scale = _scale(jnp.max(enclosing, axis=-1, keepdims=True))
    # Edges are subtracted before they are added: the sum of the edges of a box far from the origin has lost digits.
    offset = (0.5 * (a.low - b.low) + 0.5 * (a.high - b.high)) * scale
    diagonal = enclosing * scale
    return _ratio(jnp.sum(offset * offset, axis=-1), jnp.sum(diagonal * diagonal, axis=-1))


def _areas(a: _Extent, b: _Extent) -> tuple[Array, Array, Array]:
    """Returns the areas of the intersection, the union and the enclosing box, scaled so that the last is about 1."""
    enclosing = _enclosing_sides(a, b)
    scale = _scale(enclosing)
    overlap = jnp.minimum(a.high, b.high) - jnp.maximum(a.low, b.low)
    # where and not a maximum: an overlap of exactly 0 keeps the derivative of one that begins.
    overlap = jnp.where(overlap >= 0.0, overlap, 0.0)
    area_a, area_b, intersection = (_product(sides * scale) for sides in (a.sides, b.sides, overlap))
    # In this order the union is exactly the larger area where one box holds the other.
    union = jnp.maximum(area_a, area_b) + (jnp.minimum(area_a, area_b) - intersection)
    return intersection, union, _product(enclosing * scale)


def _enclosing_sides(a: _Extent, b: _Extent) -> Array:
    return jnp.maximum(a.high, b.high) - jnp.minimum(a.low, b.low)


def _aspect_angle(box: _Extent) -> Array:
    """Returns `arctan(width / height)`, and pi / 4 for a box that is a point, where it has no derivative."""
    longer = jnp.max(box.sides, axis=-1, keepdims=True)
    sides = jnp.where(longer > 0.0, box.sides * _scale(longer), 1.0)
    return jnp.arctan2(sides[..., 0], sides[..., 1])


def _scale(sides: Array) -> Array:
    """Returns the power of two that brings each side near 1, a constant to derivatives; 1 for a side of 0.

    Quotients of areas and of lengths do not depend on the scale, so neither do their derivatives. A power of two adds
    no rounding error: boxes on whole pixels have exact areas, as they have without it.
    """
    nearest = jax.lax.reduce_precision(jax.lax.stop_gradient(sides), jnp.finfo(sides.dtype).nexp, 0)
    return 1.0 / jnp.where(nearest > 0.0, nearest, 1.0)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Returns the quotient, and 0 with derivative 0 where the denominator is next to nothing.

    A denominator scaled to the enclosing box is so small only if the boxes have no area, or lie too far apart for their
    size to overlap, or cross as two hairs: in all of these IoU is 0 to within rounding. The bound's fourth power, by
    which a third derivative divides, is still a normal number.
    """
    is_normal = denominator > jnp.finfo(denominator.dtype).tiny ** 0.25
    return jnp.where(is_normal, numerator / jnp.where(is_normal, denominator, 1.0), 0.0)


def _product(sides: Array) -> Array:
    return sides[..., 0] * sides[..., 1]


def _extents(predictions_xyxy: ArrayLike, targets_xyxy: ArrayLike) -> tuple[_Extent, _Extent]:
    """Checks both arguments at public entry, and returns them in one dtype."""
    predictions_xyxy, targets_xyxy = jnp.asarray(predictions_xyxy), jnp.asarray(targets_xyxy)
    for name, boxes in (("predictions_xyxy", predictions_xyxy), ("targets_xyxy", targets_xyxy)):
        if not (jnp.issubdtype(boxes.dtype, jnp.floating) or jnp.issubdtype(boxes.dtype, jnp.integer)):
            raise TypeError(f"{name} must be real numbers, got {boxes.dtype}")
        if boxes.shape[-1:] != (4,):
            raise ValueError(f"{name} has shape {boxes.shape}: the last axis must be the 4 corners x1, y1, x2, y2")
    try:
        jnp.broadcast_shapes(predictions_xyxy.shape, targets_xyxy.shape)
    except ValueError:
        raise ValueError(
            f"predictions_xyxy has shape {predictions_xyxy.shape}, targets_xyxy {targets_xyxy.shape}, which do not "
            "broadcast: give one target a prediction, or [:, None] and [None, :] for all pairs"
        ) from None
    dtype = jnp.promote_types(predictions_xyxy.dtype, jnp.float32)
    return _extent(predictions_xyxy.astype(dtype)), _extent(targets_xyxy.astype(dtype))


def _extent(boxes_xyxy: Array) -> _Extent:
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    # where and not a maximum: a side of exactly 0 keeps the derivative of one that opens.
    middle, is_ordered = 0.5 * low + 0.5 * high, low <= high
    return _Extent(jnp.where(is_ordered, low, middle), jnp.where(is_ordered, high, middle))


def _distance(predictions: ArrayLike, targets: ArrayLike) -> Array:
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions has shape {predictions.shape}, targets {targets.shape}: they must be equal")
    dtype = jnp.promote_types(predictions.dtype, jnp.float32)
    difference = predictions.astype(dtype) - targets.astype(dtype)
    # Not jnp.abs: its gradient at 0 is 1 in current jax, where a box that is met exactly should stay.
    return difference * jnp.sign(difference)

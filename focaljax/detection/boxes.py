"""Boxes as corners `[x1, y1, x2, y2]` in pixels: areas, overlaps, and the coding of a box relative to an anchor."""

import math

import jax
import jax.numpy as jnp

Array = jax.Array

# The largest log-ratio of a decoded side to its anchor's: a side grows at most 62.5 times (1000 px from 16 px), so that
# exp() of a wild delta does not overflow. The value is Detectron's, and that of torchvision and detectron2.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)

# Pixels. A shorter side of a box is encoded as this one, so that its logarithm is finite.
MIN_ENCODED_SIDE = 1e-2


def box_area(boxes_xyxy: Array) -> Array:
    """Returns the area of each box, 0 where a side is negative.

    Args:
        boxes_xyxy: `[..., 4]`, corners in pixels.

    Returns:
        `[...]`, square pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> print(box_area(jnp.array([0.0, 0.0, 2.0, 3.0])))
        6.0
    """
    sides = jnp.maximum(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def pairwise_intersection(boxes_a_xyxy: Array, boxes_b_xyxy: Array) -> Array:
    """Returns the area that each box of a has in common with each box of b.

    Args:
        boxes_a_xyxy: `[A, 4]`, corners in pixels.
        boxes_b_xyxy: `[N, 4]`.

    Returns:
        `[A, N]`, square pixels, at least 0.
    """
    return intersection_and_union(boxes_a_xyxy.T[:, :, None], boxes_b_xyxy.T[:, None, :])[0]


def pairwise_iou(boxes_a_xyxy: Array, boxes_b_xyxy: Array) -> Array:
    """Returns the intersection over union of each box of a with each box of b.

    Args:
        boxes_a_xyxy: `[A, 4]`, corners in pixels.
        boxes_b_xyxy: `[N, 4]`.

    Returns:
        `[A, N]` in [0, 1]; 0 where both boxes have no area.

    Example:
        >>> import jax.numpy as jnp
        >>> print(pairwise_iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0, 2.0]])).round(4))
        [[0.3333]]
    """
    intersection, union = intersection_and_union(boxes_a_xyxy.T[:, :, None], boxes_b_xyxy.T[:, None, :])
    return jnp.where(union > 0.0, intersection / jnp.where(union > 0.0, union, 1.0), 0.0)


def intersection_and_union(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns the areas that boxes have in common, and together.

    Args:
        a: `[4, ...]`, corners first, so that boxes fill the vector registers.
        b: `[4, ...]`, of a shape that broadcasts to that of `a` or the reverse.
    """
    sides = jnp.maximum(jnp.minimum(a[2:], b[2:]) - jnp.maximum(a[:2], b[:2]), 0.0)
    intersection = sides[0] * sides[1]
    area_a, area_b = (jnp.prod(jnp.maximum(box[2:] - box[:2], 0.0), axis=0) for box in (a, b))
    return intersection, area_a + area_b - intersection


def clip_boxes(boxes_xyxy: Array, size: Array) -> Array:
    """Returns the boxes cut to the image.

    Args:
        boxes_xyxy: `[..., 4]`, corners in pixels.
        size: `[2]`, height and width of the image in pixels.

    Returns:
        `[..., 4]`, 0 <= x <= width and 0 <= y <= height.
    """
    height, width = size[0], size[1]
    limit = jnp.stack([width, height, width, height]).astype(boxes_xyxy.dtype)
    return jnp.clip(boxes_xyxy, 0.0, limit)


def encode_boxes(boxes_xyxy: Array, anchors_xyxy: Array) -> Array:
    """Returns the deltas that turn each anchor into its box.

    `dx = (x_box - x_anchor) / w_anchor`, `dw = log(w_box / w_anchor)` with centres x; y and h likewise.
    Source: Girshick et al. 2014, R-CNN (arXiv 1311.2524), appendix C.

    Args:
        boxes_xyxy: `[..., 4]`, corners in pixels; a side counts at least `MIN_ENCODED_SIDE`.
        anchors_xyxy: `[..., 4]`, of the same shape; their sides must be positive.

    Returns:
        `[..., 4]`, (dx, dy, dw, dh), float32 (float64 if an argument is).

    Example:
        >>> import jax.numpy as jnp
        >>> print(encode_boxes(jnp.array([2.0, 0.0, 6.0, 4.0]), jnp.array([0.0, 0.0, 4.0, 4.0])))
        [0.5 0.  0.  0. ]
    """
    box_centers, box_sides = _centers_and_sides(boxes_xyxy)
    anchor_centers, anchor_sides = _centers_and_sides(anchors_xyxy)
    offsets = (box_centers - anchor_centers) / anchor_sides
    return jnp.concatenate([offsets, jnp.log(jnp.maximum(box_sides, MIN_ENCODED_SIDE) / anchor_sides)], axis=-1)


def decode_boxes(deltas: Array, anchors_xyxy: Array) -> Array:
    """Returns the box that each delta makes of its anchor; the inverse of `encode_boxes` within the limits of both.

    Args:
        deltas: `[..., 4]`, (dx, dy, dw, dh); dw and dh count at most `MAX_LOG_RATIO`.
        anchors_xyxy: `[..., 4]`, corners in pixels, of the same shape.

    Returns:
        `[..., 4]`, corners in pixels, not clipped to the image, float32 (float64 if an argument is).

    Example:
        >>> import jax.numpy as jnp
        >>> print(decode_boxes(jnp.array([0.5, 0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 4.0, 4.0])))
        [2. 0. 6. 4.]
    """
    anchor_centers, anchor_sides = _centers_and_sides(anchors_xyxy)
    deltas = deltas.astype(jnp.promote_types(deltas.dtype, jnp.float32))
    centers = anchor_centers + deltas[..., :2] * anchor_sides
    half_sides = 0.5 * anchor_sides * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_RATIO))
    return jnp.concatenate([centers - half_sides, centers + half_sides], axis=-1)


def _centers_and_sides(boxes_xyxy: Array) -> tuple[Array, Array]:
    boxes_xyxy = boxes_xyxy.astype(jnp.promote_types(boxes_xyxy.dtype, jnp.float32))
    sides = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return boxes_xyxy[..., :2] + 0.5 * sides, sides

"""Non-maximum suppression by class: of boxes that overlap the best, in fixed shapes, on the device."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from focaljax.detection.boxes import intersection_and_union

Array = jax.Array

# How many boxes are decided at once. On a CPU time goes with the pairs of boxes, on an accelerator with the steps of a
# loop.
_BLOCK_OF_BEST_ON_CPU, _BLOCK_OF_CLASS_ON_CPU, _BLOCK_ELSEWHERE = 128, 32, 512

# With at least so many boxes for each that may be kept, it is faster to stop when enough are.
_BOXES_TO_STOP_EARLY = 8

# float32 holds areas up to 2^128: where a coordinate is above 2^60, all are made smaller, by a power of two. That
# changes no IoU but those of boxes beside it with sides below 2 pixels, whose areas become 0.
_LARGEST_COORDINATE, _SHRINKING = 2.0**60, 2.0**-64

_PADDING_LABEL = jnp.iinfo(jnp.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Detections:
    """The objects found in one image, padded to D rows, best score first.

    Attributes:
        boxes_xyxy: float `[D, 4]`, corners in pixels; 0 in padding rows.
        scores: float `[D]` in [0, 1]; 0 in padding rows.
        labels: int32 `[D]`, class 0..K-1; -1 in padding rows.
        is_detection: bool `[D]`, the row is not padding.
    """

    boxes_xyxy: Array
    scores: Array
    labels: Array
    is_detection: Array


def non_maximum_suppression(
    boxes_xyxy: Array, scores: Array, labels: Array, *, iou_threshold: float = 0.5, max_detections: int = 100
) -> Detections:
    """Returns the best of the boxes that no better box of the same class overlaps by more than `iou_threshold`.

    Greedy: the best remaining box (the first of equals) is kept and drops the boxes of its class that overlap it, until
    none remains. Boxes and scores have their gradient; which of them are kept has none. Of many boxes those after the
    best D kept are not looked at.

    Args:
        boxes_xyxy: `[M, 4]`, corners in pixels. A box without area overlaps nothing.
        scores: `[M]`; a row whose score is 0, negative or NaN is padding.
        labels: int `[M]`, classes.
        iou_threshold: in [0, 1]; an IoU equal to it drops nothing.
        max_detections: D, at least 1; may be more than M.

    Returns:
        `Detections` with D rows, best score first, of equal scores the first of the input first; float32, or float64
        where the input is.

    Raises:
        TypeError: boxes or scores are not floating point, labels no integers.
        ValueError: shapes do not fit, or a hyperparameter is out of range.

    Source: Girshick et al. 2014, R-CNN (arXiv 1311.2524), section 2.2: for each class independently.
    torchvision compares the rounded quotient with the threshold, where this multiplies: they may differ for an IoU
    within rounding of it.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [9.0, 9.0, 12.0, 12.0]])
        >>> kept = non_maximum_suppression(boxes, jnp.array([0.8, 0.9, 0.7]), jnp.zeros(3, int), max_detections=3)
        >>> print(kept.scores)
        [0.9 0.7 0. ]
    """
    boxes, scores, labels = check_boxes(boxes_xyxy, scores, labels)
    check_iou_threshold(iou_threshold)
    check_max_detections(max_detections)
    if max_detections * _BOXES_TO_STOP_EARLY <= scores.size:
        index, is_detection = _on_platform(
            functools.partial(_best_kept, iou_threshold=iou_threshold, max_detections=max_detections),
            (boxes, scores, labels),
            block_on_cpu=_BLOCK_OF_BEST_ON_CPU,
        )
    else:
        is_kept = nms_mask(boxes, scores, labels, iou_threshold=iou_threshold)
        boxes, scores, labels = pad_rows(max_detections, boxes, jnp.where(is_kept, scores, 0.0), labels)
        kept_scores, index = jax.lax.top_k(jax.lax.stop_gradient(scores), max_detections)
        is_detection = kept_scores > 0.0
    return make_detections(boxes[index], scores[index], labels[index], is_detection)


def nms_mask(boxes_xyxy: Array, scores: Array, labels: Array, *, iou_threshold: float = 0.5) -> Array:
    """Returns which boxes no better box of the same class overlaps by more than `iou_threshold`.

    The rule of `non_maximum_suppression`, whose arguments these are, without a limit of the number kept. The boxes are
    sorted by class and score and cut into blocks; a block meets those earlier blocks only that share a class with it.
    So the time grows with the square of the boxes of one class, and no matrix of all pairs is made.

    Args:
        boxes_xyxy: `[M, 4]`, corners in pixels.
        scores: `[M]`; a row whose score is 0, negative or NaN is padding.
        labels: int `[M]`, classes.
        iou_threshold: in [0, 1].

    Returns:
        bool `[M]`, in the order of the input; false in padding rows.

    Raises:
        TypeError: boxes or scores are not floating point, labels no integers.
        ValueError: shapes do not fit, or the threshold is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [9.0, 9.0, 12.0, 12.0]])
        >>> print(nms_mask(boxes, jnp.array([0.8, 0.9, 0.7]), jnp.zeros(3, int)))
        [False  True  True]
    """
    boxes, scores, labels = check_boxes(boxes_xyxy, scores, labels)
    check_iou_threshold(iou_threshold)
    if scores.size == 0:
        return jnp.zeros(0, bool)
    greedy = functools.partial(_kept_of_each_class, iou_threshold=iou_threshold)
    return _on_platform(greedy, (boxes, scores, labels), block_on_cpu=_BLOCK_OF_CLASS_ON_CPU)


def _on_platform(function: Any, boxes_scores_labels: tuple[Array, Array, Array], *, block_on_cpu: int) -> Any:
    """Returns what the function makes of the boxes, without gradient, in blocks for the platform of the program."""
    boxes, scores, labels = jax.lax.stop_gradient(boxes_scores_labels)
    return jax.lax.platform_dependent(
        with_finite_areas(boxes, scores),
        scores,
        labels,
        cpu=functools.partial(function, block_size=block_on_cpu),
        default=functools.partial(function, block_size=_BLOCK_ELSEWHERE),
    )


def _best_kept(
    boxes: Array, scores: Array, labels: Array, *, iou_threshold: float, max_detections: int, block_size: int
) -> tuple[Array, Array]:
    """Returns the indices of the first D boxes kept, and which of these rows are boxes."""
    size = min(block_size, scores.size)
    is_box = scores > 0.0
    _, order = jax.lax.top_k(jnp.where(is_box, scores, 0.0), scores.size)
    num_boxes = jnp.sum(is_box, dtype=jnp.int32)
    padding = -scores.size % size
    corners, labels = jnp.pad(boxes[order].T, ((0, 0), (0, padding))), jnp.pad(labels[order], (0, padding))
    in_block, rows = jnp.arange(size, dtype=jnp.int32), jnp.arange(max_detections, dtype=jnp.int32)

    def is_unfinished(state: tuple[Array, Array, Array]) -> Array:
        start, num_kept, _ = state
        return (start < num_boxes) & (num_kept < max_detections)

    def decide_block(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start, num_kept, kept = state
        these = _slice(corners, start, size), _slice(labels, start, size)
        is_dropping = _overlaps((corners[:, kept], labels[kept]), these, iou_threshold) & (rows < num_kept)[:, None]
        is_kept = _settle(these, (start + in_block < num_boxes) & ~jnp.any(is_dropping, axis=0), iou_threshold)
        row = jnp.where(is_kept, num_kept + jnp.cumsum(is_kept, dtype=jnp.int32) - 1, max_detections)
        kept = kept.at[row].set(start + in_block, mode="drop")
        return start + size, num_kept + jnp.sum(is_kept, dtype=jnp.int32), kept

    state = jnp.int32(0), jnp.int32(0), jnp.zeros_like(rows)
    _, num_kept, kept = jax.lax.while_loop(is_unfinished, decide_block, state)
    return order[kept], rows < num_kept


def _kept_of_each_class(boxes: Array, scores: Array, labels: Array, *, iou_threshold: float, block_size: int) -> Array:
    """Returns the mask of all boxes kept."""
    size = min(block_size, scores.size)
    is_box = scores > 0.0
    padding = -scores.size % size
    index = jnp.arange(scores.size + padding, dtype=jnp.int32)
    # Padding last, so that the loop ends before it.
    labels = jnp.where(is_box, labels, _PADDING_LABEL)
    labels, _, order = jax.lax.sort((labels, -scores, index[: scores.size]), num_keys=2, is_stable=True)
    labels = jnp.pad(labels, (0, padding), constant_values=_PADDING_LABEL)
    corners = jnp.pad(boxes[order].T, ((0, 0), (0, padding)))
    num_boxes = jnp.sum(is_box, dtype=jnp.int32)
    is_first_of_class = jnp.concatenate([jnp.ones(1, bool), labels[1:] != labels[:-1]])
    # For each block, that in which the class of its first box begins.
    first_blocks = jax.lax.cummax(jnp.where(is_first_of_class, index, 0))[::size] // size

    def decide_block(number: Array, is_kept: Array) -> Array:
        start = number * size
        these = _slice(corners, start, size), _slice(labels, start, size)

        def drop_overlapped(earlier: Array, is_open: Array) -> Array:
            start = earlier * size
            those = _slice(corners, start, size), _slice(labels, start, size)
            is_dropping = _overlaps(those, these, iou_threshold) & _slice(is_kept, start, size)[:, None]
            return is_open & ~jnp.any(is_dropping, axis=0)

        is_open = jax.lax.fori_loop(first_blocks[number], number, drop_overlapped, _slice(is_kept, start, size))
        return jax.lax.dynamic_update_slice_in_dim(is_kept, _settle(these, is_open, iou_threshold), start, axis=0)

    num_blocks = (num_boxes + size - 1) // size
    is_kept = jax.lax.fori_loop(jnp.int32(0), num_blocks, decide_block, index < num_boxes)
    return jnp.zeros(scores.shape, bool).at[order].set(is_kept[: scores.size], unique_indices=True)


def _settle(boxes: tuple[Array, Array], is_open: Array, iou_threshold: float) -> Array:
    """Returns which open boxes, sorted best first, no better one that is kept overlaps.

    Each round drops what the kept boxes of the round before overlap, which is right for one box more at least, and in
    practice for many: all whose fate depends on chains of overlaps no longer than the number of rounds.
    """
    position = jnp.arange(is_open.size)
    is_dropping = _overlaps(boxes, boxes, iou_threshold) & (position[:, None] < position[None, :])

    def is_unsettled(state: tuple[Array, Array]) -> Array:
        return state[1]

    def drop_again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        is_kept = is_open & ~jnp.any(is_dropping & state[0][:, None], axis=0)
        return is_kept, jnp.any(is_kept != state[0])

    return jax.lax.while_loop(is_unsettled, drop_again, (is_open, jnp.any(is_open)))[0]


def _slice(array: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis=-1)


def _overlaps(first: tuple[Array, Array], second: tuple[Array, Array], iou_threshold: float) -> Array:
    """Returns whether boxes `[4, P]` and `[4, Q]` are of one class and overlap by more than the threshold, `[P, Q]`."""
    (a, a_labels), (b, b_labels) = first, second
    intersection, union = intersection_and_union(a[:, :, None], b[:, None, :])
    # Without a division: a box without area overlaps nothing.
    return (intersection > iou_threshold * union) & (a_labels[:, None] == b_labels[None, :])


def with_finite_areas(boxes: Array, scores: Array) -> Array:
    """Returns the boxes `[M, 4]`, all made smaller if one is so large that its area would not be finite.

    Rows of padding (score 0) and infinite coordinates do not count: they may hold anything.
    """
    is_box = (scores > 0.0)[:, None] & jnp.isfinite(boxes)
    is_large = jnp.max(jnp.abs(boxes), initial=0.0, where=jax.lax.stop_gradient(is_box)) > _LARGEST_COORDINATE
    return boxes * jnp.where(is_large, _SHRINKING, 1.0).astype(boxes.dtype)


def make_detections(boxes: Array, scores: Array, labels: Array, is_detection: Array) -> Detections:
    """Returns the rows as `Detections`, those that are none as padding."""
    return Detections(
        boxes_xyxy=jnp.where(is_detection[:, None], boxes, 0.0),
        scores=jnp.where(is_detection, scores, 0.0),
        labels=jnp.where(is_detection, labels, -1),
        is_detection=is_detection,
    )


def pad_rows(at_least: int, boxes: Array, scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Returns the boxes with rows of padding where there are fewer than so many."""
    count = max(0, at_least - scores.size)
    return jnp.pad(boxes, ((0, count), (0, 0))), jnp.pad(scores, (0, count)), jnp.pad(labels, (0, count))


def check_boxes(boxes_xyxy: Array, scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Returns boxes and scores in float32 or float64 and labels in int32, if they are what suppression takes.

    Raises:
        TypeError: boxes or scores are not floating point, labels no integers.
        ValueError: the shapes are not `[M, 4]`, `[M]` and `[M]`.
    """
    boxes_xyxy, scores, labels = jnp.asarray(boxes_xyxy), jnp.asarray(scores), jnp.asarray(labels)
    if scores.ndim != 1:
        raise ValueError(f"scores has the shape {scores.shape}, expected that of one image, (M,): for a batch jax.vmap")
    # Checked because indexing clamps and comparing broadcasts: another number of rows would give no error.
    for name, array, shape in (("boxes_xyxy", boxes_xyxy, (scores.size, 4)), ("labels", labels, scores.shape)):
        if array.shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, for as many boxes as scores, got {array.shape}")
    for name, array in (("boxes_xyxy", boxes_xyxy), ("scores", scores)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating point, got {array.dtype}: convert with astype(jnp.float32)")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}: pass class ids, not scores of classes")
    boxes_xyxy, scores = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (boxes_xyxy, scores))
    return boxes_xyxy, scores, labels.astype(jnp.int32)


def check_iou_threshold(iou_threshold: float) -> None:
    """Raises ValueError if the threshold is no IoU."""
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold must be in [0, 1], got {iou_threshold}")


def check_max_detections(max_detections: int) -> None:
    """Raises ValueError if there is no room for a detection."""
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}")

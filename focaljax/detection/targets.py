"""Targets: which anchor answers for which object, and which answers for none."""

import dataclasses

import jax
import jax.numpy as jnp

from focaljax.detection.boxes import box_area, pairwise_intersection, pairwise_iou
from focaljax.losses import BACKGROUND, IGNORED

Array = jax.Array

# An anchor that lies at least this much inside a crowd region is neither an object nor background.
CROWD_COVERAGE = 0.5

# At most so many boxes are compared with all anchors at once: of more, an array of anchors x boxes would be the largest
# of the whole train step (300 boxes at 800 px: 144 MB an image). More turns take longer (docs/performance.md).
_BOXES_AT_ONCE = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnchorTargets:
    """What the loss needs to know of each anchor of an image.

    Attributes:
        labels: int32 `[A]`, the class 0..K-1 of the object that the anchor is assigned to, `BACKGROUND` or `IGNORED`.
        boxes_xyxy: float `[A, 4]`, that object's box in pixels; meaningless where the anchor is not assigned.
    """

    labels: Array
    boxes_xyxy: Array

    @property
    def is_positive(self) -> Array:
        """Bool `[A]`: the anchor is assigned to an object."""
        return self.labels >= 0

    @property
    def is_ignored(self) -> Array:
        """Bool `[A]`: the anchor is in neither the loss nor the count."""
        return self.labels == IGNORED


def assign_anchors(
    anchors_xyxy: Array,
    boxes_xyxy: Array,
    labels: Array,
    is_crowd: Array,
    is_box: Array,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    low_quality: bool = True,
    low_quality_at_zero: bool = False,
) -> AnchorTargets:
    """Returns the target of each anchor of one image.

    An anchor is assigned to the box with which its IoU is the largest (the first of equals) if that is at least
    `positive_iou`, is background below `negative_iou`, and is ignored between the two. With `low_quality`, an anchor
    that is a box's best (ties included) is assigned to its own best box at any IoU above 0, so that hardly an object is
    left without an anchor. An unassigned anchor of which half or more lies in a crowd region is ignored.

    torchvision and detectron2 apply the low-quality rule even where the best IoU is 0: a box that meets no anchor
    assigns all of the image that it does not meet, each to its own best box. Here such a box has no anchor, unless
    `low_quality_at_zero`.

    Args:
        anchors_xyxy: `[A, 4]`, corners in pixels.
        boxes_xyxy: `[N, 4]`, padded ground truth, corners in pixels.
        labels: int `[N]`, class 0..K-1; any value in padding rows.
        is_crowd: bool `[N]`, the row is a crowd region.
        is_box: bool `[N]`, the row is not padding.
        positive_iou: from here on an anchor is assigned; in (0, 1].
        negative_iou: below here an anchor is background; at most `positive_iou`.
        low_quality: assign each box's best anchors whatever their IoU, if it is above 0.
        low_quality_at_zero: also if it is 0, as torchvision and detectron2 do; for equality with them only.

    Returns:
        `AnchorTargets`. Without boxes (N = 0, or all padding) every anchor is background.

    Raises:
        ValueError: the thresholds are out of order or range, the shapes are not those above, or `low_quality_at_zero`
            is set without `low_quality`.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 4, 'Anchors'; Ren et al. 2015 (arXiv 1506.01497), section 3.1.2
    for the low-quality rule.

    Example:
        >>> import jax.numpy as jnp
        >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [1.0, 0.0, 5.0, 4.0], [3.0, 0.0, 7.0, 4.0]])
        >>> yes, no = jnp.array([True]), jnp.array([False])
        >>> targets = assign_anchors(anchors, jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([7]), no, yes)
        >>> print(targets.labels)
        [ 7  7 -1]
    """
    if not 0.0 < positive_iou <= 1.0 or not 0.0 <= negative_iou <= positive_iou:
        raise ValueError(
            "thresholds must satisfy 0 <= negative_iou <= positive_iou <= 1 and 0 < positive_iou, "
            f"got negative_iou {negative_iou} and positive_iou {positive_iou}"
        )
    if low_quality_at_zero and not low_quality:
        raise ValueError("low_quality_at_zero is a part of the low-quality rule: set low_quality too, or neither")
    # Checked because indexing clamps: a label array that is too short would give boxes the last label.
    num_boxes = boxes_xyxy.shape[0]
    for name, array, shape in (
        ("anchors_xyxy", anchors_xyxy, (anchors_xyxy.shape[0], 4)),
        ("boxes_xyxy", boxes_xyxy, (num_boxes, 4)),
        ("labels", labels, (num_boxes,)),
        ("is_crowd", is_crowd, (num_boxes,)),
        ("is_box", is_box, (num_boxes,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {array.shape}; for a batch use jax.vmap")
    num_anchors = anchors_xyxy.shape[0]
    if num_boxes == 0:
        return AnchorTargets(
            labels=jnp.full((num_anchors,), BACKGROUND, jnp.int32), boxes_xyxy=jnp.zeros_like(anchors_xyxy)
        )
    matches = _match(anchors_xyxy, boxes_xyxy, is_box & ~is_crowd, is_box & is_crowd, best_at_zero=low_quality_at_zero)
    is_positive = matches.iou >= positive_iou
    if low_quality:
        is_positive |= matches.is_best_of_a_box
    is_ignored = (matches.iou >= negative_iou) | (matches.crowd_overlap >= CROWD_COVERAGE * box_area(anchors_xyxy))
    unassigned = jnp.where(is_ignored, IGNORED, BACKGROUND)
    return AnchorTargets(
        labels=jnp.where(is_positive, labels[matches.box], unassigned).astype(jnp.int32),
        boxes_xyxy=boxes_xyxy[matches.box],
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Matches:
    """What anchors and boxes are to each other; every field is `[A]`.

    Attributes:
        iou: with the anchor's best object; -1 without any.
        box: int32, the row of that object, the first of equals.
        is_best_of_a_box: no anchor overlaps one of the objects more.
        crowd_overlap: area that the anchor has in common with the crowd region that covers it most.
    """

    iou: Array
    box: Array
    is_best_of_a_box: Array
    crowd_overlap: Array


def _match(
    anchors_xyxy: Array, boxes_xyxy: Array, is_object: Array, is_crowd_box: Array, *, best_at_zero: bool
) -> _Matches:
    """Compares all anchors with all boxes, some boxes at once."""

    def with_block(so_far: _Matches, block: tuple[Array, Array, Array, Array]) -> tuple[_Matches, None]:
        first, boxes_xyxy, is_object, is_crowd_box = block
        # -1 cannot be an IoU: a padding row is never the best of an anchor that overlaps anything.
        iou = jnp.where(is_object[None, :], pairwise_iou(anchors_xyxy, boxes_xyxy), -1.0)
        # The compiler may compute the same IoU in two places, and round it differently: then none equals the largest.
        iou = jax.lax.optimization_barrier(iou)
        best_of_box = iou.max(axis=0)
        has_best = is_object if best_at_zero else best_of_box > 0.0
        is_best_of_a_box = ((iou == best_of_box[None, :]) & has_best[None, :]).any(axis=1)
        best_iou = iou.max(axis=1)
        best_box = first + iou.argmax(axis=1).astype(jnp.int32)
        is_better = best_iou > so_far.iou
        overlap = jnp.where(is_crowd_box[None, :], pairwise_intersection(anchors_xyxy, boxes_xyxy), 0.0).max(axis=1)
        return _Matches(
            iou=jnp.where(is_better, best_iou, so_far.iou),
            box=jnp.where(is_better, best_box, so_far.box),
            is_best_of_a_box=so_far.is_best_of_a_box | is_best_of_a_box,
            crowd_overlap=jnp.maximum(overlap, so_far.crowd_overlap),
        ), None

    num_anchors, num_boxes = len(anchors_xyxy), len(boxes_xyxy)
    num_blocks = -(-num_boxes // _BOXES_AT_ONCE)
    dtype = jnp.promote_types(anchors_xyxy.dtype, boxes_xyxy.dtype)
    zeros = jnp.zeros((num_anchors,), dtype)
    nothing = _Matches(iou=zeros - 1.0, box=zeros.astype(jnp.int32), is_best_of_a_box=zeros > 0.0, crowd_overlap=zeros)
    if num_blocks == 1:
        return with_block(nothing, (jnp.int32(0), boxes_xyxy, is_object, is_crowd_box))[0]
    size = -(-num_boxes // num_blocks)
    padding = num_blocks * size - num_boxes
    blocks = jax.tree.map(
        lambda rows: jnp.pad(rows, ((0, padding), *((0, 0),) * (rows.ndim - 1))).reshape(
            num_blocks, size, *rows.shape[1:]
        ),
        (boxes_xyxy, is_object, is_crowd_box),
    )
    first = size * jnp.arange(num_blocks, dtype=jnp.int32)
    return jax.lax.scan(with_block, nothing, (first, *blocks))[0]

"""Postprocessing: from the network's outputs to the boxes of an image, in fixed shapes, on the device."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from focaljax.detection.boxes import box_area, clip_boxes, decode_boxes

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Detections:
    """The objects found in one image, padded to D rows, best score first.

    Attributes:
        boxes_xyxy: float32 `[D, 4]`, corners in pixels.
        scores: float32 `[D]` in [0, 1]; 0 in padding rows.
        labels: int32 `[D]`, class 0..K-1; -1 in padding rows.
        is_detection: bool `[D]`, the row is not padding.
    """

    boxes_xyxy: Array
    scores: Array
    labels: Array
    is_detection: Array


def postprocess(
    class_logits: Sequence[Array],
    box_deltas: Sequence[Array],
    anchors_xyxy: Sequence[Array],
    size: Array,
    *,
    score_threshold: float = 0.05,
    pre_nms_top_k: int = 1000,
    nms_iou: float = 0.5,
    max_detections: int = 100,
) -> Detections:
    """Returns the detections of one image.

    On each level the best (anchor, class) pairs above the score threshold are decoded; those of all levels together
    go through class-wise non-maximum suppression. Source: Lin et al. 2017 (arXiv 1708.02002), section 4.1, 'Inference'.

    Args:
        class_logits: for each level `[A_l, K]`.
        box_deltas: for each level `[A_l, 4]`.
        anchors_xyxy: for each level `[A_l, 4]`, corners in pixels.
        size: `[2]`, height and width of the image without its padding; boxes are clipped to it.
        score_threshold: a pair needs a higher sigmoid score than this.
        pre_nms_top_k: at most so many pairs of a level are decoded.
        nms_iou: boxes of one class that overlap a better one by more are dropped.
        max_detections: D.

    Returns:
        `Detections` with D rows.

    Raises:
        ValueError: logits, deltas and anchors differ in the number of levels, or of anchors on a level.
    """
    _check_levels(class_logits, box_deltas, anchors_xyxy)
    scores, labels, boxes = [], [], []
    for logits, deltas, anchors in zip(class_logits, box_deltas, anchors_xyxy, strict=True):
        num_classes = logits.shape[-1]
        pair_scores = jax.nn.sigmoid(logits.astype(jnp.float32)).reshape(-1)
        pair_scores = jnp.where(pair_scores > score_threshold, pair_scores, 0.0)
        level_scores, pairs = jax.lax.top_k(pair_scores, min(pre_nms_top_k, pair_scores.size))
        index = pairs // num_classes
        scores.append(level_scores)
        labels.append(pairs % num_classes)
        boxes.append(clip_boxes(decode_boxes(deltas[index].astype(jnp.float32), anchors[index]), size))
    return non_maximum_suppression(
        jnp.concatenate(boxes),
        jnp.concatenate(scores),
        jnp.concatenate(labels),
        iou_threshold=nms_iou,
        max_detections=max_detections,
    )


def non_maximum_suppression(
    boxes_xyxy: Array, scores: Array, labels: Array, *, iou_threshold: float = 0.5, max_detections: int = 100
) -> Detections:
    """Returns the boxes that no better box of the same class overlaps by more than `iou_threshold`.

    Greedy: the best remaining box (the first of equals) is kept and drops the boxes of its class that overlap it.
    Exactly `max_detections` such rounds run, each over all boxes, so no matrix of all pairs is made.

    Args:
        boxes_xyxy: `[M, 4]`, corners in pixels.
        scores: `[M]`; a row with score 0 is padding.
        labels: int `[M]`.
        iou_threshold: in [0, 1].
        max_detections: D.

    Returns:
        `Detections` with D rows, best score first.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [9.0, 9.0, 12.0, 12.0]])
        >>> kept = non_maximum_suppression(boxes, jnp.array([0.8, 0.9, 0.7]), jnp.zeros(3, int), max_detections=3)
        >>> print(kept.scores)
        [0.9 0.7 0. ]
    """
    areas = box_area(boxes_xyxy)

    def keep_best(remaining: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        best = jnp.argmax(remaining)
        score = remaining[best]
        box = boxes_xyxy[best]
        sides = jnp.minimum(boxes_xyxy[:, 2:], box[2:]) - jnp.maximum(boxes_xyxy[:, :2], box[:2])
        intersection = jnp.maximum(sides[:, 0], 0.0) * jnp.maximum(sides[:, 1], 0.0)
        # Without a division: a box without area overlaps nothing.
        is_overlapping = intersection > iou_threshold * (areas + areas[best] - intersection)
        is_dropped = (is_overlapping & (labels == labels[best])).at[best].set(True)
        return jnp.where(is_dropped, 0.0, remaining), (best, score)

    _, (index, kept_scores) = jax.lax.scan(keep_best, scores, None, length=max_detections)
    is_detection = kept_scores > 0.0
    return Detections(
        boxes_xyxy=jnp.where(is_detection[:, None], boxes_xyxy[index], 0.0),
        scores=kept_scores,
        labels=jnp.where(is_detection, labels[index], -1).astype(jnp.int32),
        is_detection=is_detection,
    )


def _check_levels(class_logits: Sequence[Array], box_deltas: Sequence[Array], anchors_xyxy: Sequence[Array]) -> None:
    # Checked because indexing clamps: anchors of another image size would give wrong boxes without an error.
    counts = [[level.shape[0] for level in levels] for levels in (class_logits, box_deltas, anchors_xyxy)]
    if not counts[0] == counts[1] == counts[2]:
        raise ValueError(
            f"anchors by level: {counts[0]} in class_logits, {counts[1]} in box_deltas, {counts[2]} in anchors_xyxy: "
            "they must be equal; make the anchors for the size of the padded image, with the model's levels"
        )

"""Postprocessing: from the network's outputs to the boxes of an image, in fixed shapes, on the device."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from focaljax.detection.boxes import clip_boxes, decode_boxes
from focaljax.detection.nms import Detections, non_maximum_suppression
from focaljax.detection.soft_nms import gaussian_soft_nms, linear_soft_nms

Array = jax.Array

SUPPRESSIONS = ("hard", "linear", "gaussian")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """The boxes of one image from which suppression chooses.

    Attributes:
        boxes_xyxy: float `[M, 4]`, corners in pixels.
        scores: float `[M]` in [0, 1]; 0 in padding rows, where the box means nothing.
        labels: int `[M]`, class 0..K-1.
    """

    boxes_xyxy: Array
    scores: Array
    labels: Array


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
    suppression: str = "hard",
    soft_sigma: float = 0.5,
) -> Detections:
    """Returns the detections of one image: `suppress` of its `candidates`.

    On each level the best (anchor, class) pairs above the score threshold are decoded; those of all levels together
    go through class-wise non-maximum suppression.

    Args:
        class_logits: for each level `[A_l, K]`.
        box_deltas: for each level `[A_l, 4]`.
        anchors_xyxy: for each level `[A_l, 4]`, corners in pixels.
        size: `[2]`, height and width of the image without its padding; boxes are clipped to it.
        score_threshold: a pair needs a higher sigmoid score than this.
        pre_nms_top_k: at most so many pairs of a level are decoded.
        nms_iou: boxes of one class that overlap a better one by more are dropped ('linear': their score is lowered).
        max_detections: D.
        suppression: one of `SUPPRESSIONS`.
        soft_sigma: of 'gaussian'.

    Returns:
        `Detections` with D rows, float32 (float64 where logits and deltas are).

    Raises:
        ValueError: logits, deltas and anchors differ in the number of levels, or of anchors on a level; or a
            hyperparameter is out of range.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 4.1, 'Inference'.

    Example:
        >>> import jax.numpy as jnp
        >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0]])
        >>> found = postprocess(
        ...     [jnp.array([[0.0], [2.0]])], [jnp.zeros((2, 4))], [anchors], jnp.array([8, 8]), max_detections=2
        ... )
        >>> print(found.labels, found.boxes_xyxy[0])
        [ 0 -1] [0. 0. 4. 5.]
    """
    return suppress(
        candidates(
            class_logits,
            box_deltas,
            anchors_xyxy,
            size,
            score_threshold=score_threshold,
            pre_nms_top_k=pre_nms_top_k,
        ),
        nms_iou=nms_iou,
        max_detections=max_detections,
        suppression=suppression,
        soft_sigma=soft_sigma,
    )


def candidates(
    class_logits: Sequence[Array],
    box_deltas: Sequence[Array],
    anchors_xyxy: Sequence[Array],
    size: Array,
    *,
    score_threshold: float = 0.05,
    pre_nms_top_k: int = 1000,
) -> Candidates:
    """Returns the best (anchor, class) pairs of each level of one image, decoded.

    Args:
        class_logits: for each level `[A_l, K]`. NaN is no candidate.
        box_deltas: for each level `[A_l, 4]`.
        anchors_xyxy: for each level `[A_l, 4]`, corners in pixels.
        size: `[2]`, height and width of the image without its padding; boxes are clipped to it.
        score_threshold: a pair needs a higher sigmoid score than this; at least 0.
        pre_nms_top_k: at most so many pairs of a level; at least 1. Of equal logits those of lower index.

    Returns:
        `Candidates`: level by level, and in a level best first, `M = sum over levels of min(pre_nms_top_k, A_l K)`.

    Raises:
        ValueError: logits, deltas and anchors differ in the number of levels, or of anchors on a level; or a
            hyperparameter is out of range.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 4.1, 'Inference'.

    Example:
        >>> import jax.numpy as jnp
        >>> logits, deltas = jnp.array([[0.0, -9.0], [2.0, 1.0]]), jnp.zeros((2, 4))
        >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0]])
        >>> found = candidates([logits], [deltas], [anchors], jnp.array([8, 8]), pre_nms_top_k=2)
        >>> print(found.labels)
        [0 1]
        >>> print(found.boxes_xyxy)
        [[0. 0. 4. 5.]
         [0. 0. 4. 5.]]
    """
    _check_levels(class_logits, box_deltas, anchors_xyxy)
    if not 0.0 <= score_threshold <= 1.0:
        raise ValueError(f"score_threshold must be in [0, 1], got {score_threshold}")
    if pre_nms_top_k < 1:
        raise ValueError(f"pre_nms_top_k must be at least 1, got {pre_nms_top_k}")
    pair_logits, labels, boxes = [], [], []
    for logits, deltas, anchors in zip(class_logits, box_deltas, anchors_xyxy, strict=True):
        deltas, anchors = jnp.asarray(deltas), jnp.asarray(anchors)
        logits = jnp.asarray(logits)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        anchor, label = _best_pairs(jax.lax.stop_gradient(logits), pre_nms_top_k)
        pair_logits.append(logits[anchor, label])
        labels.append(label)
        boxes.append(clip_boxes(decode_boxes(deltas[anchor], anchors[anchor]), size))
    scores = jax.nn.sigmoid(jnp.concatenate(pair_logits))
    return Candidates(
        boxes_xyxy=jnp.concatenate(boxes),
        scores=jnp.where(scores > score_threshold, scores, 0.0),
        labels=jnp.concatenate(labels).astype(jnp.int32),
    )


def suppress(
    candidates: Candidates,
    *,
    nms_iou: float = 0.5,
    max_detections: int = 100,
    suppression: str = "hard",
    soft_sigma: float = 0.5,
) -> Detections:
    """Returns the detections of one image: what class-wise suppression leaves of its candidates.

    Args:
        candidates: of one image, in pixels of one frame.
        nms_iou: boxes of one class that overlap a better one by more are dropped ('linear': their score is lowered).
        max_detections: D.
        suppression: 'hard': `non_maximum_suppression`; 'linear': `linear_soft_nms`; 'gaussian': `gaussian_soft_nms`.
        soft_sigma: of 'gaussian'.

    Returns:
        `Detections` with D rows. The soft kinds lower scores, and keep those above the default of their `min_score`.

    Raises:
        ValueError: `suppression` is unknown, or a hyperparameter is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]])
        >>> found = suppress(Candidates(boxes, jnp.array([0.5, 0.75]), jnp.zeros(2, int)), max_detections=2)
        >>> print(found.scores)
        [0.75 0.  ]
    """
    boxes_scores_labels = candidates.boxes_xyxy, candidates.scores, candidates.labels
    if suppression == "hard":
        return non_maximum_suppression(*boxes_scores_labels, iou_threshold=nms_iou, max_detections=max_detections)
    if suppression == "linear":
        return linear_soft_nms(*boxes_scores_labels, iou_threshold=nms_iou, max_detections=max_detections)
    if suppression == "gaussian":
        return gaussian_soft_nms(*boxes_scores_labels, sigma=soft_sigma, max_detections=max_detections)
    raise ValueError(f"suppression must be one of {', '.join(SUPPRESSIONS)}, got {suppression!r}")


def _best_pairs(logits: Array, count: int) -> tuple[Array, Array]:
    """Returns anchor and class of the highest logits, best first, of equals the one of lower index first."""
    num_anchors, num_classes = logits.shape
    # top_k takes NaN for the highest, and -0.0 for less than 0.0.
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, jnp.where(logits == 0.0, 0.0, logits))
    # No anchor beyond the `count` best has one of the `count` best pairs. To choose those first is exact and halves the
    # time: the sort, which is most of the work, is of A rather than of A K numbers. In their old order, for the ties.
    _, anchors = jax.lax.top_k(jnp.max(logits, axis=1, initial=-jnp.inf), min(count, num_anchors))
    anchors = jnp.sort(anchors)
    _, pairs = jax.lax.top_k(logits[anchors].reshape(-1), min(count, num_anchors * num_classes))
    return anchors[pairs // num_classes], pairs % num_classes


def _check_levels(class_logits: Sequence[Array], box_deltas: Sequence[Array], anchors_xyxy: Sequence[Array]) -> None:
    # Checked because indexing clamps: anchors of another image size would give wrong boxes without an error.
    counts = [[level.shape[0] for level in levels] for levels in (class_logits, box_deltas, anchors_xyxy)]
    if not counts[0] == counts[1] == counts[2]:
        raise ValueError(
            f"anchors by level: {counts[0]} in class_logits, {counts[1]} in box_deltas, {counts[2]} in anchors_xyxy: "
            "they must be equal; make the anchors for the size of the padded image, with the model's levels"
        )


def softmax_log_odds(logits: Array) -> Array:
    """Returns the log odds of each class against the others and background, so that its sigmoid is the class's score.

    For a network trained with a softmax loss over the classes and background, whose logit is 0.

    Args:
        logits: `[..., K]`.

    Returns:
        `[..., K]`.

    Example:
        >>> print(jax.nn.sigmoid(softmax_log_odds(jnp.zeros(3))))  # of three classes and background
        [0.25 0.25 0.25]
    """
    with_background = jnp.concatenate([logits, jnp.zeros_like(logits[..., :1])], axis=-1)
    log_scores = jax.nn.log_softmax(with_background)[..., :-1]
    # The largest score below 1 in place of 1, whose odds are infinite.
    largest = 1.0 - jnp.finfo(log_scores.dtype).epsneg
    return log_scores - jnp.log1p(-jnp.minimum(jnp.exp(log_scores), largest))

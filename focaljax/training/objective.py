"""The objective: from the network's outputs and the anchors' targets to the loss that is minimised."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from focaljax import losses
from focaljax.detection import AnchorTargets, decode_boxes, encode_boxes

Array = jax.Array

# (logits [K], label []) -> loss []; for one anchor.
ClassificationLoss = Callable[[Array, Array], Array]
# (deltas [4], box_xyxy [4], anchor_xyxy [4]) -> loss []; for one anchor.
BoxLoss = Callable[[Array, Array, Array], Array]

CLASSIFICATION_LOSSES = ("focal", "balanced_cross_entropy", "cross_entropy")
# Of the deltas, then of the decoded box.
BOX_LOSSES = ("smooth_l1", "l1", "iou", "giou", "diou", "ciou")
NORMALIZERS = ("image", "batch", "ema")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DetectionLoss:
    """A batch's loss and its parts; every field is a scalar.

    Attributes:
        total: what is minimised, `classification + box_weight * box`.
        classification: the normalised classification loss.
        box: the normalised box loss, without its weight.
        positives: mean number of assigned anchors per image.
    """

    total: Array
    classification: Array
    box: Array
    positives: Array


def make_classification_loss(name: str, *, alpha: float = 0.25, gamma: float = 2.0) -> ClassificationLoss:
    """Returns the classification loss of one anchor.

    Args:
        name: 'focal', 'balanced_cross_entropy' (gamma does not count) or 'cross_entropy' (neither alpha nor gamma).
        alpha: weight of the labelled class.
        gamma: focusing parameter.

    Returns:
        A function of (logits `[K]`, label `[]`), see `sigmoid_focal_loss_with_integer_labels`.

    Raises:
        ValueError: `name` is unknown.
    """
    focal = losses.sigmoid_focal_loss_with_integer_labels
    if name == "focal":
        return functools.partial(focal, alpha=alpha, gamma=gamma)
    if name == "balanced_cross_entropy":
        return functools.partial(focal, alpha=alpha, gamma=0.0)
    if name == "cross_entropy":
        return functools.partial(focal, alpha=None, gamma=0.0)
    raise ValueError(f"classification loss must be one of {', '.join(CLASSIFICATION_LOSSES)}, got {name!r}")


def make_box_loss(name: str, *, beta: float = 0.1) -> BoxLoss:
    """Returns the box loss of one anchor, a function of (deltas `[4]`, box `[4]`, anchor `[4]`) with one value.

    Args:
        name: 'smooth_l1' or 'l1': of the deltas against those that make the box of the anchor, summed over the four
            (the paper and torchvision v1). 'iou', 'giou', 'diou' or 'ciou': of the box that the deltas make of the
            anchor against the box, in pixels ('giou': torchvision v2).
        beta: width of smooth L1's quadratic part; the others have none.

    Returns:
        A function of the anchor's deltas (see `encode_boxes`), the box that it is assigned to and the anchor, both
        corners in pixels; float32, or float64 if one of them is.

    Raises:
        ValueError: `name` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> anchor = jnp.array([0.0, 0.0, 4.0, 4.0])
        >>> box = jnp.array([2.0, 0.0, 6.0, 4.0])  # half an anchor to the right
        >>> print(make_box_loss("l1")(jnp.zeros(4), box, anchor), make_box_loss("iou")(jnp.zeros(4), box, anchor))
        0.5 0.6666666
    """
    if name == "smooth_l1":
        return _loss_of_deltas(functools.partial(losses.smooth_l1, beta=beta))
    if name == "l1":
        return _loss_of_deltas(losses.l1)
    if name in BOX_LOSSES:
        return _loss_of_box(getattr(losses, f"{name}_loss"))
    raise ValueError(f"box loss must be one of {', '.join(BOX_LOSSES)}, got {name!r}")


def detection_loss(
    class_logits: Array,
    box_deltas: Array,
    anchors_xyxy: Array,
    targets: AnchorTargets,
    *,
    classification_loss: ClassificationLoss,
    box_loss: BoxLoss,
    box_weight: float = 1.0,
    normalizer: str = "image",
    num_positives: Array | None = None,
) -> DetectionLoss:
    """Returns the loss of a batch: classification of all anchors plus boxes of the assigned ones.

    The losses of one anchor are vmapped over the anchors of an image and over the images.

    Args:
        class_logits: `[B, A, K]`.
        box_deltas: `[B, A, 4]`.
        anchors_xyxy: `[A, 4]`, corners in pixels.
        targets: of the batch, `labels` `[B, A]` and `boxes_xyxy` `[B, A, 4]`.
        classification_loss: for one anchor, see `make_classification_loss`.
        box_loss: for one anchor, see `make_box_loss`. Of an anchor that is not assigned, neither deltas nor box count,
            whatever their values.
        box_weight: factor on the box loss.
        normalizer: 'image': each image's sum over its anchors divided by its number of assigned anchors (at least 1),
            then the mean over images (the paper; torchvision). 'batch': the sum over the batch divided by the number
            of assigned anchors of the batch. 'ema': that sum divided by `num_positives`, which the caller averages over
            the steps (detectron2; `focaljax.losses.ema_normalizer`). Over several devices all are those of the global
            batch.
        num_positives: scalar, divides in place of the batch's number under 'batch', where these images are a part of a
            batch: the whole batch's number divided by the number of parts makes the mean over the parts that of the
            whole; likewise under 'ema'. Not used under 'image'.

    Returns:
        `DetectionLoss`.

    Raises:
        ValueError: `normalizer` is unknown, or 'ema' without `num_positives`.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 4.1, 'Focal Loss'.
    """
    per_anchor = jax.vmap(jax.vmap(classification_loss))(class_logits, targets.labels)
    is_positive = targets.is_positive
    # Unassigned anchors are met exactly, before the loss: theirs may be infinite, and 0 * inf is NaN.
    box_deltas = jnp.where(is_positive[..., None], box_deltas, 0.0)
    boxes_xyxy = jnp.where(is_positive[..., None], targets.boxes_xyxy, anchors_xyxy)
    per_box = jax.vmap(jax.vmap(box_loss), in_axes=(0, 0, None))(box_deltas, boxes_xyxy, anchors_xyxy)
    if normalizer == "image":
        reduce = jax.vmap(losses.mean_over_positives)
    elif normalizer == "batch" and num_positives is None:
        reduce = losses.global_mean_over_positives
    elif normalizer in ("batch", "ema"):
        if num_positives is None:
            raise ValueError("the normalizer 'ema' divides by num_positives, which is None: see ema_normalizer")
        reduce = functools.partial(_sum_divided, divisor=num_positives)
    else:
        raise ValueError(f"normalizer must be one of {', '.join(NORMALIZERS)}, got {normalizer!r}")
    classification = reduce(per_anchor, is_positive, targets.is_ignored).mean()
    box = reduce(per_box, is_positive, ~is_positive).mean()
    return DetectionLoss(
        total=classification + box_weight * box,
        classification=classification,
        box=box,
        positives=is_positive.sum(axis=-1).astype(jnp.float32).mean(),
    )


def _sum_divided(loss: Array, is_positive: Array, is_ignored: Array, *, divisor: Array) -> Array:
    return jnp.sum(jnp.where(is_ignored, 0.0, loss)) / divisor


def _loss_of_deltas(loss: Callable[[Array, Array], Array]) -> BoxLoss:
    def loss_of_anchor(deltas: Array, box_xyxy: Array, anchor_xyxy: Array) -> Array:
        return loss(deltas, encode_boxes(box_xyxy, anchor_xyxy)).sum()

    return loss_of_anchor


def _loss_of_box(loss: Callable[[Array, Array], Array]) -> BoxLoss:
    def loss_of_anchor(deltas: Array, box_xyxy: Array, anchor_xyxy: Array) -> Array:
        return loss(decode_boxes(deltas, anchor_xyxy), box_xyxy)

    return loss_of_anchor

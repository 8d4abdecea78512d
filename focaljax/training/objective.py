"""The objective: from the network's outputs and the anchors' targets to the loss that is minimised."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from focaljax import losses
from focaljax.detection import AnchorTargets, decode_boxes, encode_boxes
from focaljax.training.classification import ClassificationLoss, Mining, ghm_counts_after

Array = jax.Array

# (deltas [4], box_xyxy [4], anchor_xyxy [4]) -> loss []; for one anchor.
BoxLoss = Callable[[Array, Array, Array], Array]

# Of the deltas, then of the decoded box.
BOX_LOSSES = ("smooth_l1", "l1", "iou", "giou", "diou", "ciou")
NORMALIZERS = ("image", "batch", "ema", "none")
# What the classification loss is divided by.
DIVISORS = ("positives", "kept", "outputs")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DetectionLoss:
    """A batch's loss and its parts; scalars but for the counts.

    Attributes:
        total: what is minimised, `classification + box_weight * box`.
        classification: the normalised classification loss.
        classification_of_positives: the part of it that assigned anchors have.
        box: the normalised box loss, without its weight.
        positives: mean number of assigned anchors per image.
        ghm_counts: the moving average with this batch; None without one.
    """

    total: Array
    classification: Array
    classification_of_positives: Array
    box: Array
    positives: Array
    ghm_counts: Array | None = None


def make_box_loss(name: str, *, beta: float = 0.11) -> BoxLoss:
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
    mining: Mining | None = None,
    divisor: str = "positives",
    ghm_counts: Array | None = None,
    ghm_momentum: float = 0.75,
) -> DetectionLoss:
    """Returns the loss of a batch: classification of all anchors plus boxes of the assigned ones.

    Args:
        class_logits: `[B, A, K]`.
        box_deltas: `[B, A, 4]`.
        anchors_xyxy: `[A, 4]`, corners in pixels.
        targets: of the batch, `labels` `[B, A]` and `boxes_xyxy` `[B, A, 4]`.
        classification_loss: for all anchors, see `make_classification_loss`.
        box_loss: for one anchor, see `make_box_loss`. Of an anchor that is not assigned, neither deltas nor box count,
            whatever their values.
        box_weight: factor on the box loss.
        normalizer: 'image': each image's sum over its anchors divided by its number of assigned anchors (at least 1),
            then the mean over images (the paper; torchvision). 'batch': the sum over the batch divided by the number
            of assigned anchors of the batch. 'ema': that sum divided by `num_positives`, which the caller averages over
            the steps (detectron2; `focaljax.losses.ema_normalizer`). 'none': each image's sum, then the mean over
            images. Over several devices all are those of the global batch.
        num_positives: scalar, divides in place of the batch's number under 'batch', where these images are a part of a
            batch: the whole batch's number divided by the number of parts makes the mean over the parts that of the
            whole; likewise under 'ema'. Not used under 'image' and 'none'.
        mining: chooses the anchors of an image that count for the classification, see `make_mining`; None: all. Boxes
            are those of all assigned anchors either way.
        divisor: of the classification loss. 'positives': as `normalizer` says (SSD too). 'kept': each image's sum is
            divided by the anchors that mining has kept (OHEM). 'outputs': by the anchors that count times the
            classes, over the images given (GHM).
        ghm_counts: `[bins]`, for GHM alone: the moving average of its counts before this batch. None: its weights are
            those of this batch.
        ghm_momentum: weight of the past in that average, in [0, 1).

    Returns:
        `DetectionLoss`.

    Raises:
        ValueError: `normalizer` or `divisor` is unknown, 'ema' without `num_positives`, or a momentum out of range.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 4.1, 'Focal Loss'.
    """
    is_positive, is_ignored = targets.is_positive, targets.is_ignored
    # Unassigned anchors are met exactly, before the loss: theirs may be infinite, and 0 * inf is NaN.
    box_deltas = jnp.where(is_positive[..., None], box_deltas, 0.0)
    boxes_xyxy = jnp.where(is_positive[..., None], targets.boxes_xyxy, anchors_xyxy)
    per_box = jax.vmap(jax.vmap(box_loss), in_axes=(0, 0, None))(box_deltas, boxes_xyxy, anchors_xyxy)
    if ghm_counts is not None:
        ghm_counts = ghm_counts_after(ghm_counts, class_logits, targets.labels, momentum=ghm_momentum)
        classification_loss = functools.partial(classification_loss, counts=ghm_counts)
    per_anchor = classification_loss(class_logits, targets.labels, _qualities(box_deltas, boxes_xyxy, anchors_xyxy))
    is_kept = ~is_ignored
    if mining is not None:
        weights = jax.vmap(mining, in_axes=(0, None, 0, 0))(per_anchor, anchors_xyxy, is_positive, is_ignored)
        is_kept = weights > 0.0
    if normalizer == "image":
        reduce = jax.vmap(losses.mean_over_positives)
    elif normalizer == "batch" and num_positives is None:
        reduce = losses.global_mean_over_positives
    elif normalizer in ("batch", "ema"):
        if num_positives is None:
            raise ValueError("the normalizer 'ema' divides by num_positives, which is None: see ema_normalizer")
        reduce = functools.partial(_sum_divided, divisor=num_positives)
    elif normalizer == "none":
        reduce = functools.partial(_sum_divided, divisor=jnp.float32(len(class_logits)))
    else:
        raise ValueError(f"normalizer must be one of {', '.join(NORMALIZERS)}, got {normalizer!r}")
    if divisor == "positives":
        of_anchors = lambda loss: reduce(jnp.where(is_kept, loss, 0.0), is_positive, is_ignored).mean()  # noqa: E731
    elif divisor == "kept":
        of_anchors = lambda loss: jax.vmap(losses.mean_over_positives)(loss, is_kept, ~is_kept).mean()  # noqa: E731
    elif divisor == "outputs":
        outputs = class_logits.shape[-1] * jnp.maximum(is_kept.sum(), 1)
        of_anchors = lambda loss: _sum_divided(loss, is_positive, ~is_kept, divisor=outputs)  # noqa: E731
    else:
        raise ValueError(f"divisor must be one of {', '.join(DIVISORS)}, got {divisor!r}")
    classification = of_anchors(per_anchor)
    box = reduce(per_box, is_positive, ~is_positive).mean()
    return DetectionLoss(
        total=classification + box_weight * box,
        classification=classification,
        classification_of_positives=of_anchors(jnp.where(is_positive, jax.lax.stop_gradient(per_anchor), 0.0)),
        box=box,
        positives=is_positive.sum(axis=-1).astype(jnp.float32).mean(),
        ghm_counts=ghm_counts,
    )


def _sum_divided(loss: Array, is_positive: Array, is_ignored: Array, *, divisor: Array) -> Array:
    return jnp.sum(jnp.where(is_ignored, 0.0, loss)) / divisor


def _qualities(box_deltas: Array, boxes_xyxy: Array, anchors_xyxy: Array) -> Array:
    """Returns the IoU of the predicted boxes with those of the targets, `[B, A]`, without gradient."""
    decode = jax.vmap(jax.vmap(decode_boxes), in_axes=(0, None))
    predicted = decode(jax.lax.stop_gradient(box_deltas), anchors_xyxy)
    return jnp.clip(1.0 - losses.iou_loss(predicted, boxes_xyxy), 0.0, 1.0)


def _loss_of_deltas(loss: Callable[[Array, Array], Array]) -> BoxLoss:
    def loss_of_anchor(deltas: Array, box_xyxy: Array, anchor_xyxy: Array) -> Array:
        return loss(deltas, encode_boxes(box_xyxy, anchor_xyxy)).sum()

    return loss_of_anchor


def _loss_of_box(loss: Callable[[Array, Array], Array]) -> BoxLoss:
    def loss_of_anchor(deltas: Array, box_xyxy: Array, anchor_xyxy: Array) -> Array:
        return loss(decode_boxes(deltas, anchor_xyxy), box_xyxy)

    return loss_of_anchor

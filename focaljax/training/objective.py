"""The objective: from the network's outputs and the anchors' targets to the loss that is minimised."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from focaljax import losses
from focaljax.detection import AnchorTargets, encode_boxes

Array = jax.Array

# (logits [K], label []) -> loss []; for one anchor.
ClassificationLoss = Callable[[Array, Array], Array]
# (deltas [4], target deltas [4]) -> loss [4]; for one anchor.
BoxLoss = Callable[[Array, Array], Array]

CLASSIFICATION_LOSSES = ("focal", "balanced_cross_entropy", "cross_entropy")
BOX_LOSSES = ("smooth_l1", "l1")
NORMALIZERS = ("image", "batch")


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
    """Returns the box loss of one anchor, a function of (deltas `[4]`, target deltas `[4]`) with a value for each.

    Args:
        name: 'smooth_l1' or 'l1'.
        beta: width of smooth L1's quadratic part.

    Raises:
        ValueError: `name` is unknown.
    """
    if name == "smooth_l1":
        return functools.partial(losses.smooth_l1, beta=beta)
    if name == "l1":
        return losses.l1
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
) -> DetectionLoss:
    """Returns the loss of a batch: classification of all anchors plus boxes of the assigned ones.

    The losses of one anchor are vmapped over the anchors of an image and over the images.

    Args:
        class_logits: `[B, A, K]`.
        box_deltas: `[B, A, 4]`.
        anchors_xyxy: `[A, 4]`, corners in pixels.
        targets: of the batch, `labels` `[B, A]` and `boxes_xyxy` `[B, A, 4]`.
        classification_loss: for one anchor, see `make_classification_loss`.
        box_loss: for one anchor, see `make_box_loss`; its four values are summed.
        box_weight: factor on the box loss.
        normalizer: 'image': each image's sum over its anchors divided by its number of assigned anchors (at least 1),
            then the mean over images (the paper; torchvision). 'batch': the sum over the batch divided by the number
            of assigned anchors of the batch. Over several devices both are those of the global batch.

    Returns:
        `DetectionLoss`.

    Raises:
        ValueError: `normalizer` is unknown.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 4.1, 'Focal Loss'.
    """
    per_anchor = jax.vmap(jax.vmap(classification_loss))(class_logits, targets.labels)
    target_deltas = jax.vmap(encode_boxes, in_axes=(0, None))(targets.boxes_xyxy, anchors_xyxy)
    # The deltas of unassigned anchors are replaced before the loss: theirs may be infinite, and 0 * inf is NaN.
    is_positive = targets.is_positive
    target_deltas = jnp.where(is_positive[..., None], target_deltas, box_deltas)
    per_box = jax.vmap(jax.vmap(box_loss))(box_deltas, target_deltas).sum(axis=-1)
    if normalizer == "image":
        reduce = jax.vmap(losses.mean_over_positives)
    elif normalizer == "batch":
        reduce = losses.global_mean_over_positives
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

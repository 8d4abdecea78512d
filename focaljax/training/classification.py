"""Classification losses by name: from a batch's logits and labels to one value an anchor, and which anchors count."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from focaljax import losses
from focaljax.losses import BACKGROUND, IGNORED

Array = jax.Array

# (logits [B, A, K], labels [B, A], quality [B, A]) -> loss [B, A]. The quality of an assigned anchor is the IoU of the
# box that is predicted at it with its object; it is not looked at elsewhere. That of GHM may also have `counts` [bins].
ClassificationLoss = Callable[..., Array]
# (loss [A], anchors_xyxy [A, 4], is_positive [A], is_ignored [A]) -> weights 0 or 1 [A]; for one image.
Mining = Callable[[Array, Array, Array, Array], Array]

CLASSIFICATION_LOSSES = (
    "focal", "balanced_cross_entropy", "cross_entropy", "focal_star", "poly1_focal", "quality_focal", "varifocal",
    "ghm", "softmax_focal", "softmax_cross_entropy",
)  # fmt: skip
MININGS = ("hard_negatives", "ohem")


def is_softmax(name: str) -> bool:
    """Whether a classification loss decides between the classes and background, instead of each class for itself."""
    return name.startswith("softmax_")


def make_classification_loss(
    name: str,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    star_beta: float = 1.0,
    poly_epsilon: float = 1.0,
    ghm_bins: int = 30,
) -> ClassificationLoss:
    """Returns the classification loss of a batch; but for 'ghm' it is that of one anchor, vmapped over all anchors.

    Args:
        name: sigmoid losses, each class for itself, summed over the classes:
            'focal'; 'balanced_cross_entropy' (gamma does not count); 'cross_entropy' (neither alpha nor gamma);
            'focal_star', FL* (gamma, star_beta, alpha); 'poly1_focal' (poly_epsilon, gamma; alpha weights it as a
            whole, so that an epsilon of -1 takes the first term of the series out, whatever alpha is);
            'quality_focal' (gamma is its beta) and 'varifocal' (alpha, gamma), whose labels are the qualities;
            'ghm', whose weights depend on the whole batch (ghm_bins), or on an average over batches: its function
            also takes `counts`, see `ghm_counts_after`.
            Softmax losses over the classes and background, whose logit is 0: 'softmax_focal' (alpha weights the
            classes, 1 - alpha background; gamma) and 'softmax_cross_entropy'.
        alpha: weight of the labelled class.
        gamma: focusing parameter.
        star_beta: shift of FL*.
        poly_epsilon: of the first coefficient.
        ghm_bins: parts of the gradient's range.

    Returns:
        A function of (logits `[B, A, K]`, labels `[B, A]` with `BACKGROUND` and `IGNORED`, quality `[B, A]` in [0, 1]),
        which gives `[B, A]`; 0 for ignored anchors.

    Raises:
        ValueError: `name` is unknown; from the function, at its first call: a parameter is out of range.

    Source: see the functions of `focaljax.losses`.
    """
    if name not in CLASSIFICATION_LOSSES:
        raise ValueError(f"classification loss must be one of {', '.join(CLASSIFICATION_LOSSES)}, got {name!r}")
    if name == "ghm":
        return functools.partial(_ghm, bins=ghm_bins)
    focal = losses.sigmoid_focal_loss_with_integer_labels
    of_anchor: dict[str, Callable[[Array, Array, Array], Array]] = {
        "focal": lambda x, label, _: focal(x, label, alpha=alpha, gamma=gamma),
        "balanced_cross_entropy": lambda x, label, _: focal(x, label, alpha=alpha, gamma=0.0),
        "cross_entropy": lambda x, label, _: focal(x, label, alpha=None, gamma=0.0),
        "focal_star": _of_labels(losses.focal_loss_star, gamma=gamma, beta=star_beta, alpha=alpha),
        "poly1_focal": _of_labels(_balanced_poly1, epsilon=poly_epsilon, alpha=alpha, gamma=gamma),
        "quality_focal": _of_qualities(losses.quality_focal_loss, beta=gamma),
        "varifocal": _of_qualities(losses.varifocal_loss, alpha=alpha, gamma=gamma),
        "softmax_focal": functools.partial(_softmax, alpha=alpha, gamma=gamma),
        "softmax_cross_entropy": functools.partial(_softmax, alpha=None, gamma=0.0),
    }
    return jax.vmap(jax.vmap(of_anchor[name]))


def ghm_counts_after(counts: Array, logits: Array, labels: Array, *, momentum: float) -> Array:
    """Returns the moving average of GHM's counts, `[ghm_bins]`, with a batch: `momentum` is the weight of the past.

    Raises:
        ValueError: momentum is not in [0, 1).

    Source: Li et al. 2019 (arXiv 1811.05181), 'EMA'; 0.75 in the authors' configs.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"ghm_momentum must be in [0, 1), got {momentum}: 1 would never take a batch into account")
    of_batch = losses.ghm_counts(*_as_elements(logits, labels), bins=len(counts), is_ignored=labels == IGNORED)
    return momentum * counts + (1.0 - momentum) * of_batch


def make_mining(
    name: str, *, negatives_per_positive: int = 3, size: int = 512, iou_threshold: float = 0.7
) -> Mining | None:
    """Returns what chooses the anchors of an image that count for the classification, by their loss; None: all do.

    Args:
        name: '': none. 'hard_negatives': the positives and for each so many negatives (SSD). 'ohem': the `size` anchors
            of highest loss that are left after non-maximum suppression.
        negatives_per_positive: of 'hard_negatives'; of 'ohem' too, where 0 is no ratio.
        size: of 'ohem'.
        iou_threshold: of the suppression of 'ohem'.

    Raises:
        ValueError: `name` is unknown; from the function, at its first call: a parameter is out of range.
    """
    if not name:
        return None
    if name == "hard_negatives":
        return lambda loss, _, is_positive, is_ignored: losses.hard_negative_mask(
            loss, is_positive, is_ignored, negatives_per_positive=negatives_per_positive
        )
    if name == "ohem":
        return lambda loss, anchors_xyxy, is_positive, is_ignored: losses.ohem_mask(
            loss,
            anchors_xyxy,
            size=size,
            iou_threshold=iou_threshold,
            is_positive=is_positive,
            is_ignored=is_ignored,
            negatives_per_positive=negatives_per_positive or None,
        )
    raise ValueError(f"mining must be '' or one of {', '.join(MININGS)}, got {name!r}")


def _of_labels(loss: Callable[..., Array], **parameters: float) -> Callable[[Array, Array, Array], Array]:
    def of_anchor(logits: Array, label: Array, quality: Array) -> Array:
        del quality
        return _sum_of(loss, logits, label, 1.0, parameters)

    return of_anchor


def _balanced_poly1(logits: Array, labels: Array, *, epsilon: float, alpha: float, gamma: float) -> Array:
    # With alpha on the focal loss alone, an epsilon below -alpha or alpha - 1 rewards what is wrong.
    weights = labels * alpha + (1.0 - labels) * (1.0 - alpha)
    # The inner choice keeps the infinite gradient of an infinite logit away from a weight of 0.
    logits = jnp.where(weights == 0.0, 0.0, logits)
    return weights * losses.poly1_focal_loss(logits, labels, epsilon=epsilon, gamma=gamma)


def _of_qualities(loss: Callable[..., Array], **parameters: float) -> Callable[[Array, Array, Array], Array]:
    def of_anchor(logits: Array, label: Array, quality: Array) -> Array:
        return _sum_of(loss, logits, label, quality, parameters)

    return of_anchor


def _sum_of(
    loss: Callable[..., Array], logits: Array, label: Array, quality: Array | float, parameters: dict[str, float]
) -> Array:
    """Returns the sum over the classes of an anchor, whose true class has the quality as its label."""
    is_ignored = label == IGNORED
    # Replaced before the loss: 0 times the infinite gradient of an infinite logit is NaN.
    logits = jnp.where(is_ignored, 0.0, logits)
    labels = quality * jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    return jnp.where(is_ignored, 0.0, loss(logits, labels, **parameters).sum())


def _softmax(logits: Array, label: Array, quality: Array, *, alpha: float | None, gamma: float) -> Array:
    del quality
    K = logits.shape[-1]
    weights = None if alpha is None else np.where(np.arange(K + 1) < K, alpha, 1.0 - alpha)
    label = jnp.where(label == BACKGROUND, K, label)
    return losses.softmax_focal_loss_with_integer_labels(_with_background(logits), label, alpha=weights, gamma=gamma)


def _with_background(logits: Array) -> Array:
    return jnp.concatenate([logits, jnp.zeros_like(logits[..., :1])], axis=-1)


def _ghm(logits: Array, labels: Array, quality: Array, *, bins: int, counts: Array | None = None) -> Array:
    del quality
    elements = _as_elements(logits, labels)
    return losses.ghm_classification_loss(*elements, bins=bins, is_ignored=labels == IGNORED, counts=counts).sum(
        axis=-1
    )


def _as_elements(logits: Array, labels: Array) -> tuple[Array, Array]:
    return logits, jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)

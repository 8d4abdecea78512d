"""Softmax losses: one decision among K classes, background a class among them where there is one.

The focal loss of class c is that of one sigmoid at the log odds of c, which is how it is computed, because log odds
keep their digits where p_c is close to 0 or to 1: `log(p_c / (1 - p_c)) = x_c - log sum_{j != c} exp(x_j)`.
"""

import jax
import jax.numpy as jnp

from focaljax.losses.checks import as_class_ids, as_labels, as_loss_dtype, check_alpha, check_at_least_0
from focaljax.losses.numerics import Hyperparameter, as_array, as_hyperparameter
from focaljax.losses.sigmoid import IGNORED, focal

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Returns the cross entropy with the softmax of the logits, `-sum_k labels_k log(p_k)`.

    It is the softmax focal loss with gamma = 0 and without alpha. For class ids call
    `softmax_focal_loss_with_integer_labels` with gamma = 0.

    Args:
        logits: floating `[..., K]`.
        labels: as `softmax_focal_loss`.

    Returns:
        `[...]`, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError, ValueError: as `softmax_focal_loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(f"{softmax_cross_entropy(jnp.zeros(4), jnp.array([0.0, 1.0, 0.0, 0.0])):.6f}")
        1.386294
    """
    return softmax_focal_loss(logits, labels, alpha=None, gamma=0.0)


def softmax_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    """Returns the focal loss over a softmax, `-sum_k labels_k alpha_k (1 - p_k)^gamma log(p_k)`.

    With p = softmax(logits) over the last axis. With gamma = 0 it is the cross entropy.

    Args:
        logits: floating `[..., K]`; a background class, if there is one, is one of the K.
        labels: in [0, 1], of a shape that broadcasts to that of `logits`; each row a distribution over the classes,
            one-hot or soft.
        alpha: weight of a class, at least 0: None, a number for all, or one per class `[K]`. Unlike the sigmoid loss's
            it does not weight the other classes with 1 - alpha.
        gamma: focusing parameter, at least 0.

    Returns:
        `[...]`, one value per row, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError: the logits are not floating point, or a hyperparameter is no number.
        ValueError: gamma, alpha or labels have a known value out of range, alpha is not one per class, `labels` would
            enlarge `logits` when broadcast, or has the shape of class ids.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 3, footnote 'Extending the focal loss to the multi-class case'.

    Example:
        >>> import jax.numpy as jnp
        >>> print(softmax_focal_loss(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])).round(6))  # log(2) / 4
        [0.173287]
    """
    logits = as_loss_dtype(logits)
    _check_class_axis(logits)
    labels = as_labels(labels, logits, for_class_ids="softmax_focal_loss_with_integer_labels")
    check_at_least_0("gamma", gamma)
    check_alpha(alpha, logits.shape[-1], at_most=float("inf"))
    return _softmax_focal(logits, labels, as_array(alpha, logits.dtype), as_hyperparameter(gamma, logits.dtype))


def softmax_focal_loss_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    """Returns the focal loss over a softmax of the labelled class c, `-alpha_c (1 - p_c)^gamma log(p_c)`.

    Args:
        logits: floating `[..., K]`; a background class, if there is one, is one of the K.
        labels: integer `[...]`: a class in 0..K-1, or `IGNORED` (loss 0, no gradient, whatever the logits). For
            `BACKGROUND` take one of the classes: `jnp.where(labels == BACKGROUND, K - 1, labels)` makes it the last.
            Where labels are traced, an id out of range is ignored.
        alpha: weight of a class, at least 0: None, a number for all, or one per class `[K]`.
        gamma: focusing parameter, at least 0.

    Returns:
        `[...]`, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError: the logits are not floating point, the labels not integers, or a hyperparameter is no number.
        ValueError: gamma, alpha or a class id has a known value out of range, alpha is not one per class, or `labels`
            is not one class id a row.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> print(softmax_focal_loss_with_integer_labels(jnp.zeros((2, 2)), jnp.array([1, IGNORED])).round(6))
        [0.173287 0.      ]
    """
    logits = as_loss_dtype(logits)
    _check_class_axis(logits)
    labels = as_class_ids(labels, logits, special={"IGNORED": IGNORED})
    check_at_least_0("gamma", gamma)
    check_alpha(alpha, logits.shape[-1], at_most=float("inf"))
    return _softmax_focal_of_class_ids(
        logits, labels, as_array(alpha, logits.dtype), as_hyperparameter(gamma, logits.dtype)
    )


def _check_class_axis(logits: Array) -> None:
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(f"logits has shape {logits.shape}, expected (..., K): one score for each of K >= 1 classes")


@jax.jit
def _softmax_focal(logits: Array, labels: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    per_class = focal(_log_odds(logits), jnp.ones((), logits.dtype), None, gamma)
    weights = labels if alpha is None else labels * alpha
    return jnp.where(weights > 0.0, weights * per_class, 0.0).sum(axis=-1)


@jax.jit
def _softmax_focal_of_class_ids(logits: Array, labels: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    is_class = labels[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
    is_counted = is_class.any(axis=-1)
    # Replaced before the loss: 0 times the infinite gradient of an infinite logit is NaN.
    logits = jnp.where(is_counted[..., None], logits, 0.0)
    log_odds = _log_odds_of_one(logits, is_class)
    loss = focal(log_odds, jnp.ones((), logits.dtype), None, gamma)
    if alpha is not None:
        weight = jnp.where(is_class, alpha, 0.0).sum(axis=-1)
        loss = jnp.where(weight > 0.0, weight * loss, 0.0)
    return jnp.where(is_counted, loss, 0.0)


@jax.custom_jvp
def _log_odds(logits: Array) -> Array:
    """Returns `log(p_k / (1 - p_k))` of every class `[..., K]`."""
    is_top = _is_top(logits)
    # Relative to the largest, so that the sum is at least 1; at the largest itself 0, also if it is infinite.
    shifted = _difference(logits, logits.max(axis=-1, keepdims=True))
    powers = jnp.exp(shifted)
    # Without the power of a class that is not the largest the sum keeps at least half of its value and all its digits.
    others = shifted - jnp.log(jnp.where(is_top, 1.0, powers.sum(axis=-1, keepdims=True) - powers))
    return jnp.where(is_top, _log_odds_of_one(logits, is_top)[..., None], others)


@_log_odds.defjvp
def _log_odds_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (logits,), (tangent,) = primals, tangents
    is_top = _is_top(logits)
    others = _softmax_among(logits, ~is_top)
    probabilities = _softmax_among(logits, jnp.ones_like(is_top))
    rest = (probabilities * tangent).sum(axis=-1, keepdims=True) - probabilities * tangent
    mean_of_others = jnp.where(
        is_top,
        (others * tangent).sum(axis=-1, keepdims=True),
        rest / jnp.where(is_top, 1.0, 1.0 - probabilities),
    )
    return _log_odds(logits), tangent - mean_of_others


@jax.custom_jvp
def _log_odds_of_one(logits: Array, is_one: Array) -> Array:
    """Returns `log(p_c / (1 - p_c))` `[...]` of the class c where `is_one` `[..., K]` is true; infinite if K = 1."""
    top = jnp.where(is_one, -jnp.inf, logits).max(axis=-1, keepdims=True)
    powers = jnp.where(is_one, 0.0, jnp.exp(jnp.where(is_one, 0.0, _difference(logits, top))))
    one = jnp.where(is_one, logits, 0.0).sum(axis=-1)
    has_others = logits.shape[-1] > 1
    log_of_others = jnp.log(powers.sum(axis=-1)) if has_others else 0.0
    return _difference(one, top[..., 0]) - log_of_others


@_log_odds_of_one.defjvp
def _log_odds_of_one_rule(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (logits, is_one), (tangent, _) = primals, tangents
    others = _softmax_among(logits, ~is_one)
    weights = jnp.where(is_one, 1.0, -others)
    return _log_odds_of_one(logits, is_one), (weights * tangent).sum(axis=-1)


@jax.custom_jvp
def _softmax_among(logits: Array, is_among: Array) -> Array:
    """Returns the softmax over the classes where `is_among` is true, 0 elsewhere; infinite logits share equally."""
    top = jnp.where(is_among, logits, -jnp.inf).max(axis=-1, keepdims=True)
    powers = jnp.where(is_among, jnp.exp(jnp.where(is_among, _difference(logits, top), 0.0)), 0.0)
    total = powers.sum(axis=-1, keepdims=True)
    return powers / jnp.maximum(total, 1.0)


@_softmax_among.defjvp
def _softmax_among_rule(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    softmax = _softmax_among(*primals)
    return softmax, softmax * (tangents[0] - (softmax * tangents[0]).sum(axis=-1, keepdims=True))


def _is_top(logits: Array) -> Array:
    """Returns which class is the first of those with the largest logit, bool `[..., K]`."""
    return logits.argmax(axis=-1)[..., None] == jnp.arange(logits.shape[-1])


def _difference(a: Array, b: Array) -> Array:
    """Returns a - b, and 0 where both are the same infinity."""
    return jnp.where(a == b, 0.0, a - jnp.where(a == b, 0.0, b))

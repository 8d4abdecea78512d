"""Sigmoid losses: independent binary decisions on logits, in log space, with derivatives in closed form.

With p = sigmoid(x) and label y in [0, 1] the focal loss of one logit x is `alpha_t q^gamma C`, where
`q = y (1 - p) + (1 - y) p` is the probability missed (1 - p_t) and `C = -y log(p) - (1 - y) log(1 - p)`. Everything
here is written in `odds = exp(-|x|)`, at most 1, and `miss`, the share of the label on the side that the logit speaks
against; so nothing overflows, and no difference from 1 is taken:

    q = (miss + (1 - miss) odds) / (1 + odds),   C = miss |x| + log(1 + odds).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from focaljax.losses.checks import as_class_ids, as_labels, as_loss_dtype, check_alpha, check_at_least_0, check_fraction
from focaljax.losses.numerics import (
    Hyperparameter,
    as_array,
    as_hyperparameter,
    is_known_zero,
    log1p_of_odds,
    power,
    value_of,
)

# States of an anchor that has no class. They are labels, so that one integer array says everything about an anchor.
BACKGROUND = -1
IGNORED = -2

# A logit at which the loss of label 0 and all its derivatives are exactly 0, in float64 too.
_SURELY_BACKGROUND = -1000.0
# Above every loss that is multiplied by something other than 0 in a derivative; infinity times 0 would be NaN.
_LOSS_CAP = 1e4

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def sigmoid_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Returns the binary cross entropy of each element, `-labels log(p) - (1 - labels) log(1 - p)`.

    With p = sigmoid(logits). It is the focal loss with gamma = 0 and without alpha.

    Args:
        logits: floating, any shape.
        labels: in [0, 1], hard or soft, of a shape that broadcasts to that of `logits`.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError, ValueError: as `sigmoid_focal_loss`.

    Example:
        >>> print(f"{sigmoid_cross_entropy(0.0, 1.0):.6f}")
        0.693147
    """
    return sigmoid_focal_loss(logits, labels, alpha=None, gamma=0.0)


def balanced_cross_entropy(logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike) -> Array:
    """Returns the alpha-balanced binary cross entropy of each element, `-alpha_t log(p_t)`.

    It is the focal loss with gamma = 0. Source: Lin et al. 2017 (arXiv 1708.02002), section 3.1, equation 3.

    Args:
        logits: floating, any shape.
        labels: in [0, 1], hard or soft, of a shape that broadcasts to that of `logits`.
        alpha: weight of label 1, in [0, 1]; label 0 has the weight 1 - alpha. A number, or one per class `[K]`.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError, ValueError: as `sigmoid_focal_loss`.

    Example:
        >>> print(f"{balanced_cross_entropy(0.0, 1.0, alpha=0.25):.6f}")
        0.173287
    """
    return sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=0.0)


def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    """Returns the focal loss of each element, `-alpha_t (1 - p_t)^gamma log(p_t)`.

    With p = sigmoid(logits), p_t = p for label 1 and 1 - p for label 0, alpha_t likewise. For a soft label y the
    factors are `1 - p_t = y (1 - p) + (1 - y) p`, `alpha_t = y alpha + (1 - y) (1 - alpha)`, and `log(p_t)` becomes
    the cross entropy with y, as in optax's function of this name.

    Values and derivatives are finite for every finite logit and have their limits at infinite ones. All of logits,
    labels, alpha and gamma may be traced and differentiated; a gamma that is a Python number is cheaper.

    Args:
        logits: floating, any shape.
        labels: in [0, 1], hard or soft, of a shape that broadcasts to that of `logits`. Several classes of the last
            axis may be 1 at once.
        alpha: weight of label 1, in [0, 1]; label 0 has the weight 1 - alpha. None: no weights. A number, or one per
            class `[K]` (the last axis of `logits`).
        gamma: focusing parameter, at least 0; 0 gives the cross entropy.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError: the logits are not floating point, or a hyperparameter is no number.
        ValueError: gamma, alpha or labels have a known value out of range, alpha is not one per class, `labels` would
            enlarge `logits` when broadcast, or has the shape of `logits` without its last axis, that of class ids.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 3.2, equation 5.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = sigmoid_focal_loss(jnp.log(jnp.array([9.0, 99.0])), jnp.ones(2))  # p = 0.9 and 0.99
        >>> print(", ".join(f"{value:.5g}" for value in loss))
        0.0010536, 1.005e-06
    """
    return _focal_of_labels(*_checked(logits, labels, alpha, gamma))


def sigmoid_focal_loss_gradient(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    """Returns the derivative of `sigmoid_focal_loss` by each logit, in closed form.

    For y in {1, -1} and x_t = y x it is `alpha_t y (1 - p_t)^gamma (gamma p_t log(p_t) + p_t - 1)`. Differentiating any
    of the sigmoid focal losses uses this function; call it to plot the derivative or to write a backward pass by hand.

    Args:
        logits: as `sigmoid_focal_loss`.
        labels: likewise.
        alpha: likewise.
        gamma: likewise.

    Returns:
        One value per element, float32 (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `sigmoid_focal_loss`.

    Source: Lin et al. 2017 (arXiv 1708.02002), appendix B.

    Example:
        >>> print(f"{sigmoid_focal_loss_gradient(0.0, 1.0, gamma=0.0):.1f}")
        -0.5
    """
    return _gradient_of_labels(*_checked(logits, labels, alpha, gamma))


def sigmoid_focal_loss_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = 0.25,
    gamma: ArrayLike = 2.0,
    label_smoothing: ArrayLike = 0.0,
) -> Array:
    """Returns the focal loss of each anchor, summed over its K independent sigmoid outputs.

    Equal to `sigmoid_focal_loss` with one-hot labels and a sum over the last axis, without making the one-hot array.

    Args:
        logits: floating `[..., K]`, background has no output of its own.
        labels: integer `[...]`: a class in 0..K-1, `BACKGROUND` (every output should be 0) or `IGNORED` (loss 0, no
            gradient, whatever the logits). Where labels are traced, an id out of range counts as background.
        alpha: weight of the labelled class, in [0, 1]; the other outputs have 1 - alpha. None, a number, or one per
            class `[K]`.
        gamma: focusing parameter, at least 0.
        label_smoothing: s in [0, 1): the label of each output is `y (1 - s) + s / 2`, of background anchors too.

    Returns:
        `[...]`, one value per anchor, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError: the logits are not floating point, the labels not integers, or a hyperparameter is no number.
        ValueError: gamma, alpha, label_smoothing or a class id has a known value out of range, alpha is not one per
            class, or `labels` is not one class id an anchor.

    Source: Lin et al. 2017 (arXiv 1708.02002), sections 3.2 and 4.1.

    Example:
        >>> import jax.numpy as jnp
        >>> logits = jnp.zeros((3, 2))
        >>> print(sigmoid_focal_loss_with_integer_labels(logits, jnp.array([0, BACKGROUND, IGNORED])).round(4))
        [0.1733 0.2599 0.    ]
    """
    logits = as_loss_dtype(logits)
    labels = as_class_ids(labels, logits, special={"BACKGROUND": BACKGROUND, "IGNORED": IGNORED})
    check_at_least_0("gamma", gamma)
    check_alpha(alpha, logits.shape[-1])
    check_fraction("label_smoothing", label_smoothing)
    return _focal_of_class_ids(
        logits,
        labels,
        as_array(alpha, logits.dtype),
        jnp.asarray(label_smoothing, logits.dtype),
        as_hyperparameter(gamma, logits.dtype),
    )


def _checked(
    logits: ArrayLike, labels: ArrayLike, alpha: ArrayLike | None, gamma: ArrayLike
) -> tuple[Array, Array, Array | None, Hyperparameter]:
    logits = as_loss_dtype(logits)
    labels = as_labels(labels, logits, for_class_ids="sigmoid_focal_loss_with_integer_labels")
    check_at_least_0("gamma", gamma)
    check_alpha(alpha, logits.shape[-1] if logits.ndim else None)
    return logits, labels, as_array(alpha, logits.dtype), as_hyperparameter(gamma, logits.dtype)


@jax.jit
def _focal_of_labels(logits: Array, labels: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    return focal(logits, labels, alpha, gamma)


@jax.jit
def _gradient_of_labels(logits: Array, labels: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    loss = _focal_in_rule(logits, labels, alpha, gamma)
    return _slope(loss, logits, labels, alpha, gamma)


@jax.jit
def _focal_of_class_ids(
    logits: Array,
    labels: Array,
    alpha: Array | None,
    label_smoothing: Array,
    gamma: Hyperparameter,
) -> Array:
    # Replaced in the logits, not in the loss: 0 times the infinite loss of an infinite logit would be NaN.
    is_ignored = (labels == IGNORED)[..., None]
    is_class = labels[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
    soft = 0.5 * label_smoothing
    per_class = jnp.where(is_class, 1.0 - soft, jnp.where(is_ignored, 0.0, soft))
    logits = jnp.where(is_ignored, _SURELY_BACKGROUND, logits)
    return focal(logits, per_class, alpha, gamma).sum(axis=-1)


@jax.custom_jvp
def focal(x: Array, y: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    """Returns the focal loss of logits x with labels y, whose shape broadcasts to that of x; see the module's head."""
    # The select changes nothing. It stops XLA's CPU backend from pulling half of the formula into a sum that follows,
    # which would write four arrays of the logits' size to memory in place of one (benchmarks/loss.py shows it).
    return jnp.where(jnp.isnan(x), x, _value(x, y, alpha, gamma))


@jax.custom_jvp
def _focal_in_rule(x: Array, y: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    """Is `focal` for use by derivatives: ends in a division, which XLA computes once and keeps for value and slope."""
    return _value(x, y, alpha, gamma)


def _value(x: Array, y: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    distance = jnp.abs(x)
    odds = jnp.exp(-distance)
    miss = jnp.where(x >= 0.0, 1.0 - y, y)
    cross_entropy = jnp.where(miss > 0.0, miss * distance, 0.0) + log1p_of_odds(odds)
    if alpha is not None:
        weight = _weight(y, alpha)
        cross_entropy = jnp.where(weight > 0.0, weight * cross_entropy, 0.0)
    if is_known_zero(gamma):
        return cross_entropy
    return cross_entropy * power(miss + (1.0 - miss) * odds, gamma) / power(1.0 + odds, gamma)


class _Parts(NamedTuple):
    """What the derivatives are made of, see the module's head; of the shape of x.

    Attributes:
        is_right: x is at least 0, so that it speaks for label 1.
        odds: `exp(-|x|)`.
        miss: the share of the label on the side that x speaks against.
        q_numerator: `miss + (1 - miss) odds`, which is `q (1 + odds)`; at least the smallest normal number.
    """

    is_right: Array
    odds: Array
    miss: Array
    q_numerator: Array


def _parts(x: Array, y: Array) -> _Parts:
    is_right = x >= 0.0
    # Not of abs(x): at 0 the derivative must be that of one side. And written otherwise than in _value, so that XLA
    # keeps no array-sized part from the one for the other.
    odds = jnp.exp(jnp.where(is_right, -x, x))
    miss = jnp.where(is_right, 1.0 - y, y)
    return _Parts(is_right, odds, miss, jnp.maximum(miss + (1.0 - miss) * odds, jnp.finfo(x.dtype).tiny))


def _slope(loss: Array, x: Array, y: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    """Returns the derivative of the loss by x: `gamma (log q)' loss + alpha_t q^gamma (p - y)`."""
    is_right, odds, miss, q_numerator = _parts(x, y)
    larger = 1.0 / (1.0 + odds)
    slope = power(q_numerator * larger, gamma) * larger * (miss - (1.0 - miss) * odds)
    if alpha is not None:
        slope = _weight(y, alpha) * slope
    if not is_known_zero(gamma):
        slope = slope + value_of(gamma) * _log_q_slope(x, y) * jnp.minimum(loss, _LOSS_CAP)
    return jnp.where(is_right, slope, -slope)


@jax.custom_jvp
def _log_q_slope(x: Array, y: Array) -> Array:
    """Returns the derivative of `log(q)` by |x|, between -1 and 1/2."""
    _, odds, miss, q_numerator = _parts(x, y)
    return (2.0 * miss - 1.0) * (odds / q_numerator) / (1.0 + odds)


@_log_q_slope.defjvp
def _log_q_slope_rule(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # Automatic differentiation would square q, which underflows.
    is_right, odds, miss, q_numerator = _parts(*primals)
    slope = _log_q_slope(*primals)
    by_distance = slope * ((odds - 1.0) / (1.0 + odds) - slope)
    by_miss = odds / q_numerator / (1.0 + odds) * (2.0 - (2.0 * miss - 1.0) * (1.0 - odds) / q_numerator)
    return slope, jnp.where(is_right, 1.0, -1.0) * (by_distance * tangents[0] - by_miss * tangents[1])


def _by_label(x: Array, y: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    """Returns the derivative of the loss by y."""
    is_right, odds, _, q_numerator = _parts(x, y)
    largest = jnp.finfo(x.dtype).max
    unweighted = jnp.minimum(_focal_in_rule(x, y, None, gamma), largest)
    by_miss = power(q_numerator / (1.0 + odds), gamma) * jnp.minimum(jnp.abs(x), largest)
    if not is_known_zero(gamma):
        by_miss = by_miss + value_of(gamma) * (1.0 - odds) / q_numerator * unweighted
    slope = jnp.where(is_right, -by_miss, by_miss)
    return slope if alpha is None else _weight(y, alpha) * slope + (2.0 * alpha - 1.0) * unweighted


def _by_alpha(x: Array, y: Array, gamma: Hyperparameter) -> Array:
    """Returns the derivative of the loss by alpha."""
    factor = 2.0 * y - 1.0
    # 0 at a label of 1/2, and the loss may be infinite.
    return jnp.where(factor == 0.0, 0.0, factor * _focal_in_rule(x, y, None, gamma))


def _by_gamma(loss: Array, x: Array, y: Array) -> Array:
    """Returns the derivative of the loss by gamma, `log(q) loss`."""
    _, odds, _, q_numerator = _parts(x, y)
    log_q = jnp.log(q_numerator) - jnp.log1p(odds)
    # An infinite loss has log(q) = 0 at a hard label, and there the limit is 0.
    return jnp.where(log_q < 0.0, log_q * loss, 0.0)


def _weight(y: Array, alpha: Array) -> Array:
    return y * alpha + (1.0 - y) * (1.0 - alpha)


def _focal_rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, y, alpha, gamma = primals
    x_dot, y_dot, alpha_dot, gamma_dot = tangents
    # Without gamma the slope does not use the loss, so that the reason for the division falls away.
    loss = (focal if is_known_zero(gamma) else _focal_in_rule)(x, y, alpha, gamma)
    tangent = jnp.zeros_like(loss)
    if not _is_zero(x_dot):
        tangent = tangent + _slope(loss, x, y, alpha, gamma) * x_dot
    if not _is_zero(y_dot):
        tangent = tangent + _by_label(x, y, alpha, gamma) * y_dot
    if not _is_zero(alpha_dot):
        tangent = tangent + _by_alpha(x, y, gamma) * alpha_dot
    if not _is_zero(gamma_dot):
        tangent = tangent + _by_gamma(loss, x, y) * gamma_dot
    return loss, tangent


def _is_zero(tangent: Any) -> bool:
    """Returns whether an argument is absent, or not differentiated, so that its derivative is not needed."""
    return not isinstance(tangent, jax.Array) or isinstance(tangent, jax.custom_derivatives.SymbolicZero)


focal.defjvp(_focal_rule, symbolic_zeros=True)
_focal_in_rule.defjvp(_focal_rule, symbolic_zeros=True)

"""The focal loss as the paper writes it: on a probability, with a label of +1 or -1."""

from typing import Any

import jax
import jax.numpy as jnp

from focaljax.losses.checks import as_loss_dtype, broadcasts_to, check_alpha, check_at_least_0, known_values
from focaljax.losses.numerics import Hyperparameter, as_array, as_hyperparameter, is_known_zero, power, value_of

Array = jax.Array
ArrayLike = jax.typing.ArrayLike

# Below it the closed form of a slope is a difference of nearly equal numbers; the series is cut where it adds nothing.
_SMALL_MISS = 0.1
_SERIES_TERMS = 16


def binary_focal_loss(
    probabilities: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    """Returns `FL(p, y) = -alpha_t (1 - p_t)^gamma log(p_t)` of each element.

    With p_t = p and alpha_t = alpha for y = +1, 1 - p and 1 - alpha for y = -1. The logarithm is the natural one:
    FL(0.9, +1) is 0.00105361 and FL(0.99, +1) is 1.00503e-06 with gamma = 2. Some articles print 0.000457575 and
    4.36481e-07, which are the same losses with the logarithm to base 10.

    At p_t = 0 the loss is infinite and its derivative by p_t is -infinity; at p_t = 1 it is 0 and its derivative 0
    (-alpha_t for gamma = 0). To train, use `sigmoid_focal_loss`: a probability in float32 cannot say how close to 1 it
    is beyond 6e-8, a logit can.

    Args:
        probabilities: floating, in [0, 1], any shape; p, the model's probability of label +1.
        labels: +1 or -1, of a shape that broadcasts to that of `probabilities`.
        alpha: weight of label +1, in [0, 1]; label -1 has the weight 1 - alpha. None: no weights. A number, or one per
            class `[K]` (the last axis of `probabilities`).
        gamma: focusing parameter, at least 0; 0 gives the cross entropy.

    Returns:
        One value per element, float32 (float64 for float64 probabilities), at least 0.

    Raises:
        TypeError: the probabilities are not floating point, or a hyperparameter is no number.
        ValueError: a known probability is outside [0, 1], a known label is not +1 or -1, gamma or alpha is out of
            range, or `labels` would enlarge `probabilities` when broadcast.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 3, equations 2, 4 and 5.

    Example:
        >>> [f"{binary_focal_loss(p, y):.6g}" for p, y in [(0.9, +1), (0.99, +1), (0.1, -1)]]
        ['0.00105361', '1.00503e-06', '0.00105361']
    """
    known = known_values(probabilities)
    p = as_loss_dtype(probabilities, name="probabilities")
    if known is not None and not ((known >= 0) & (known <= 1)).all():
        raise ValueError(
            f"probabilities must be in [0, 1], got {known[~((known >= 0) & (known <= 1))].flat[0]}: "
            "for logits call sigmoid_focal_loss"
        )
    known = known_values(labels)
    if known is not None and not ((known == 1) | (known == -1)).all():
        raise ValueError(
            f"labels must be +1 or -1, got {known[~((known == 1) | (known == -1))].flat[0]}: "
            "labels in [0, 1] go with logits into sigmoid_focal_loss"
        )
    if not broadcasts_to(jnp.shape(labels), p.shape):
        raise ValueError(
            f"labels has shape {jnp.shape(labels)}, which must broadcast to that of probabilities, {p.shape}"
        )
    check_at_least_0("gamma", gamma)
    check_alpha(alpha, p.shape[-1] if p.ndim else None, of="probabilities")
    is_one = jnp.asarray(labels) > 0
    return _binary_focal(p, is_one, as_array(alpha, p.dtype), as_hyperparameter(gamma, p.dtype))


@jax.jit
def _binary_focal(p: Array, is_one: Array, alpha: Array | None, gamma: Hyperparameter) -> Array:
    if alpha is None:
        return _unweighted(p, is_one, gamma)
    weight = jnp.where(is_one, alpha, 1.0 - alpha)
    # A weight of 0 times the infinite loss and slope at p_t = 0 would be NaN.
    is_infinite = p == jnp.where(is_one, 0.0, 1.0)
    return weight * _unweighted(jnp.where((weight == 0.0) & is_infinite, 0.5, p), is_one, gamma)


@jax.custom_jvp
def _unweighted(p: Array, is_one: Array, gamma: Hyperparameter) -> Array:
    miss = jnp.where(is_one, 1.0 - p, p)
    return power(miss, gamma) * (0.0 - _log_p_t(p, is_one))


@_unweighted.defjvp
def _unweighted_rule(primals: Any, tangents: Any) -> tuple[Array, Array]:
    p, is_one, gamma = primals
    loss = _unweighted(p, is_one, gamma)
    slope = _slope(p, is_one, gamma)
    tangent = jnp.where(is_one, slope, -slope) * tangents[0]
    if isinstance(gamma, jax.Array):
        miss = jnp.where(is_one, 1.0 - p, p)
        is_inside = (miss > 0.0) & (miss < 1.0)
        log_miss = jnp.log(jnp.where(is_inside, miss, 1.0))
        tangent = tangent + jnp.where(is_inside, log_miss * loss, 0.0) * tangents[2]
    return loss, tangent


def _slope(p: Array, is_one: Array, gamma: Hyperparameter) -> Array:
    """Returns the derivative by p_t, `miss^gamma (gamma log(p_t) / miss - 1 / p_t)`."""
    miss = jnp.where(is_one, 1.0 - p, p)
    p_t = jnp.where(is_one, p, 1.0 - p)
    if is_known_zero(gamma):
        return -1.0 / p_t
    exponent = jnp.asarray(value_of(gamma), p.dtype)
    # An exponent that is 0 only at run time would be multiplied by an infinite ratio.
    inside = exponent * jnp.where(exponent > 0.0, _log_over_miss(p, is_one), 0.0) - 1.0 / p_t
    # power() stops a root at the root of the smallest number; the limit at p_t = 1 is 0.
    return jnp.where((miss > 0.0) | (exponent == 0.0), power(miss, gamma) * inside, 0.0)


@jax.custom_jvp
def _log_over_miss(p: Array, is_one: Array) -> Array:
    """Returns `log(p_t) / (1 - p_t)`, which tends to -1 where p_t tends to 1."""
    miss = jnp.where(is_one, 1.0 - p, p)
    is_missed = miss > 0.0
    return jnp.where(is_missed, _log_p_t(p, is_one) / jnp.where(is_missed, miss, 1.0), -1.0)


@_log_over_miss.defjvp
def _log_over_miss_rule(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    p, is_one = primals
    miss = jnp.where(is_one, 1.0 - p, p)
    p_t = jnp.where(is_one, p, 1.0 - p)
    ratio = _log_over_miss(p, is_one)
    # -log(1 - m) / m = 1 + m / 2 + m^2 / 3 + ...
    series = jnp.polyval(-jnp.arange(_SERIES_TERMS, 0, -1) / jnp.arange(_SERIES_TERMS + 1, 1, -1), miss)
    is_small = miss < _SMALL_MISS
    # Where p_t is 0 both terms are infinite, and the first is the larger.
    finite_ratio = jnp.maximum(ratio, jnp.finfo(p.dtype).min)
    by_miss = jnp.where(is_small, series, (-1.0 / p_t - finite_ratio) / jnp.where(is_small, 1.0, miss))
    return ratio, jnp.where(is_one, -by_miss, by_miss) * tangents[0]


def _log_p_t(p: Array, is_one: Array) -> Array:
    # log1p keeps the digits of a small p; 1 - p would round them away.
    return jnp.where(is_one, jnp.log(jnp.where(is_one, p, 1.0)), jnp.log1p(-jnp.where(is_one, 0.0, p)))

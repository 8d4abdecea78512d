"""Pieces of the logistic function that keep their relative precision, and whose derivatives are finite everywhere."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StaticNumber:
    """A hyperparameter that is known when tracing, so that the formula may be chosen by its value.

    A pytree without leaves: it passes through `jit` and `custom_jvp` as it is.

    Attributes:
        value: the number.
    """

    value: float


# A hyperparameter inside the losses: known, or an array that may be traced.
Hyperparameter = StaticNumber | Array


def logistic_pair(logits: Array) -> tuple[Array, Array]:
    """Returns `sigmoid(logits)` and `sigmoid(-logits)`, each right to a few units in the last place.

    The second is not 1 minus the first, which has no correct digit where the first is close to 1.
    """
    is_right = logits >= 0.0
    # where instead of abs: at 0 the derivative must be that of the branch taken below.
    odds = jnp.exp(jnp.where(is_right, -logits, logits))
    larger = 1.0 / (1.0 + odds)
    smaller = odds * larger
    return jnp.where(is_right, larger, smaller), jnp.where(is_right, smaller, larger)


def as_array(value: ArrayLike | None, dtype: Any) -> Array | None:
    """Returns the value as an array of the type; None for None."""
    return None if value is None else jnp.asarray(value, dtype)


def as_hyperparameter(value: ArrayLike, dtype: Any) -> Hyperparameter:
    """Returns a Python or numpy number as a `StaticNumber`, anything else as an array of the type."""
    return StaticNumber(float(value)) if is_static(value) else jnp.asarray(value, dtype)  # type: ignore[arg-type]


def is_static(value: ArrayLike) -> bool:
    """Returns whether it is a plain number, known when tracing."""
    return isinstance(value, int | float | np.number)


def value_of(hyperparameter: Hyperparameter) -> Array | float:
    """Returns what to compute with."""
    return hyperparameter.value if isinstance(hyperparameter, StaticNumber) else hyperparameter


def is_known_zero(hyperparameter: Hyperparameter) -> bool:
    """Returns whether it is the number 0, known when tracing."""
    return isinstance(hyperparameter, StaticNumber) and hyperparameter.value == 0.0


# Of 2 atanh(z / 2) / z in z^2, for z up to 2 / 3: a Chebyshev fit, off by less than 5e-9 of the value.
_ATANH_COEFFICIENTS = (1.000000004, 0.08333289492, 0.01250776679, 0.002184485846, 0.0005502862748)


def log1p_of_odds(odds: Array) -> Array:
    """Returns `log(1 + odds)` for odds in [0, 1], right to a few units in the last place.

    In float32 as `2 atanh(odds / (2 + odds))`, a division and some products, which XLA's CPU backend computes faster
    than its `log1p`: value and gradient of the focal loss take 51 ms in place of 66 (work of benchmarks/loss.py).
    """
    if odds.dtype != jnp.float32:
        return jnp.log1p(odds)
    # Not odds / (...): XLA keeps the result of a division that is used more than once in memory, a product it repeats.
    z = odds * (1.0 / (1.0 + 0.5 * odds))
    square = z * z
    series = jnp.full_like(odds, _ATANH_COEFFICIENTS[-1])
    for coefficient in reversed(_ATANH_COEFFICIENTS[:-1]):
        series = series * square + coefficient
    return z * series


@jax.custom_jvp
def power(base: Array, exponent: Hyperparameter) -> Array:
    """Returns `base ** exponent` for a base and an exponent of at least 0, with `0 ** 0 = 1`.

    Whole exponents are products and halves a square root: cheaper than a power, and without the error that
    `exp(exponent * log(base))` makes where its argument is large. Derivatives are finite, also at base 0, which counts
    as the smallest normal number where the exponent is not whole.

    Args:
        base: any shape, at least 0.
        exponent: a number known when tracing, or an array that may be traced and broadcasts to `base`.
    """
    # The logarithm of 0 is infinite.
    safe = jnp.maximum(base, jnp.finfo(base.dtype).tiny)
    if isinstance(exponent, StaticNumber):
        whole, rest = divmod(exponent.value, 1.0)
        result = jax.lax.integer_pow(base, int(whole))
        if rest == 0.5:
            return result * jnp.sqrt(safe)
        return result * jnp.exp(rest * jnp.log(safe)) if rest else result
    factors = jnp.clip(jnp.floor(exponent), 0.0, 7.0)
    result = jnp.exp((exponent - factors) * jnp.log(safe))
    for bit in (1, 2, 4):
        is_set = factors.astype(jnp.int32) & bit != 0
        result = result * jnp.where(is_set, jax.lax.integer_pow(base, bit), 1.0)
    return result


@power.defjvp
def _power_rule(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    base, exponent = primals
    result = power(base, exponent)
    tangent = value_of(exponent) * result * (tangents[0] * _reciprocal(base))
    if not isinstance(exponent, StaticNumber):
        tangent = tangent + result * jnp.log(jnp.maximum(base, jnp.finfo(base.dtype).tiny)) * tangents[1]
    return result, tangent


@jax.custom_jvp
def _reciprocal(x: Array) -> Array:
    return 1.0 / jnp.maximum(x, jnp.finfo(x.dtype).tiny)


# In this order: the square of the reciprocal overflows, the reciprocal times a tangent of the size of x does not.
_reciprocal.defjvps(lambda tangent, result, x: -(tangent * result) * result)


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """Returns `log(1 + exp(x))`."""
    return jax.nn.softplus(x)


# jax's own derivative, exp(x - softplus(x)), has no small 1 - p, which the second derivative needs.
softplus.defjvps(lambda tangent, result, x: logistic_pair(x)[0] * tangent)

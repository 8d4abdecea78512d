"""Relatives of the focal loss on logits, each from its paper: one value per element, in log space.

All are float32 (float64 if the logits are) and finite with their derivatives for logits up to 1e30 in size. At an
infinite logit the loss is infinite on the wrong side (unless its function says it is bounded) and 0 on the right one,
and derivatives have their limits. Hyperparameters may be traced and differentiated; plain numbers are cheaper.

Below, p = sigmoid(logits), and p_t is p for label 1 and 1 - p for label 0.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from focaljax.losses.checks import (
    as_labels,
    as_loss_dtype,
    check_above_0,
    check_alpha,
    check_at_least_0,
    check_fraction,
    check_is_finite,
)
from focaljax.losses.numerics import (
    Hyperparameter,
    StaticNumber,
    as_array,
    as_hyperparameter,
    logistic_pair,
    power,
    softplus,
    value_of,
)

Array = jax.Array
ArrayLike = jax.typing.ArrayLike

# Stands for an infinite logit: weights of 1e-30 leave it huge, and no sum or product with gamma overflows.
_FAR = 1e36
# More than any loss that has a finite limit, less than one that grows with the logit has at _FAR.
_UNBOUNDED = 1e6
# Beyond it exp(beta) is no longer a harmless factor.
_MODERATE_BETA = 20.0


def focal_loss_star(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    beta: ArrayLike = 1.0,
    alpha: ArrayLike | None = None,
) -> Array:
    """Returns FL* of each element, `-alpha_t log(sigmoid(gamma x_t + beta)) / gamma`, with x_t = logits or -logits.

    A cross entropy whose slope is made steeper by gamma and shifted by beta. For a soft label y it is y times the loss
    of label 1 plus 1 - y times that of label 0.

    Args:
        logits: floating, any shape.
        labels: in [0, 1], of a shape that broadcasts to that of `logits`.
        gamma: steepness, greater than 0; with beta = 0 and gamma = 1 the loss is the cross entropy.
        beta: shift, any number. The paper's pairs (gamma, beta) are (2, 1) and (4, 0).
        alpha: weight of label 1, in [0, 1]; label 0 has the weight 1 - alpha. None: no weights. A number, or one per
            class `[K]` (the last axis of `logits`).

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError: the logits are not floating point, or a hyperparameter is no number.
        ValueError: a hyperparameter or label is known to be out of range, or shapes do not fit.

    Source: Lin et al. 2017 (arXiv 1708.02002), appendix A, where alpha is left out.

    Example:
        >>> print(f"{focal_loss_star(0.0, 1.0):.6f}")  # log(1 + exp(-1)) / 2
        0.156631
    """
    x, y = _checked(logits, labels)
    check_above_0("gamma", gamma)  # it divides the loss
    check_is_finite("beta", beta)
    check_alpha(alpha, x.shape[-1] if x.ndim else None)
    return _star_of(x, y, as_array(alpha, x.dtype), as_hyperparameter(gamma, x.dtype), as_hyperparameter(beta, x.dtype))


def quality_focal_loss(logits: ArrayLike, labels: ArrayLike, *, beta: ArrayLike = 2.0) -> Array:
    """Returns the quality focal loss of each element, `|y - p|^beta (-y log(p) - (1 - y) log(1 - p))`.

    The label y of the true class is a quality, the IoU of the predicted box with its object; all others are 0. The loss
    is 0 at p = y, unlike the cross entropy. For hard labels it is the focal loss with gamma = beta.

    Args:
        logits: floating, any shape.
        labels: y in [0, 1], of a shape that broadcasts to that of `logits`.
        beta: focusing parameter, at least 0; 0 gives the cross entropy. Below 1 the slope at p = y has no bound, in
            floating point it is 0 there.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError, ValueError: as `focal_loss_star`.

    Source: Li et al. 2020, Generalized Focal Loss (arXiv 2006.04388), section 3, QFL; beta = 2 worked best there.

    Example:
        >>> print(f"{quality_focal_loss(0.0, 0.9):.6f}")  # 0.4^2 log(2)
        0.110904
    """
    x, y = _checked(logits, labels)
    check_at_least_0("beta", beta)
    return _quality_of(x, y, as_hyperparameter(beta, x.dtype))


def varifocal_loss(logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike = 0.75, gamma: ArrayLike = 2.0) -> Array:
    """Returns the varifocal loss of each element: the cross entropy times the label, negatives made focal.

    `q (-q log(p) - (1 - q) log(1 - p))` for a label q > 0, and `-alpha p^gamma log(1 - p)` for q = 0: positives keep
    their full slope, and those with a good box weigh more. The loss is not continuous at q = 0.

    Args:
        logits: floating, any shape.
        labels: q in [0, 1], the IoU of the predicted box with its object for the true class and 0 for all others; of a
            shape that broadcasts to that of `logits`.
        alpha: weight of the negatives alone, at least 0; a number, or one per class `[K]`.
        gamma: focusing parameter of the negatives, at least 0.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError, ValueError: as `focal_loss_star`.

    Source: Zhang et al. 2021, VarifocalNet (arXiv 2008.13367), section 3.2, equation 2.

    Example:
        >>> print(f"{varifocal_loss(0.0, 0.0):.6f} {varifocal_loss(0.0, 0.8):.6f}")  # 3/16 log(2), 0.8 log(2)
        0.129965 0.554518
    """
    x, y = _checked(logits, labels)
    if alpha is None:
        raise TypeError("alpha must be a number or one per class, got None: 1.0 weights the negatives as the others")
    check_alpha(alpha, x.shape[-1] if x.ndim else None, at_most=math.inf)
    check_at_least_0("gamma", gamma)
    return _varifocal_of(x, y, jnp.asarray(alpha, x.dtype), as_hyperparameter(gamma, x.dtype))


def gaussian_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, gamma: ArrayLike = 2.0, beta: ArrayLike = 4.0
) -> Array:
    """Returns the focal loss of each pixel of a heat map whose negatives near a positive count less.

    `-(1 - p)^gamma log(p)` where the label is exactly 1, else `-(1 - y)^beta p^gamma log(1 - p)`. The paper calls gamma
    alpha, and divides the sum by the number of objects.

    Args:
        logits: floating, any shape.
        labels: y in [0, 1], of a shape that broadcasts to that of `logits`: 1 at a key point, a Gaussian around it.
            Compared with 1 in the type of the result, in which a float64 label close to 1 may be 1.
        gamma: focusing parameter, at least 0; the paper's alpha.
        beta: how much less the pixels near a key point count, at least 0; 0 makes every label below 1 a full negative.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError, ValueError: as `focal_loss_star`.

    Source: Law and Deng 2018, CornerNet (arXiv 1808.01244), section 3.2, equation 1.

    Example:
        >>> print(f"{gaussian_focal_loss(0.0, 1.0):.6f} {gaussian_focal_loss(0.0, 0.5):.6f}")  # log(2)/4, log(2)/64
        0.173287 0.010830
    """
    x, y = _checked(logits, labels)
    check_at_least_0("gamma", gamma)
    check_at_least_0("beta", beta)
    return _gaussian_of(x, y, as_hyperparameter(gamma, x.dtype), as_hyperparameter(beta, x.dtype))


def asymmetric_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma_positive: ArrayLike = 1.0,
    gamma_negative: ArrayLike = 4.0,
    margin: ArrayLike = 0.05,
) -> Array:
    """Returns the asymmetric loss of each element, for many labels at once of which few are 1.

    `-(1 - p)^gamma_positive log(p)` for label 1 and `-p_m^gamma_negative log(1 - p_m)` for label 0, with the shifted
    probability `p_m = max(p - margin, 0)`: a negative below the margin costs nothing, and one that is surely wrong
    costs a bounded `-(1 - margin)^gamma_negative log(margin)`, with a slope of 0. For a soft label y it is y times the
    loss of label 1 plus 1 - y times that of label 0. The gradient flows through the focusing factors too; the authors'
    training code can hold them constant.

    Args:
        logits: floating, any shape.
        labels: in [0, 1], of a shape that broadcasts to that of `logits`.
        gamma_positive: focusing parameter of label 1, at least 0. Defaults are those of the authors' code, whose
            training script for COCO sets this one to 0.
        gamma_negative: focusing parameter of label 0, at least 0.
        margin: probability in [0, 1) up to which a negative costs nothing. With margin 0 and equal gammas the loss is
            the focal loss.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError, ValueError: as `focal_loss_star`.

    Source: Ridnik et al. 2021 (arXiv 2009.14119), section 2, asymmetric focusing and probability shifting.

    Example:
        >>> print(f"{asymmetric_focal_loss(0.0, 1.0):.6f} {asymmetric_focal_loss(-3.0, 0.0):.6f}")  # log(2) / 2
        0.346574 0.000000
    """
    x, y = _checked(logits, labels)
    check_at_least_0("gamma_positive", gamma_positive)
    check_at_least_0("gamma_negative", gamma_negative)
    check_fraction("margin", margin)
    gammas = (as_hyperparameter(gamma, x.dtype) for gamma in (gamma_positive, gamma_negative))
    return _asymmetric_of(x, y, jnp.asarray(margin, x.dtype), *gammas)


def poly1_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 1.0,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> Array:
    """Returns the focal loss of each element with another first coefficient, `FL + epsilon (1 - p_t)^(gamma + 1)`.

    The focal loss is the series `sum over j >= 1 of (1 - p_t)^(gamma + j) / j`; epsilon is added to its first
    coefficient. Soft labels: `1 - p_t = y (1 - p) + (1 - y) p` and FL is `sigmoid_focal_loss`.

    Args:
        logits: floating, any shape.
        labels: in [0, 1], of a shape that broadcasts to that of `logits`.
        epsilon: added to the first coefficient, 1; at least -1, with alpha at least minus the smaller of alpha and
            1 - alpha, for a loss that is never negative and grows with what is wrong. Close to -1 the two terms cancel
            for confident right outputs: the error is then relative to one of them.
        alpha: weight of label 1 in FL alone, in [0, 1], as common implementations have it (the paper's formula has no
            alpha); label 0 has the weight 1 - alpha. None: no weights, to be multiplied outside where both terms are
            to be weighted. A number, or one per class `[K]`.
        gamma: focusing parameter, at least 0; 0 gives the Poly-1 cross entropy.

    Returns:
        One value per element, float32 (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `focal_loss_star`.

    Source: Leng et al. 2022, PolyLoss (arXiv 2204.12511), the Poly-1 form of the focal loss.

    Example:
        >>> print(f"{poly1_focal_loss(0.0, 1.0):.6f}")  # log(2) / 4 + 1 / 8
        0.298287
    """
    x, y = _checked(logits, labels)
    check_is_finite("epsilon", epsilon)
    check_at_least_0("gamma", gamma)
    check_alpha(alpha, x.shape[-1] if x.ndim else None)
    epsilon = jnp.asarray(epsilon, x.dtype)
    return _poly1_of(x, y, as_array(alpha, x.dtype), epsilon, as_hyperparameter(gamma, x.dtype))


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    x = as_loss_dtype(logits)
    return x, as_labels(labels, x)


@jax.custom_jvp
def _replace_infinity(x: Array) -> Array:
    return jnp.where(jnp.isinf(x), jnp.sign(x) * _FAR, x)


# The derivative at the replaced logit is the limit wanted; a clip would stop it.
_replace_infinity.defjvps(lambda tangent, result, x: tangent)


def _compiled_with_limits(loss: Callable[..., Array]) -> Callable[..., Array]:
    """Returns the loss with its limits at infinite logits x, where 0 times infinity would be NaN."""

    @functools.wraps(loss)
    def with_limits(x: Array, *args: Any) -> Array:
        value = loss(_replace_infinity(x), *args)
        is_infinite = jnp.isinf(x) & (value > _UNBOUNDED)
        return value + jax.lax.stop_gradient(jnp.where(is_infinite, jnp.inf, 0.0).astype(value.dtype))

    return jax.jit(with_limits)


@_compiled_with_limits
def _star_of(x: Array, y: Array, alpha: Array | None, gamma: Hyperparameter, beta: Hyperparameter) -> Array:
    positive, negative = _shares(y, alpha)
    return positive * _star(x, gamma, beta) + negative * _star(-x, gamma, beta)


@_compiled_with_limits
def _quality_of(x: Array, y: Array, beta: Hyperparameter) -> Array:
    p, n = logistic_pair(x)
    difference = y * n - (1.0 - y) * p  # y - p, right to the last digit where y is 0 or 1
    # A sign of 0 at p = y would lose the square's second derivative; the kink of beta <= 1 has the slope 0.
    at_equality = jnp.where(jnp.asarray(value_of(beta)) > 1.0, 1.0, 0.0)
    sign = jnp.where(difference == 0.0, at_equality, jnp.where(difference > 0.0, 1.0, -1.0))
    # A gap added to |y - p| keeps its powers differentiable at 0. Hard labels need none: there it is p or 1 - p.
    gap = jnp.where((y == 0.0) | (y == 1.0), 0.0, float(jnp.finfo(x.dtype).tiny) ** 0.4)
    return power(sign * difference + gap, beta) * _cross_entropy(x, y)


@_compiled_with_limits
def _varifocal_of(x: Array, y: Array, alpha: Array, gamma: Hyperparameter) -> Array:
    return jnp.where(y > 0.0, y * _cross_entropy(x, y), alpha * _focal(-x, gamma))


@_compiled_with_limits
def _gaussian_of(x: Array, y: Array, gamma: Hyperparameter, beta: Hyperparameter) -> Array:
    return jnp.where(y == 1.0, _focal(x, gamma), power(1.0 - y, beta) * _focal(-x, gamma))


@_compiled_with_limits
def _asymmetric_of(x: Array, y: Array, margin: Array, positive: Hyperparameter, negative: Hyperparameter) -> Array:
    p = logistic_pair(x)[0]
    p_m = jnp.where(p > margin, p - margin, 0.0)
    # 1 - p_m = (1 - p) + margin: close to p_m = 1 without a difference, and without underflow.
    log_margin = jnp.log(jnp.maximum(margin, jnp.finfo(x.dtype).tiny))
    near_1 = jnp.where(margin > 0.0, -jnp.logaddexp(-softplus(x), log_margin), softplus(x))
    negative_log = jnp.where(p_m < 0.5, -jnp.log1p(-jnp.minimum(p_m, 0.5)), near_1)
    return y * _focal(x, positive) + (1.0 - y) * power(p_m, negative) * negative_log


@_compiled_with_limits
def _poly1_of(x: Array, y: Array, alpha: Array | None, epsilon: Array, gamma: Hyperparameter) -> Array:
    p, n = logistic_pair(x)
    miss = y * n + (1.0 - y) * p
    positive, negative = _shares(y, alpha)
    return power(miss, gamma) * ((positive + negative) * _cross_entropy(x, y) + epsilon * miss)


def _shares(y: Array, alpha: Array | None) -> tuple[Array, Array]:
    """Returns the weights of the losses of label 1 and of label 0."""
    return (y, 1.0 - y) if alpha is None else (y * alpha, (1.0 - y) * (1.0 - alpha))


def _cross_entropy(x: Array, y: Array) -> Array:
    return y * softplus(-x) + (1.0 - y) * softplus(x)


def _focal(x: Array, gamma: Hyperparameter) -> Array:
    """Returns the focal loss of label 1; that of label 0 has -x."""
    return power(logistic_pair(x)[1], gamma) * softplus(-x)


def _star(x: Array, gamma: Hyperparameter, beta: Hyperparameter) -> Array:
    """Returns `softplus(-(gamma x + beta)) / gamma`."""
    # exp(-gamma x) in part as a power of exp(-x): the rounding of gamma x alone would cost |gamma x| 6e-8.
    whole: Hyperparameter
    if isinstance(gamma, StaticNumber) and isinstance(beta, StaticNumber):
        whole = StaticNumber(float(math.floor(gamma.value)) if abs(beta.value) <= _MODERATE_BETA else 0.0)
    else:
        whole = jnp.where(jnp.abs(value_of(beta)) <= _MODERATE_BETA, jnp.floor(value_of(gamma)), 0.0)
    steep, shift = value_of(gamma), value_of(beta)
    is_right = steep * x + shift >= 0.0
    sign = jnp.where(is_right, 1.0, -1.0)
    # The outer minimum does nothing but keep XLA from making one exp of the product, of an argument that is rounded.
    base = jnp.minimum(jnp.exp(jnp.minimum(-sign * x, _MODERATE_BETA)), 2.0 * math.exp(_MODERATE_BETA))
    odds = power(base, whole) * jnp.exp(-sign * ((steep - value_of(whole)) * x + shift))
    return jnp.where(is_right, 0.0, -(x + shift / steep)) + jnp.log1p(odds) / steep

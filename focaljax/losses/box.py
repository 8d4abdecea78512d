"""Regression losses for boxes: one value per coordinate, in float32 (float64 if the inputs are)."""

import jax
import jax.numpy as jnp

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def l1(predictions: ArrayLike, targets: ArrayLike) -> Array:
    """Returns `|predictions - targets|` for each element.

    Args:
        predictions: floating, any shape, such as box deltas `[..., 4]`.
        targets: of the same shape.

    Returns:
        One value per element, float32 (float64 for float64 predictions). The gradient at equality is 0.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> print(l1(1.0, 3.0))
        2.0
    """
    return _distance(predictions, targets)


def smooth_l1(predictions: ArrayLike, targets: ArrayLike, *, beta: float = 1.0) -> Array:
    """Returns `d^2 / (2 beta)` where `d = |predictions - targets| < beta`, else `d - beta / 2`.

    Value and first derivative are continuous; beta = 0 is `l1`.

    Args:
        predictions: floating, any shape, such as box deltas `[..., 4]`.
        targets: of the same shape.
        beta: width of the quadratic part, at least 0.

    Returns:
        One value per element, float32 (float64 for float64 predictions).

    Raises:
        ValueError: beta is negative, or the shapes differ.

    Source: Girshick 2015, Fast R-CNN (arXiv 1504.08083), section 2.3, where beta = 1.

    Example:
        >>> print(smooth_l1(0.5, 0.0), smooth_l1(3.0, 0.0))
        0.125 2.5
    """
    if beta < 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    distance = _distance(predictions, targets)
    if beta == 0:
        return distance
    return jnp.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def _distance(predictions: ArrayLike, targets: ArrayLike) -> Array:
    predictions, targets = jnp.asarray(predictions), jnp.asarray(targets)
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions has shape {predictions.shape}, targets {targets.shape}: they must be equal")
    dtype = jnp.promote_types(predictions.dtype, jnp.float32)
    difference = predictions.astype(dtype) - targets.astype(dtype)
    # Not jnp.abs: its gradient at 0 is 1 in current jax, where a box that is met exactly should stay.
    return difference * jnp.sign(difference)

"""The gradient harmonised loss on logits: cross entropy, divided by how many elements have a gradient of its size."""

import jax
import jax.numpy as jnp

from focaljax.losses.checks import as_labels, as_loss_dtype, check_is_bool, check_whole
from focaljax.losses.numerics import logistic_pair
from focaljax.losses.sigmoid import sigmoid_cross_entropy

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def ghm_classification_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 10,
    is_ignored: ArrayLike | None = None,
    counts: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    """Returns the GHM-C loss of each element: the cross entropy, divided by how many have a gradient of its size.

    `beta_i (-y log(p) - (1 - y) log(1 - p))` with `beta_i = N / GD(g_i)`, the gradient's size `g = |p - y|` and its
    density GD = bins times the number of elements in the same of `bins` equal parts of [0, 1]. N elements are counted,
    so that the paper's loss is the sum divided by N, and gradients spread evenly give the plain cross entropy. The
    weights have no gradient. (mmdetection divides by the number of parts that are not empty instead of `bins`.)

    The paper's moving average: keep counts as state, and hand them in.

        counts = 0.75 * counts + 0.25 * ghm_counts(logits, labels)
        loss = ghm_classification_loss(logits, labels, counts=counts)

    Args:
        logits: floating, any shape; the whole batch, since the weights depend on all elements.
        labels: y in [0, 1], of a shape that broadcasts to that of `logits`.
        bins: number of parts of [0, 1], at least 1.
        is_ignored: bool, of the shape of `logits` or of its leading axes: loss 0, no gradient, not counted. None: all
            elements count.
        counts: `[bins]`, as `ghm_counts` returns them, or an average of such; N is then their sum, so that an average
            that began with zeros needs no correction. An empty part counts as one element. None: those of this batch.
        axis_name: mesh axis to count over inside `shard_map`; None outside, where a sharded jit counts the global
            batch by itself. Not used with `counts`.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError: the logits are not floating point, bins is no whole number, or `is_ignored` is not bool.
        ValueError: bins is less than 1, counts is not `[bins]`, labels are known to be out of
            range, or shapes do not fit.

    Source: Li et al. 2019 (arXiv 1811.05181), gradient density, GHM-C loss, unit region approximation and EMA.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = ghm_classification_loss(jnp.array([0.0, 0.0, 0.0, 9.0]), jnp.array([1.0, 0, 0, 0]), bins=2)
        >>> print(loss.round(3))  # all g are at least 1/2: every weight is 4 / (2 x 4)
        [0.347 0.347 0.347 4.5  ]
    """
    bins = check_whole("bins", bins, at_least=1)
    x, y, is_ignored = _checked(logits, labels, is_ignored)
    if counts is None:
        counts = _counts(x, y, bins, is_ignored, axis_name)
    else:
        counts = jnp.asarray(counts, x.dtype)
        if counts.shape != (bins,):
            raise ValueError(
                f"counts has shape {counts.shape}, expected (bins,) = ({bins},): pass bins as to ghm_counts"
            )
    density = bins * jnp.where(counts > 0.0, counts, 1.0)
    weights = jax.lax.stop_gradient((counts.sum() / density)[_bin(x, y, bins)])
    return jnp.where(is_ignored, 0.0, weights * sigmoid_cross_entropy(x, y))


def ghm_counts(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 10,
    is_ignored: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    """Returns how many elements have a gradient `|p - y|` in each of `bins` equal parts of [0, 1].

    The state of the moving average for `ghm_classification_loss`, which see for the arguments and errors. A part has
    its lower end and not its upper one, the last has both. Less than 2^31 elements to a part.

    Returns:
        `[bins]`, float32 (float64 for float64 logits), without gradient.

    Source: Li et al. 2019 (arXiv 1811.05181), R_ind of the unit region approximation.

    Example:
        >>> import jax.numpy as jnp
        >>> print(ghm_counts(jnp.array([0.0, 0.0, 9.0]), jnp.array([1.0, 0.0, 1.0]), bins=4))
        [1. 0. 2. 0.]
    """
    bins = check_whole("bins", bins, at_least=1)
    x, y, is_ignored = _checked(logits, labels, is_ignored)
    return _counts(x, y, bins, is_ignored, axis_name)


def _checked(logits: ArrayLike, labels: ArrayLike, is_ignored: ArrayLike | None) -> tuple[Array, Array, Array]:
    x = as_loss_dtype(logits)
    y = as_labels(labels, x)
    mask = jnp.zeros(x.shape, bool) if is_ignored is None else jnp.asarray(is_ignored)
    check_is_bool("is_ignored", mask)
    if mask.shape != x.shape[: mask.ndim]:
        raise ValueError(f"is_ignored has shape {mask.shape}, logits {x.shape}: it must be the leading axes of logits")
    mask = jnp.broadcast_to(jnp.expand_dims(mask, tuple(range(mask.ndim, x.ndim))), x.shape)
    # Replaced before the loss: 0 times the infinite loss of an infinite logit would be NaN.
    return jnp.where(mask, 0.0, x), jnp.where(mask, 0.0, y), mask


def _bin(x: Array, y: Array, bins: int) -> Array:
    p, n = logistic_pair(x)
    size = jnp.abs(y * n - (1.0 - y) * p)
    return jnp.minimum((size * bins).astype(jnp.int32), bins - 1)


def _counts(x: Array, y: Array, bins: int, is_ignored: Array, axis_name: str | None) -> Array:
    index = jnp.where(is_ignored, bins, _bin(x, y, bins))
    # One comparison a bin, fused with its sum: a scatter of many elements to few places is slow.
    counts = jnp.sum(index[..., None] == jnp.arange(bins), axis=tuple(range(index.ndim)), dtype=jnp.int32)
    counts = jax.lax.stop_gradient(counts.astype(x.dtype))
    return counts if axis_name is None else jax.lax.psum(counts, axis_name)

"""Reductions: from a loss per anchor to the number that is minimised. Each names its normaliser."""

import jax
import jax.numpy as jnp

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def mean_over_positives(loss: ArrayLike, is_positive: ArrayLike, is_ignored: ArrayLike | None = None) -> Array:
    """Returns the loss of one image: the sum over all anchors divided by the number of anchors assigned to an object.

    Easy background anchors contribute to the sum but hardly to its value under focal loss, so the normaliser is the
    number of assigned anchors, not of all (Lin et al. 2017, arXiv 1708.02002, section 4.1). An image without objects
    is divided by 1, which keeps its background loss and keeps it finite. For a batch: `jax.vmap`.

    Args:
        loss: `[A]` (or `[A, ...]`), one value per anchor (or more).
        is_positive: bool `[A]`, the anchor is assigned to an object.
        is_ignored: bool `[A]`, the anchor belongs neither in the sum nor in the count; None: no anchor is ignored.

    Returns:
        A scalar in the dtype of `loss`.

    Raises:
        TypeError: a mask is not bool.
        ValueError: the masks differ in shape, are not the leading axis of `loss`, or belong to more than one image.

    Example:
        >>> import jax.numpy as jnp
        >>> print(mean_over_positives(jnp.array([1.0, 2.0, 3.0, 50.0]), jnp.array([1, 1, 0, 0]) > 0,
        ...                           jnp.array([0, 0, 0, 1]) > 0))
        3.0
    """
    if jnp.ndim(is_positive) != 1:
        raise ValueError(
            f"is_positive has shape {jnp.shape(is_positive)}, expected that of one image, (A,): "
            "for a batch use jax.vmap, or global_mean_over_positives"
        )
    total, count = _sum_and_count(loss, is_positive, is_ignored)
    return total / jnp.maximum(count, 1)


def global_mean_over_positives(
    loss: ArrayLike, is_positive: ArrayLike, is_ignored: ArrayLike | None = None, *, axis_name: str | None = None
) -> Array:
    """Returns the sum over all anchors of the whole batch divided by all assigned anchors of the whole batch.

    Every object has the same weight, whatever image it is on; `mean_over_positives` gives every image the same weight.
    Under a sharded `jit` the batch is the global one as it is; inside `shard_map` name the mesh axis.

    Args:
        loss: `[B, A]` or any other shape, one value per anchor; further axes are summed too.
        is_positive: bool, of the shape of `loss` or of its leading axes; the anchor is assigned to an object.
        is_ignored: bool, the anchor belongs neither in the sum nor in the count; None: no anchor is ignored.
        axis_name: mesh axis to sum over inside `shard_map`; None outside.

    Returns:
        A scalar in the dtype of `loss`. A batch without objects is divided by 1.

    Raises:
        TypeError: a mask is not bool.
        ValueError: the masks differ in shape, or are not the leading axes of `loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(global_mean_over_positives(jnp.ones((2, 4)), jnp.array([[1, 0, 0, 0], [1, 1, 1, 0]]) > 0))
        2.0
    """
    total, count = _sum_and_count(loss, is_positive, is_ignored)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1)


def _sum_and_count(loss: ArrayLike, is_positive: ArrayLike, is_ignored: ArrayLike | None) -> tuple[Array, Array]:
    loss, is_positive = jnp.asarray(loss), jnp.asarray(is_positive)
    is_ignored = jnp.zeros_like(is_positive) if is_ignored is None else jnp.asarray(is_ignored)
    for name, mask in (("is_positive", is_positive), ("is_ignored", is_ignored)):
        # ~ of the integers 0 and 1 is -1 and -2, both of them true.
        if mask.dtype != jnp.bool_:
            raise TypeError(f"{name} must be bool, got {mask.dtype}: pass a comparison such as labels >= 0")
    if is_positive.shape != loss.shape[: is_positive.ndim] or is_ignored.shape != is_positive.shape:
        raise ValueError(
            f"loss has shape {loss.shape}, is_positive {is_positive.shape}, is_ignored {is_ignored.shape}: "
            "the masks must be equal, and be the leading axes of loss"
        )
    extra_axes = tuple(range(is_positive.ndim, loss.ndim))
    is_counted = jnp.expand_dims(~is_ignored, extra_axes)
    total = jnp.sum(jnp.where(is_counted, loss, 0.0))
    return total, jnp.sum(is_positive & ~is_ignored)

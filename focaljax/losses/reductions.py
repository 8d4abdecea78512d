"""Reductions: from a loss per anchor to the number that is minimised. Each names its normaliser."""

import jax
import jax.numpy as jnp

from focaljax.losses.checks import check_is_bool

Array = jax.Array
ArrayLike = jax.typing.ArrayLike

# Assigned anchors in a batch, before the first was seen.
INITIAL_EMA_NORMALIZER = 100.0


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
        A scalar, float32 (float64 for a float64 loss).

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
        A scalar, float32 (float64 for a float64 loss). A batch without objects is divided by 1.

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


def ema_normalizer(
    normalizer: ArrayLike, num_positives: ArrayLike, *, momentum: float = 0.9, axis_name: str | None = None
) -> Array:
    """Returns the running mean of the number of assigned anchors: this step's divisor, and the state for the next.

    `momentum normalizer + (1 - momentum) max(num_positives, 1)`. A divisor that changes slowly gives every object the
    same weight over many steps, however few there are in this batch. It is detectron2's loss normaliser, which keeps
    it inside the model and counts on each device by itself; here it is carried by the caller, beside the optimiser's
    state, and counts the global batch. No gradient flows through it.

    Args:
        normalizer: scalar, the result of the step before; at first `INITIAL_EMA_NORMALIZER`, or the expected number
            of assigned anchors in a batch: detectron2's 100 is for 2 images, some 50 an image.
        num_positives: scalar, assigned anchors in the global batch, ignored ones not counted; inside `shard_map` those
            on this device.
        momentum: weight of the past, in [0, 1); 0 is this batch alone.
        axis_name: mesh axis to sum `num_positives` over inside `shard_map`; None outside. Sum the loss likewise.

    Returns:
        A scalar, float32 (float64 for a float64 normalizer), at least 1 where `normalizer` is.

    Raises:
        ValueError: momentum is out of its range, or an argument is not a scalar.

    Source: detectron2, `RetinaNet.losses`; not in a paper.

    Example:
        >>> import jax.numpy as jnp
        >>> normalizer = INITIAL_EMA_NORMALIZER
        >>> is_positive = jnp.arange(1000) < 20
        >>> for _ in range(2):  # in a train step: return the normalizer beside the loss, as auxiliary output
        ...     normalizer = ema_normalizer(normalizer, jnp.sum(is_positive))
        ...     loss = jnp.sum(jnp.ones(1000)) / normalizer
        >>> print(f"{normalizer:.2f} {loss:.2f}")
        84.80 11.79
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}: 1 would never take a batch into account")
    normalizer, count = jnp.asarray(normalizer), jnp.asarray(num_positives)
    for name, value in (("normalizer", normalizer), ("num_positives", count)):
        if value.ndim:
            raise ValueError(f"{name} has shape {value.shape}, expected a scalar, such as jnp.sum(is_positive)")
    if axis_name is not None:
        count = jax.lax.psum(count, axis_name)
    dtype = jnp.promote_types(normalizer.dtype, jnp.float32)
    count = jnp.maximum(count, 1).astype(dtype)
    return jax.lax.stop_gradient(momentum * normalizer.astype(dtype) + (1.0 - momentum) * count)


def _sum_and_count(loss: ArrayLike, is_positive: ArrayLike, is_ignored: ArrayLike | None) -> tuple[Array, Array]:
    loss, is_positive = jnp.asarray(loss), jnp.asarray(is_positive)
    is_ignored = jnp.zeros_like(is_positive) if is_ignored is None else jnp.asarray(is_ignored)
    for name, mask in (("is_positive", is_positive), ("is_ignored", is_ignored)):
        check_is_bool(name, mask)
    if is_positive.shape != loss.shape[: is_positive.ndim] or is_ignored.shape != is_positive.shape:
        raise ValueError(
            f"loss has shape {loss.shape}, is_positive {is_positive.shape}, is_ignored {is_ignored.shape}: "
            "the masks must be equal, and be the leading axes of loss"
        )
    extra_axes = tuple(range(is_positive.ndim, loss.ndim))
    is_counted = jnp.expand_dims(~is_ignored, extra_axes)
    # bfloat16 has no integer between 256 and 258, and float16 ends at 65504: neither can hold the sum or the count.
    loss = loss.astype(jnp.promote_types(loss.dtype, jnp.float32))
    total = jnp.sum(jnp.where(is_counted, loss, 0.0))
    return total, jnp.sum(is_positive & ~is_ignored)

"""Convolution and normalisation as the published detectors define them."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

NORMS = ("batch_norm", "frozen_batch_norm", "group_norm")

# He initialisation by the fan-out, as the published ResNets have it.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    features: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: Callable[..., Array] = he_normal_fan_out,
    bias_init: Callable[..., Array] = nn.initializers.zeros,
    dtype: Any = jnp.float32,
    name: str,
) -> nn.Conv:
    """Returns a square convolution that pads `kernel_size // 2` on every side.

    The padding is explicit because 'SAME' pads an even-sized input of a strided convolution on one side only, which
    moves every feature by half a stride against the published weights and against the anchors.

    One of size 1 without groups is computed as a matrix product, the same numbers, but on GPUs: XLA's CPU backend takes
    up to five times as long for the convolution, most of it in the gradient; its GPU compiler aborts at the product
    where the stride is 2, and chooses kernels for the others for more than a minute (docs/performance.md).
    """
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=kernel_size // 2,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        conv_general_dilated=_pointwise if kernel_size == 1 and groups == 1 else None,
        name=name,
    )


def _pointwise(x: Array, kernel: Array, window_strides: Sequence[int], *others: Any, **settings: Any) -> Array:
    """Stands in for `lax.conv_general_dilated` where the kernel is `[1, 1, I, O]`, without padding or dilation."""

    def convolution(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, window_strides, *others, **settings)

    def product(x: Array, kernel: Array) -> Array:
        down, right = window_strides
        x = x[:, ::down, ::right]
        rows = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=settings["precision"])
        return rows.reshape(*x.shape[:-1], -1)

    # Which one is known when the program is lowered; nothing of the other is left in it.
    return jax.lax.platform_dependent(x, kernel, cuda=convolution, rocm=convolution, default=product)


class BatchNorm(nn.Module):
    """Batch normalisation by the batch's statistics in training and by running ones otherwise, as torch defines it.

    y = (x - mean) / sqrt(var + epsilon) scale + bias, by channel. In training mean and var are the batch's, var divided
    by the number n of values a channel; the running ones move towards mean and n / (n - 1) var (towards var if n is 1).
    Flax's own moves towards var, and takes it as E[x^2] - E[x]^2, which loses what a large mean leaves of it.

    In a jitted function over several devices mean and var are those of the global batch.

    Attributes:
        use_running_average: whether the running statistics normalise; they do not change then.
        momentum: share of the running statistics that stays; 0.9 is what torch calls 0.1.
        epsilon: added to the variance.
        dtype: of the result; the arithmetic is float32 at least.
        scale_init: of `scale`.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithms 1 and 2.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: Callable[..., Array] = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `x` (`[..., C]`) normalised; apply with `mutable=['batch_stats']` in training."""
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = _statistics(x)
            if not self.is_initializing():
                n = x.size // x.shape[-1]
                unbiased = var * (n / max(n - 1, 1))
                for running, new in ((running_mean, mean), (running_var, unbiased)):
                    moved = self.momentum * running.value + (1 - self.momentum) * new
                    running.value = moved.astype(running.value.dtype)
        return ((x - mean) * (scale * jax.lax.rsqrt(var + self.epsilon)) + bias).astype(self.dtype)


def _statistics(x: Array) -> tuple[Array, Array]:
    """Returns the mean and the (biased) variance of each channel, `[C]`."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine parameters are all constants.

    They live in the collection `batch_stats`, so no optimiser sees them. At initialisation it is the identity (but for
    epsilon): of use with loaded weights only.

    Attributes:
        epsilon: added to the variance.
        dtype: of the result; the arithmetic is float32 at least.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `x` (`[..., C]`) normalised by the stored statistics."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
        var = self.variable("batch_stats", "var", jnp.ones, shape).value
        scale = self.variable("batch_stats", "scale", jnp.ones, shape).value
        bias = self.variable("batch_stats", "bias", jnp.zeros, shape).value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


def norm(
    kind: str,
    *,
    train: bool,
    epsilon: float = 1e-5,
    dtype: Any = jnp.float32,
    zero_scale: bool = False,
    name: str,
) -> nn.Module:
    """Returns a normalisation layer.

    Args:
        kind: one of `NORMS`. 'batch_norm': statistics of the (global) batch in training, running ones otherwise.
            'frozen_batch_norm': constants, for loaded weights. 'group_norm': 32 groups, or groups of 4 channels where
            there are fewer than 128 channels.
        train: whether batch statistics are used and the running ones updated.
        epsilon: added to the variance.
        dtype: of the result; statistics are float32 at least.
        zero_scale: start with scale 0, so that a residual block starts as the identity.
        name: the layer's name in the variables.

    Raises:
        ValueError: `kind` is not one of `NORMS`, or `epsilon` is negative.
    """
    if epsilon < 0:
        raise ValueError(f"epsilon of a norm must be at least 0, got {epsilon}")
    scale_init = nn.initializers.zeros if zero_scale else nn.initializers.ones
    if kind == "batch_norm":
        return BatchNorm(use_running_average=not train, epsilon=epsilon, dtype=dtype, scale_init=scale_init, name=name)
    if kind == "frozen_batch_norm":
        return FrozenBatchNorm(epsilon=epsilon, dtype=dtype, name=name)
    if kind == "group_norm":
        return _GroupNorm(scale_init=scale_init, epsilon=epsilon, dtype=dtype, name=name)
    raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {kind!r}")


class _GroupNorm(nn.Module):
    scale_init: Callable[..., Array]
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        groups = 32 if channels >= 128 else max(1, channels // 4)
        return nn.GroupNorm(
            num_groups=groups,
            epsilon=self.epsilon,
            # E[x^2] - E[x]^2 would be a quarter faster on CPU, and in float32 wrong by 1% at a mean of 100 deviations.
            use_fast_variance=False,
            dtype=self.dtype,
            scale_init=self.scale_init,
            name="group_norm",
        )(x)

"""Convolution and normalisation as the published detectors define them."""

from collections.abc import Callable
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
    use_bias: bool = False,
    kernel_init: Callable[..., Array] = he_normal_fan_out,
    bias_init: Callable[..., Array] = nn.initializers.zeros,
    dtype: Any = jnp.float32,
    name: str,
) -> nn.Conv:
    """Returns a square convolution that pads `kernel_size // 2` on every side.

    The padding is explicit because 'SAME' pads an even-sized input of a strided convolution on one side only, which
    moves every feature by half a stride against the published weights and against the anchors.
    """
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=kernel_size // 2,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        name=name,
    )


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine parameters are all constants.

    They live in the collection `batch_stats`, so no optimiser sees them. At initialisation it is the identity (but for
    epsilon): of use with loaded weights only.

    Attributes:
        epsilon: added to the variance.
        dtype: of the result; the arithmetic is float32.
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
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(self.dtype)


def norm(kind: str, *, train: bool, dtype: Any = jnp.float32, zero_scale: bool = False, name: str) -> nn.Module:
    """Returns a normalisation layer.

    Args:
        kind: one of `NORMS`. 'batch_norm': statistics of the (global) batch in training, running ones otherwise.
            'frozen_batch_norm': constants, for loaded weights. 'group_norm': 32 groups, or groups of 4 channels where
            there are fewer than 128 channels.
        train: whether batch statistics are used and the running ones updated.
        dtype: of the result; statistics are float32.
        zero_scale: start with scale 0, so that a residual block starts as the identity.
        name: the layer's name in the variables.

    Raises:
        ValueError: `kind` is not one of `NORMS`.
    """
    scale_init = nn.initializers.zeros if zero_scale else nn.initializers.ones
    if kind == "batch_norm":
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=scale_init, name=name
        )
    if kind == "frozen_batch_norm":
        return FrozenBatchNorm(dtype=dtype, name=name)
    if kind == "group_norm":
        return _group_norm(scale_init, dtype, name)
    raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {kind!r}")


class _GroupNorm(nn.Module):
    scale_init: Callable[..., Array]
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        groups = 32 if channels >= 128 else max(1, channels // 4)
        return nn.GroupNorm(
            num_groups=groups, epsilon=1e-5, dtype=self.dtype, scale_init=self.scale_init, name="group_norm"
        )(x)


def _group_norm(scale_init: Callable[..., Array], dtype: Any, name: str) -> nn.Module:
    return _GroupNorm(scale_init=scale_init, dtype=dtype, name=name)

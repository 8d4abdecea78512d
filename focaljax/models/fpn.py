"""The feature pyramid: P3 to P7 from C3 to C5."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from focaljax.models.layers import conv

Array = jax.Array

P6_SOURCES = ("c5", "p5")

# As in torchvision: uniform in +-sqrt(3 / fan_in), which keeps the variance of a linear layer.
_fpn_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FeaturePyramid(nn.Module):
    """A feature pyramid with the two coarse levels of RetinaNet.

    Lateral 1x1 convolutions, a top-down pathway of nearest-neighbour upsampling and addition, and a 3x3 convolution on
    each merged map give P3 to P5; P6 is a stride-2 3x3 convolution on C5 (the paper) or P5, P7 one on relu(P6).
    Sources: Lin et al. 2016 (arXiv 1612.03144), section 3; Lin et al. 2017 (arXiv 1708.02002), section 4, footnote 2.

    Attributes:
        channels: of every level; 256 in the paper.
        levels: consecutive, the finest in 2..5, the coarsest at most 7.
        p6_from: one of `P6_SOURCES`.
        dtype: of the activations.
    """

    channels: int = 256
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    p6_from: str = "c5"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[int, Array]) -> tuple[Array, ...]:
        """Returns the pyramid, finest level first, each `[B, h, w, channels]`.

        Args:
            features: the backbone's by level; those of the pyramid's levels up to 5 are used.

        Raises:
            ValueError: `p6_from` is unknown, or `levels` are not as above.
        """
        if self.p6_from not in P6_SOURCES:
            raise ValueError(f"p6_from must be one of {', '.join(P6_SOURCES)}, got {self.p6_from!r}")
        _check_levels(self.levels)
        lateral_levels = [level for level in self.levels if level <= 5]
        merged: dict[int, Array] = {}
        for level in reversed(lateral_levels):
            lateral = self._conv(1, f"lateral{level}")(features[level])
            if level + 1 in merged:
                lateral = lateral + _upsample_to(merged[level + 1], lateral.shape)
            merged[level] = lateral
        pyramid = {level: self._conv(3, f"output{level}")(merged[level]) for level in lateral_levels}
        if 6 in self.levels:
            source = features[5] if self.p6_from == "c5" else pyramid[5]
            pyramid[6] = self._conv(3, "p6", stride=2)(source)
        if 7 in self.levels:
            pyramid[7] = self._conv(3, "p7", stride=2)(nn.relu(pyramid[6]))
        return tuple(pyramid[level] for level in self.levels)

    def _conv(self, kernel_size: int, name: str, stride: int = 1) -> nn.Conv:
        return conv(
            self.channels,
            kernel_size,
            stride=stride,
            use_bias=True,
            kernel_init=_fpn_init,
            dtype=self.dtype,
            name=name,
        )


def _check_levels(levels: tuple[int, ...]) -> None:
    pyramids = [tuple(range(finest, coarsest + 1)) for finest in range(2, 6) for coarsest in range(finest, 8)]
    if tuple(levels) not in pyramids:
        raise ValueError(
            "levels must be consecutive, the finest in 2..5 and the coarsest at most 7, such as (3, 4, 5, 6, 7), "
            f"got {levels}"
        )


def _upsample_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Returns `x` with every pixel doubled, cut to `[B, h, w, C]`: nearest-neighbour upsampling, for odd sizes too."""
    doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return doubled[:, : shape[1], : shape[2]]

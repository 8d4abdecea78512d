"""ResNet backbones: features C2 to C5, with strides 4 to 32."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from focaljax.models.layers import conv, norm

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ResNetShape:
    """What distinguishes one ResNet from another.

    Attributes:
        blocks: number of blocks in each of the four stages.
        widths: channels inside the blocks of each stage.
        expansion: output channels of a block over its width; 1: basic blocks, 4: bottlenecks.
        stem_width: channels of the stem.
        stem_kernel: side of the stem's convolution.
        has_max_pool: whether the stem is a convolution with stride 2 and 3x3 max pooling with stride 2, as in all
            published ResNets; else it is a convolution with stride 4.
    """

    blocks: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    expansion: int = 1
    stem_width: int = 64
    stem_kernel: int = 7
    has_max_pool: bool = True


RESNETS = {
    # Ours, for CPUs, where layers of few channels at a fine resolution and the gradient of max pooling take XLA longer
    # than their arithmetic would: the stem goes to stride 4 at once.
    "resnet_tiny": ResNetShape((1, 1, 1, 1), widths=(32, 48, 96, 128), stem_width=32, has_max_pool=False),
    # He et al. 2015 (arXiv 1512.03385), table 1.
    "resnet18": ResNetShape((2, 2, 2, 2)),
    "resnet34": ResNetShape((3, 4, 6, 3)),
    "resnet50": ResNetShape((3, 4, 6, 3), expansion=4),
    "resnet101": ResNetShape((3, 4, 23, 3), expansion=4),
    "resnet152": ResNetShape((3, 8, 36, 3), expansion=4),
}


class ResNet(nn.Module):
    """A ResNet without its classifier (He et al. 2015, arXiv 1512.03385).

    The stride of a bottleneck is in its 3x3 convolution, as in torchvision's ('v1.5') and unlike in the paper. The last
    normalisation of each block starts at zero where it is trained, so that a new network starts as a shallow one.

    Attributes:
        shape: one of the values of `RESNETS`.
        norm: one of `focaljax.models.layers.NORMS`.
        dtype: of the activations; parameters are float32.
    """

    shape: ResNetShape
    norm: str = "batch_norm"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> dict[int, Array]:
        """Returns the features by level, `{2: C2, ..., 5: C5}`; C_l is `[B, ceil(H / 2^l), ceil(W / 2^l), channels]`.

        Args:
            images: `[B, H, W, 3]`, normalised.
            train: batch statistics are used and updated (see `focaljax.models.layers.norm`).
        """
        shape = self.shape
        stem_stride = 2 if shape.has_max_pool else 4
        x = conv(shape.stem_width, shape.stem_kernel, stride=stem_stride, dtype=self.dtype, name="conv1")(images)
        x = norm(self.norm, train=train, dtype=self.dtype, name="bn1")(x)
        x = nn.relu(x)
        if shape.has_max_pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        features = {}
        for stage, (blocks, width) in enumerate(zip(shape.blocks, shape.widths, strict=True), start=1):
            for block in range(blocks):
                x = _Block(
                    width=width,
                    expansion=shape.expansion,
                    stride=2 if block == 0 and stage > 1 else 1,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"layer{stage}_{block}",
                )(x, train=train)
            features[stage + 1] = x
        return features


class _Block(nn.Module):
    width: int
    expansion: int
    stride: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        # (kernel size, stride, channels) of the residual branch.
        if self.expansion == 1:
            convs = [(3, self.stride, self.width), (3, 1, self.width)]
        else:
            convs = [(1, 1, self.width), (3, self.stride, self.width), (1, 1, self.width * self.expansion)]
        channels = self.width * self.expansion
        y = x
        for i, (kernel_size, stride, width) in enumerate(convs, start=1):
            is_last = i == len(convs)
            y = conv(width, kernel_size, stride=stride, dtype=self.dtype, name=f"conv{i}")(y)
            y = norm(self.norm, train=train, dtype=self.dtype, zero_scale=is_last, name=f"bn{i}")(y)
            if not is_last:
                y = nn.relu(y)
        if self.stride != 1 or x.shape[-1] != channels:
            x = conv(channels, 1, stride=self.stride, dtype=self.dtype, name="downsample_conv")(x)
            x = norm(self.norm, train=train, dtype=self.dtype, name="downsample_bn")(x)
        return nn.relu(x + y)

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
        groups: of a bottleneck's 3x3 convolution; more than 1 in a ResNeXt.
        width_per_group: channels of each of these groups in a block of width 64, and in proportion in the others.
        stem_width: channels of the stem.
        stem_kernel: side of the stem's convolution.
        has_max_pool: whether the stem is a convolution with stride 2 and 3x3 max pooling with stride 2, as in all
            published ResNets; else it is a convolution with stride 4.
    """

    blocks: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    expansion: int = 1
    groups: int = 1
    width_per_group: int = 64
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
    # Xie et al. 2016 (arXiv 1611.05431), table 1.
    "resnext50_32x4d": ResNetShape((3, 4, 6, 3), expansion=4, groups=32, width_per_group=4),
    "resnext101_64x4d": ResNetShape((3, 4, 23, 3), expansion=4, groups=64, width_per_group=4),
}


class ResNet(nn.Module):
    """A ResNet without its classifier (He et al. 2015, arXiv 1512.03385).

    The last normalisation of each block starts at zero where it is trained, so that a new network starts as a shallow
    one.

    Attributes:
        shape: one of the values of `RESNETS`.
        norm: one of `focaljax.models.layers.NORMS`.
        norm_epsilon: added to the variance.
        stride_in_1x1: where a bottleneck has its stride: in its first convolution, as in the paper, Caffe's weights and
            detectron2's, or in its 3x3 convolution, as in torchvision ('v1.5').
        freeze_at: so many of the network's five parts, the stem and four stages, are frozen, as detectron2 counts them:
            2 is the stem and the stage of C2. A frozen part has its running statistics and no gradient, and no backward
            pass is computed for it.
        dtype: of the activations; parameters are created in float32.
        remat: the backward pass computes what is inside each block anew instead of keeping it.
    """

    shape: ResNetShape
    norm: str = "batch_norm"
    norm_epsilon: float = 1e-5
    stride_in_1x1: bool = False
    freeze_at: int = 0
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> dict[int, Array]:
        """Returns the features by level, `{2: C2, ..., 5: C5}`; C_l is `[B, ceil(H / 2^l), ceil(W / 2^l), channels]`.

        Args:
            images: `[B, H, W, 3]`, normalised.
            train: batch statistics are used and updated (see `focaljax.models.layers.norm`), but in frozen parts.

        Raises:
            ValueError: `norm` is unknown, `freeze_at` is not in 0..5, or `stride_in_1x1` is asked of basic blocks.
        """
        shape = self.shape
        check_freeze_at(self.freeze_at)
        if self.stride_in_1x1 and shape.expansion == 1:
            raise ValueError("stride_in_1x1 is for bottlenecks (resnet50 and larger); the blocks here have no 1x1")
        stem_stride = 2 if shape.has_max_pool else 4
        is_frozen = self.freeze_at >= 1
        x = conv(shape.stem_width, shape.stem_kernel, stride=stem_stride, dtype=self.dtype, name="conv1")(images)
        x = norm(self.norm, train=train and not is_frozen, epsilon=self.norm_epsilon, dtype=self.dtype, name="bn1")(x)
        x = nn.relu(x)
        if shape.has_max_pool:
            # Padded by itself, which XLA puts back into the window: jax2onnx 0.17 loses the padding of a pooling.
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
        x = jax.lax.stop_gradient(x) if is_frozen else x
        features = {}
        block_type = nn.remat(_Block, static_argnums=2) if self.remat else _Block
        for stage, (blocks, width) in enumerate(zip(shape.blocks, shape.widths, strict=True), start=1):
            is_frozen = self.freeze_at > stage
            for block in range(blocks):
                x = block_type(
                    shape=shape,
                    width=width,
                    stride=2 if block == 0 and stage > 1 else 1,
                    stride_in_1x1=self.stride_in_1x1,
                    norm=self.norm,
                    norm_epsilon=self.norm_epsilon,
                    dtype=self.dtype,
                    name=f"layer{stage}_{block}",
                )(x, train and not is_frozen)
            x = jax.lax.stop_gradient(x) if is_frozen else x
            features[stage + 1] = x
        return features


class _Block(nn.Module):
    shape: ResNetShape
    width: int
    stride: int
    stride_in_1x1: bool
    norm: str
    norm_epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = self.width * self.shape.expansion
        y = x
        layers = self._layers()
        for i, (kernel_size, stride, groups, width) in enumerate(layers, start=1):
            is_last = i == len(layers)
            y = conv(width, kernel_size, stride=stride, groups=groups, dtype=self.dtype, name=f"conv{i}")(y)
            y = self._norm(f"bn{i}", train=train, zero_scale=is_last)(y)
            if not is_last:
                y = nn.relu(y)
        if self.stride != 1 or x.shape[-1] != channels:
            x = conv(channels, 1, stride=self.stride, dtype=self.dtype, name="downsample_conv")(x)
            x = self._norm("downsample_bn", train=train)(x)
        return nn.relu(x + y)

    def _layers(self) -> list[tuple[int, int, int, int]]:
        """Kernel size, stride, groups and channels of the residual branch's convolutions."""
        if self.shape.expansion == 1:
            return [(3, self.stride, 1, self.width), (3, 1, 1, self.width)]
        groups = self.shape.groups
        inner = self.width * self.shape.width_per_group // 64 * groups
        strides = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        return [(1, strides[0], 1, inner), (3, strides[1], groups, inner), (1, 1, 1, self.width * self.shape.expansion)]

    def _norm(self, name: str, *, train: bool, zero_scale: bool = False) -> nn.Module:
        return norm(
            self.norm, train=train, epsilon=self.norm_epsilon, dtype=self.dtype, zero_scale=zero_scale, name=name
        )


def check_freeze_at(freeze_at: int) -> None:
    """Raises a ValueError unless `freeze_at` is a number of parts of a ResNet, 0..5."""
    if freeze_at not in range(6):
        raise ValueError(
            f"freeze_at must be the number of frozen parts in 0..5 (0: none, 1: stem, 2: stem and C2), got {freeze_at}"
        )


def frozen_parameters(params: Any, freeze_at: int) -> Any:
    """Returns which parameters of a detector are frozen: bool for each, in the structure of `params`.

    For the optimiser: frozen parameters have the gradient 0, yet weight decay would move them.

    Args:
        params: of a `RetinaNet`, `{'backbone': ..., ...}`.
        freeze_at: that of the model, in 0..5.

    Raises:
        ValueError: `freeze_at` is not in 0..5, or `params` has no backbone.

    Example:
        >>> params = {"backbone": {"conv1": 0.0, "layer1_0": 0.0, "layer2_0": 0.0}, "fpn": 0.0}
        >>> frozen_parameters(params, 2)
        {'backbone': {'conv1': True, 'layer1_0': True, 'layer2_0': False}, 'fpn': False}
    """
    check_freeze_at(freeze_at)
    if "backbone" not in params:
        raise ValueError(f"params must be a detector's, with a 'backbone'; got {', '.join(map(str, params)) or 'none'}")
    stages = tuple(f"layer{stage}_" for stage in range(1, freeze_at))
    stem = ("conv1", "bn1") if freeze_at else ()

    def is_frozen(path: tuple[Any, ...], _: Any) -> bool:
        room, *inside = (key.key for key in path)
        return room == "backbone" and (inside[0] in stem or inside[0].startswith(stages))

    return jax.tree_util.tree_map_with_path(is_frozen, params)

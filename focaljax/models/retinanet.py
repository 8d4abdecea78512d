"""RetinaNet: a ResNet, a feature pyramid, and two subnets shared over its levels."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from focaljax.models.fpn import FeaturePyramid
from focaljax.models.layers import conv, norm
from focaljax.models.resnet import RESNETS, ResNet

Array = jax.Array

# Of ImageNet, for RGB in 0..255; what the published backbones were trained with.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

CHANNEL_ORDERS = ("rgb", "bgr")


def normalize_images(
    images: Array,
    sizes: Array,
    *,
    mean: tuple[float, ...] = PIXEL_MEAN,
    std: tuple[float, ...] = PIXEL_STD,
    channel_order: str = "rgb",
) -> Array:
    """Returns the images with mean 0 and standard deviation 1 by channel, and 0 in their padding.

    Args:
        images: uint8 (or floating point in 0..255) `[B, H, W, 3]`, RGB.
        sizes: int `[B, 2]`, height and width of each image inside its padding.
        mean: for each channel, in 0..255, in `channel_order`.
        std: likewise.
        channel_order: of the result, 'rgb' or 'bgr'.

    Returns:
        float32 `[B, H, W, 3]`; float64 for float64.

    Raises:
        ValueError: `channel_order` is neither, or an argument has another shape.
    """
    if images.ndim != 4 or images.shape[3] != 3 or sizes.shape != (images.shape[0], 2):
        raise ValueError(f"images must be [B, H, W, 3] and sizes [B, 2], got {images.shape} and {sizes.shape}")
    if channel_order not in CHANNEL_ORDERS:
        raise ValueError(f"channel_order must be one of {', '.join(CHANNEL_ORDERS)}, got {channel_order!r}")
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    images = images if channel_order == "rgb" else images[..., ::-1]
    normalized = (images.astype(dtype) - jnp.asarray(mean, dtype)) * (1.0 / jnp.asarray(std, dtype))
    rows = jnp.arange(images.shape[1])[None, :] < sizes[:, :1]
    columns = jnp.arange(images.shape[2])[None, :] < sizes[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], normalized, 0.0)


def prior_bias(prior: float) -> float:
    """Returns the bias b with sigmoid(b) = prior: every anchor starts as an object with that probability.

    With it the many background anchors start with a small loss; without it they swamp the first steps.

    Args:
        prior: pi, in (0, 1).

    Source: Lin et al. 2017 (arXiv 1708.02002), sections 3.3 and 4.1, 'Initialization'.

    Example:
        >>> round(prior_bias(0.01), 4)
        -4.5951
    """
    if not 0.0 < prior < 1.0:
        raise ValueError(f"prior must be between 0 and 1, got {prior}")
    return -math.log((1.0 - prior) / prior)


class Subnet(nn.Module):
    """A small fully convolutional network: `depth` times 3x3 convolution and ReLU, then a 3x3 convolution.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 4, 'Classification Subnet'; section 4.1, 'Initialization'.

    Attributes:
        outputs: channels of the last layer.
        depth: number of hidden layers; 4 in the paper.
        channels: of the hidden layers; 256 in the paper.
        norm: None (the paper), or a normalisation after each hidden convolution.
        output_bias: initial bias of the last layer.
        init_std: standard deviation of the hidden layers' initial weights; 0.01 in the paper, as it always is in the
            last layer.
        dtype: of the hidden activations; the output is float32 at least.
    """

    outputs: int
    depth: int = 4
    channels: int = 256
    norm: str | None = None
    output_bias: float = 0.0
    init_std: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns `[B, h, w, outputs]` for a pyramid level `[B, h, w, C]`."""
        for i in range(self.depth):
            x = conv(
                self.channels,
                3,
                use_bias=self.norm is None,
                kernel_init=nn.initializers.normal(self.init_std),
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            if self.norm is not None:
                x = norm(self.norm, train=train, dtype=self.dtype, name=f"norm{i}")(x)
            x = nn.relu(x)
        output = conv(
            self.outputs,
            3,
            use_bias=True,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(self.output_bias),
            dtype=self.dtype,
            name="output",
        )(x)
        return output.astype(jnp.promote_types(self.dtype, jnp.float32))


class RetinaNet(nn.Module):
    """RetinaNet (Lin et al. 2017, arXiv 1708.02002, section 4).

    The defaults are the paper's.

    Attributes:
        num_classes: K, background not counted.
        anchors_per_position: scales times ratios.
        backbone: a name in `focaljax.models.resnet.RESNETS`.
        norm: the backbone's, one of `focaljax.models.layers.NORMS`.
        norm_epsilon: the backbone's; 0 with torchvision's published weights of version 1.
        stride_in_1x1: the backbone's, see `ResNet`; True with detectron2's weights.
        freeze_at: how many of the backbone's five parts are frozen, see `ResNet` and `frozen_parameters`.
        levels: of the pyramid.
        fpn_channels: of the pyramid.
        p6_from: 'c5' or 'p5'.
        head_depth: hidden layers of each subnet.
        head_channels: their channels.
        head_norm: None, or one of `NORMS`.
        head_init_std: standard deviation of the initial weights of the subnets' hidden layers.
        prior: pi, the initial score of every anchor.
        dtype: of the activations; parameters are created in float32, and outputs are float32 at least. With float64
            (x64 mode) and variables in float64 the whole network is computed in float64.
        remat: the backward pass computes what is inside the backbone's blocks and the subnets anew instead of keeping
            it: less memory, about a third more arithmetic, the same numbers.
    """

    num_classes: int
    anchors_per_position: int = 9
    backbone: str = "resnet50"
    norm: str = "frozen_batch_norm"
    norm_epsilon: float = 1e-5
    stride_in_1x1: bool = False
    freeze_at: int = 0
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    fpn_channels: int = 256
    p6_from: str = "c5"
    head_depth: int = 4
    head_channels: int = 256
    head_norm: str | None = None
    head_init_std: float = 0.01
    prior: float = 0.01
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Returns class logits and box deltas for each pyramid level, in the order of `pyramid_anchors`.

        Args:
            images: float `[B, H, W, 3]`, normalised (`normalize_images`).
            train: batch statistics are used and updated; apply with `mutable=['batch_stats']` then.

        Returns:
            `class_logits`, for each level `[B, A_l, K]`, and `box_deltas`, `[B, A_l, 4]`; both float32 at least.

        Raises:
            ValueError: `backbone`, `norm`, `head_norm` or `p6_from` is unknown, or another attribute is impossible.
        """
        if self.backbone not in RESNETS:
            raise ValueError(f"backbone must be one of {', '.join(RESNETS)}, got {self.backbone!r}")
        features = ResNet(
            RESNETS[self.backbone],
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            stride_in_1x1=self.stride_in_1x1,
            freeze_at=self.freeze_at,
            dtype=self.dtype,
            remat=self.remat,
            name="backbone",
        )(images.astype(self.dtype), train=train)
        pyramid = FeaturePyramid(
            self.fpn_channels, levels=self.levels, p6_from=self.p6_from, dtype=self.dtype, name="fpn"
        )(features)
        class_head = self._subnet("class_head", self.num_classes, output_bias=prior_bias(self.prior))
        box_head = self._subnet("box_head", 4, output_bias=0.0)
        class_logits = tuple(_per_anchor(class_head(level, train), self.num_classes) for level in pyramid)
        box_deltas = tuple(_per_anchor(box_head(level, train), 4) for level in pyramid)
        return class_logits, box_deltas

    def _subnet(self, name: str, outputs_per_anchor: int, output_bias: float) -> Subnet:
        subnet = nn.remat(Subnet, static_argnums=2) if self.remat else Subnet
        return subnet(
            outputs=self.anchors_per_position * outputs_per_anchor,
            depth=self.head_depth,
            channels=self.head_channels,
            norm=self.head_norm,
            output_bias=output_bias,
            init_std=self.head_init_std,
            dtype=self.dtype,
            name=name,
        )


def _per_anchor(x: Array, outputs: int) -> Array:
    """Returns `[B, h, w, anchors x outputs]` as `[B, h w anchors, outputs]`."""
    return x.reshape(x.shape[0], -1, outputs)

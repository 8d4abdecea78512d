"""The published RetinaNets by name: everything in which one differs from another, in one table."""

import dataclasses
from typing import Any

from focaljax.models.retinanet import PIXEL_MEAN, PIXEL_STD
from focaljax.models.weight_names import nearest


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network.

    Attributes:
        min_size: length of the shorter side after resizing, in pixels, unless `max_size` is in the way.
        max_size: length that the longer side does not exceed, in pixels.
        pad_multiple: height and width of a batch are padded with zeros to a multiple of this, right and below.
        pixel_mean: of each channel in `channel_order`, in 0..255; subtracted.
        pixel_std: likewise; divides.
        channel_order: 'rgb' or 'bgr', in which the network takes the channels.
        keeps_aspect_ratio: whether height and width are resized by one factor; else the image becomes
            `min_size` x `max_size`, stretched.
    """

    min_size: int = 800
    max_size: int = 1333
    pad_multiple: int = 32
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_std: tuple[float, float, float] = PIXEL_STD
    channel_order: str = "rgb"
    keeps_aspect_ratio: bool = True


@dataclasses.dataclass(frozen=True)
class Variant:
    """A published RetinaNet.

    Attributes:
        model: attributes of `focaljax.models.retinanet.RetinaNet` besides the number of classes and of anchors.
        anchors: arguments of `focaljax.detection.pyramid_anchors` besides the image size and the levels.
        num_classes: outputs per anchor. torchvision counts the background, as class 0, which no anchor has.
        preprocessing: of the images.
        matching: arguments of `focaljax.detection.assign_anchors`.
        loss: entries of a config's `loss`.
        thresholds: arguments of `focaljax.detection.postprocess`.
    """

    model: dict[str, Any]
    anchors: dict[str, Any]
    num_classes: int
    preprocessing: Preprocessing
    matching: dict[str, Any]
    loss: dict[str, Any]
    thresholds: dict[str, Any]

    @property
    def anchors_per_position(self) -> int:
        """Scales times ratios."""
        return len(self.anchors["scales"]) * len(self.anchors["ratios"])


_PAPER_MODEL: dict[str, Any] = {
    "backbone": "resnet50",
    "norm": "frozen_batch_norm",
    "norm_epsilon": 1e-5,
    "stride_in_1x1": False,
    "freeze_at": 0,
    "levels": (3, 4, 5, 6, 7),
    "fpn_channels": 256,
    "p6_from": "c5",
    "head_depth": 4,
    "head_channels": 256,
    "head_norm": None,
    "prior": 0.01,
}
# torchvision and MLPerf freeze the stem and the first stage of a pretrained backbone, of five parts.
_TORCHVISION_MODEL = {**_PAPER_MODEL, "p6_from": "p5", "freeze_at": 2}
_DETECTRON2_MODEL = {**_PAPER_MODEL, "stride_in_1x1": True, "freeze_at": 2}

_PAPER_ANCHORS: dict[str, Any] = {
    "layout": "centered",
    "sizes": (32.0, 64.0, 128.0, 256.0, 512.0),
    "scales": (1.0, 2.0 ** (1 / 3), 2.0 ** (2 / 3)),
    "ratios": (0.5, 1.0, 2.0),
}
_TORCHVISION_ANCHORS = {**_PAPER_ANCHORS, "layout": "torchvision"}

# The paper does not speak of low-quality matches; its authors' code makes them, as do the others here.
_MATCHING: dict[str, Any] = {
    "positive_iou": 0.5,
    "negative_iou": 0.4,
    "low_quality": True,
    "low_quality_at_zero": False,
}
# Equal to torchvision and detectron2, with their fault: a box that meets no anchor assigns all that it does not meet.
_MATCHING_AT_ZERO = {**_MATCHING, "low_quality_at_zero": True}

_PAPER_LOSS: dict[str, Any] = {
    "classification": "focal",
    "alpha": 0.25,
    "gamma": 2.0,
    "box": "smooth_l1",
    "beta": 0.11,  # not in the paper; the authors' code
    "box_weight": 1.0,
    "normalizer": "image",
}
_L1_LOSS = {**_PAPER_LOSS, "box": "l1"}
# detectron2's smooth L1 has the width 0, which is L1. It divides by a moving average of the batch's assigned anchors;
# the batch's own number is what that averages.
_DETECTRON2_LOSS = {**_L1_LOSS, "normalizer": "batch"}

_PAPER_THRESHOLDS: dict[str, Any] = {
    "score_threshold": 0.05,
    "pre_nms_top_k": 1000,
    "nms_iou": 0.5,
    "max_detections": 100,  # COCO's
}
_TORCHVISION_THRESHOLDS = {**_PAPER_THRESHOLDS, "max_detections": 300}

_DETECTRON2 = Variant(
    model=_DETECTRON2_MODEL,
    anchors=_PAPER_ANCHORS,
    num_classes=80,
    # Its ImageNet weights are Caffe's: the standard deviation is in the first layer's weights.
    preprocessing=Preprocessing(pixel_mean=PIXEL_MEAN[::-1], pixel_std=(1.0, 1.0, 1.0), channel_order="bgr"),
    matching=_MATCHING_AT_ZERO,
    loss=_DETECTRON2_LOSS,
    thresholds=_PAPER_THRESHOLDS,
)
_TORCHVISION_V1 = Variant(
    # As with the published COCO weights, which were trained before the normalisation had an epsilon.
    model={**_TORCHVISION_MODEL, "norm_epsilon": 0.0},
    anchors=_TORCHVISION_ANCHORS,
    num_classes=91,
    preprocessing=Preprocessing(),
    matching=_MATCHING_AT_ZERO,
    loss=_L1_LOSS,
    thresholds=_TORCHVISION_THRESHOLDS,
)

VARIANTS: dict[str, Variant] = {
    # Lin et al. 2017 (arXiv 1708.02002), sections 4 and 5, the setting of its ablations: R50 at 600 px. The longest
    # side is not in the paper; 1000 goes with 600 since Girshick 2015 (arXiv 1504.08083).
    "paper": Variant(
        model=_PAPER_MODEL,
        anchors=_PAPER_ANCHORS,
        num_classes=80,
        preprocessing=Preprocessing(min_size=600, max_size=1000),
        matching=_MATCHING,
        loss=_PAPER_LOSS,
        thresholds=_PAPER_THRESHOLDS,
    ),
    # retinanet_resnet50_fpn
    "torchvision_v1": _TORCHVISION_V1,
    # retinanet_resnet50_fpn_v2. torchvision, given a pretrained backbone, stops the gradients of its first two parts
    # but goes on updating their statistics; freeze_at would stop both, so nothing is frozen here.
    "torchvision_v2": Variant(
        model={
            **_TORCHVISION_MODEL,
            "norm": "batch_norm",
            "p6_from": "c5",
            "head_norm": "group_norm",
            "freeze_at": 0,
        },
        anchors=_TORCHVISION_ANCHORS,
        num_classes=91,
        preprocessing=Preprocessing(),
        matching=_MATCHING_AT_ZERO,
        loss={**_PAPER_LOSS, "box": "giou"},
        thresholds=_TORCHVISION_THRESHOLDS,
    ),
    # MLPerf Training's single-stage detector, on OpenImages' 264 MLPerf classes; the background is not counted.
    "mlperf": dataclasses.replace(
        _TORCHVISION_V1,
        model={**_TORCHVISION_MODEL, "backbone": "resnext50_32x4d"},
        num_classes=264,
        preprocessing=Preprocessing(min_size=800, max_size=800, keeps_aspect_ratio=False),
    ),
    # COCO-Detection/retinanet_R_50_FPN_1x and 3x; retinanet_R_101_FPN_3x.
    "detectron2_r50": _DETECTRON2,
    "detectron2_r101": dataclasses.replace(_DETECTRON2, model={**_DETECTRON2_MODEL, "backbone": "resnet101"}),
}


def variant_named(name: str) -> Variant:
    """Returns the published RetinaNet of this name in `VARIANTS`.

    Raises:
        ValueError: there is none.

    Example:
        >>> variant_named("torchvision_v3")
        Traceback (most recent call last):
        ValueError: unknown variant 'torchvision_v3' (did you mean 'torchvision_v2'?): variant must be one of paper, ...
    """
    if name not in VARIANTS:
        raise ValueError(
            f"unknown variant {name!r}{nearest(name, list(VARIANTS))}: variant must be one of {', '.join(VARIANTS)}"
        )
    return VARIANTS[name]

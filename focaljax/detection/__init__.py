"""Detection geometry on arrays: boxes, anchors, targets (matching) and postprocessing; needs nothing but jax.

Functions are for one image, of fixed shape, and meant for `jax.vmap` over the batch.
"""

from focaljax.detection.anchors import feature_shape, pyramid_anchors
from focaljax.detection.boxes import (
    box_area,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    pairwise_intersection,
    pairwise_iou,
)
from focaljax.detection.postprocess import Detections, non_maximum_suppression, postprocess
from focaljax.detection.targets import AnchorTargets, assign_anchors

__all__ = [
    "AnchorTargets",
    "Detections",
    "assign_anchors",
    "box_area",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "feature_shape",
    "non_maximum_suppression",
    "pairwise_intersection",
    "pairwise_iou",
    "postprocess",
    "pyramid_anchors",
]

"""Detection geometry on arrays: boxes, anchors, targets (matching) and postprocessing; needs nothing but jax.

Functions are for one image, of fixed shape, and meant for `jax.vmap` over the batch.
"""

from focaljax.detection.anchors import feature_shape, pyramid_anchors
from focaljax.detection.augmented import flip_boxes, merge_views, rescale_boxes
from focaljax.detection.boxes import (
    box_area,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    pairwise_intersection,
    pairwise_iou,
)
from focaljax.detection.nms import Detections, nms_mask, non_maximum_suppression
from focaljax.detection.postprocess import Candidates, candidates, postprocess, softmax_log_odds, suppress
from focaljax.detection.soft_nms import gaussian_soft_nms, linear_soft_nms
from focaljax.detection.targets import AnchorTargets, assign_anchors

__all__ = [
    "AnchorTargets",
    "Candidates",
    "Detections",
    "assign_anchors",
    "box_area",
    "candidates",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "feature_shape",
    "flip_boxes",
    "gaussian_soft_nms",
    "linear_soft_nms",
    "merge_views",
    "nms_mask",
    "non_maximum_suppression",
    "pairwise_intersection",
    "pairwise_iou",
    "postprocess",
    "pyramid_anchors",
    "rescale_boxes",
    "softmax_log_odds",
    "suppress",
]

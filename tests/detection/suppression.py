"""Compiled suppression, and crowds of boxes for it."""

import hypothesis.strategies as st
import jax
import numpy as np

from focaljax.detection import gaussian_soft_nms, linear_soft_nms, non_maximum_suppression

ROWS = 300

nms = jax.jit(non_maximum_suppression, static_argnames=("iou_threshold", "max_detections"))
linear = jax.jit(linear_soft_nms, static_argnames=("iou_threshold", "min_score", "max_detections"))
gaussian = jax.jit(gaussian_soft_nms, static_argnames=("sigma", "min_score", "max_detections"))


def iou(box, boxes):
    """In float64, 0 where there is no area."""
    box, boxes = np.asarray(box, np.float64), np.asarray(boxes, np.float64)
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


@st.composite
def crowds(draw, rows=ROWS):
    """Boxes with whole corners, for which comparing an IoU with a half is exact; many scores equal; padding rows."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    extent, side = draw(st.sampled_from([(1, 1), (6, 5), (30, 12), (400, 60)]))
    corner = random.integers(0, extent, (rows, 2))
    boxes = np.concatenate([corner, corner + random.integers(0, side, (rows, 2), endpoint=True)], axis=1)
    num_scores = draw(st.sampled_from([1, 3, 2**20]))
    scores = random.integers(1, num_scores, rows, endpoint=True) / num_scores
    share_of_padding = draw(st.sampled_from([0.0, 0.0, 0.5, 0.99, 1.0]))
    scores[random.random(rows) < share_of_padding] = 0
    labels = random.integers(0, draw(st.sampled_from([1, 2, 80])), rows)
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)

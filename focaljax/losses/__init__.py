"""Losses: one value per element, with the reductions beside them; needs nothing but jax.

`from focaljax import losses` is all that another JAX model has to write.
"""

from focaljax.losses.binary import binary_focal_loss
from focaljax.losses.box import ciou_loss, diou_loss, giou_loss, iou_loss, l1, smooth_l1
from focaljax.losses.ghm import ghm_classification_loss, ghm_counts
from focaljax.losses.mining import hard_negative_mask, ohem_mask
from focaljax.losses.reductions import (
    INITIAL_EMA_NORMALIZER,
    ema_normalizer,
    global_mean_over_positives,
    mean_over_positives,
)
from focaljax.losses.sigmoid import (
    BACKGROUND,
    IGNORED,
    balanced_cross_entropy,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    sigmoid_focal_loss_gradient,
    sigmoid_focal_loss_with_integer_labels,
)
from focaljax.losses.softmax import (
    softmax_cross_entropy,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
)
from focaljax.losses.variants import (
    asymmetric_focal_loss,
    focal_loss_star,
    gaussian_focal_loss,
    poly1_focal_loss,
    quality_focal_loss,
    varifocal_loss,
)

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "INITIAL_EMA_NORMALIZER",
    "asymmetric_focal_loss",
    "balanced_cross_entropy",
    "binary_focal_loss",
    "ciou_loss",
    "diou_loss",
    "ema_normalizer",
    "focal_loss_star",
    "gaussian_focal_loss",
    "ghm_classification_loss",
    "ghm_counts",
    "giou_loss",
    "global_mean_over_positives",
    "hard_negative_mask",
    "iou_loss",
    "l1",
    "mean_over_positives",
    "ohem_mask",
    "poly1_focal_loss",
    "quality_focal_loss",
    "sigmoid_cross_entropy",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_gradient",
    "sigmoid_focal_loss_with_integer_labels",
    "smooth_l1",
    "softmax_cross_entropy",
    "softmax_focal_loss",
    "softmax_focal_loss_with_integer_labels",
    "varifocal_loss",
]

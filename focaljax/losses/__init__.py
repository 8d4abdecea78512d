"""Losses: one value per element, with the reductions beside them; needs nothing but jax.

`from focaljax import losses` is all that another JAX model has to write.
"""

from focaljax.losses.box import l1, smooth_l1
from focaljax.losses.classification import (
    BACKGROUND,
    IGNORED,
    balanced_cross_entropy,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
)
from focaljax.losses.reductions import global_mean_over_positives, mean_over_positives

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "balanced_cross_entropy",
    "global_mean_over_positives",
    "l1",
    "mean_over_positives",
    "sigmoid_cross_entropy",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_with_integer_labels",
    "smooth_l1",
]

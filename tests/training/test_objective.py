"""The objective, worked by hand on a handful of anchors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.detection import AnchorTargets
from focaljax.losses import BACKGROUND, IGNORED
from focaljax.training.objective import detection_loss, make_box_loss, make_classification_loss

ANCHORS = jnp.array([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0], [0.0, 4.0, 4.0, 8.0], [4.0, 4.0, 8.0, 8.0]])
LN2 = float(np.log(2.0))


def batch_targets(*labels):
    boxes = jnp.broadcast_to(ANCHORS, (len(labels), *ANCHORS.shape))
    return AnchorTargets(labels=jnp.array(labels, jnp.int32), boxes_xyxy=boxes)


def loss_of(class_logits, box_deltas, targets, *, classification="cross_entropy", normalizer="image", box_weight=1.0):
    return detection_loss(
        class_logits,
        box_deltas,
        ANCHORS,
        targets,
        classification_loss=make_classification_loss(classification, alpha=0.25, gamma=2.0),
        box_loss=make_box_loss("l1"),
        box_weight=box_weight,
        normalizer=normalizer,
    )


# Logits of 0 and two classes: cross entropy is ln 2 for each output, 2 ln 2 for each anchor that counts.
ONE_AND_TWO_OBJECTS = [(0, BACKGROUND, BACKGROUND, IGNORED), (0, 1, BACKGROUND, BACKGROUND)]


def test_each_image_is_divided_by_its_own_assigned_anchors():
    loss = loss_of(jnp.zeros((2, 4, 2)), jnp.zeros((2, 4, 4)), batch_targets(*ONE_AND_TWO_OBJECTS))
    # Image 1: 3 anchors count, 1 object: 6 ln 2. Image 2: 4 count, 2 objects: 4 ln 2. The mean of both: 5 ln 2.
    assert float(loss.classification) == pytest.approx(5 * LN2, rel=1e-6)
    assert float(loss.positives) == 1.5


def test_batch_normalizer_divides_by_the_objects_of_the_batch():
    loss = loss_of(jnp.zeros((2, 4, 2)), jnp.zeros((2, 4, 4)), batch_targets(*ONE_AND_TWO_OBJECTS), normalizer="batch")
    # 7 anchors count, 3 objects.
    assert float(loss.classification) == pytest.approx(14 * LN2 / 3, rel=1e-6)


def test_box_loss_is_of_assigned_anchors_only_and_weighted_in_the_total():
    # Targets equal the anchors, so the right deltas are 0 and L1 is the sum of |delta|.
    deltas = jnp.full((1, 4, 4), 0.5).at[0, 1:].set(100.0)
    loss = loss_of(jnp.zeros((1, 4, 2)), deltas, batch_targets((0, BACKGROUND, IGNORED, BACKGROUND)), box_weight=3.0)
    assert float(loss.box) == pytest.approx(2.0)
    assert float(loss.total) == pytest.approx(float(loss.classification) + 6.0)


@pytest.mark.parametrize("normalizer", ["image", "batch"])
def test_images_without_objects_have_finite_loss_and_gradient_and_still_learn_background(normalizer):
    targets = AnchorTargets(labels=jnp.full((2, 4), BACKGROUND), boxes_xyxy=jnp.zeros((2, 4, 4)))

    def total(logits, deltas):
        return loss_of(logits, deltas, targets, classification="focal", normalizer=normalizer).total

    value, (to_logits, to_deltas) = jax.value_and_grad(total, (0, 1))(jnp.zeros((2, 4, 2)), jnp.ones((2, 4, 4)))
    assert np.isfinite(value)
    assert (to_logits > 0).all()
    np.testing.assert_array_equal(to_deltas, 0.0)


def test_everything_ignored_is_zero():
    loss = loss_of(jnp.ones((1, 4, 2)), jnp.ones((1, 4, 4)), batch_targets((IGNORED,) * 4))
    assert (float(loss.total), float(loss.positives)) == (0.0, 0.0)


def test_losses_by_name_are_relatives():
    logits, label = jnp.array([1.0, -2.0]), jnp.array(0)
    focal_without_focus = make_classification_loss("focal", alpha=0.25, gamma=0.0)(logits, label)
    balanced = make_classification_loss("balanced_cross_entropy", alpha=0.25, gamma=2.0)(logits, label)
    assert float(balanced) == float(focal_without_focus)
    # -ln sigmoid(1) - ln sigmoid(2)
    plain = make_classification_loss("cross_entropy", alpha=0.25, gamma=2.0)(logits, label)
    assert float(plain) == pytest.approx(0.31326169 + 0.12692801, rel=1e-6)
    focal = make_classification_loss("focal", alpha=0.25, gamma=2.0)(logits, label)
    assert float(focal) < float(balanced)


def test_unknown_names_are_errors_that_list_the_known_ones():
    with pytest.raises(ValueError, match="focal, balanced_cross_entropy, cross_entropy"):
        make_classification_loss("hinge")
    with pytest.raises(ValueError, match="smooth_l1, l1"):
        make_box_loss("l2")
    with pytest.raises(ValueError, match="image, batch"):
        loss_of(jnp.zeros((1, 4, 2)), jnp.zeros((1, 4, 4)), batch_targets((IGNORED,) * 4), normalizer="none")

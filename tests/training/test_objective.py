"""The objective, worked by hand on a handful of anchors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.detection import AnchorTargets, encode_boxes
from focaljax.losses import BACKGROUND, IGNORED
from focaljax.training.classification import make_classification_loss
from focaljax.training.objective import BOX_LOSSES, detection_loss, make_box_loss

ANCHORS = jnp.array([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0], [0.0, 4.0, 4.0, 8.0], [4.0, 4.0, 8.0, 8.0]])
LN2 = float(np.log(2.0))


def batch_targets(*labels):
    boxes = jnp.broadcast_to(ANCHORS, (len(labels), *ANCHORS.shape))
    return AnchorTargets(labels=jnp.array(labels, jnp.int32), boxes_xyxy=boxes)


def loss_of(
    class_logits,
    box_deltas,
    targets,
    *,
    classification="cross_entropy",
    box="l1",
    normalizer="image",
    box_weight=1.0,
    **others,
):
    return detection_loss(
        class_logits,
        box_deltas,
        ANCHORS,
        targets,
        classification_loss=make_classification_loss(classification, alpha=0.25, gamma=2.0),
        box_loss=make_box_loss(box),
        box_weight=box_weight,
        normalizer=normalizer,
        **others,
    )


# Logits of 0 and two classes: cross entropy is ln 2 for each output, 2 ln 2 for each anchor that counts.
ONE_AND_TWO_OBJECTS = [(0, BACKGROUND, BACKGROUND, IGNORED), (0, 1, BACKGROUND, BACKGROUND)]


def test_each_image_is_divided_by_its_own_assigned_anchors():
    loss = loss_of(jnp.zeros((2, 4, 2)), jnp.zeros((2, 4, 4)), batch_targets(*ONE_AND_TWO_OBJECTS))
    # Image 1: 3 anchors count, 1 object: 6 ln 2. Image 2: 4 count, 2 objects: 4 ln 2. The mean of both: 5 ln 2.
    assert float(loss.classification) == pytest.approx(5 * LN2, rel=1e-6)
    assert float(loss.positives) == 1.5


@pytest.mark.parametrize("normalizer", ["image", "batch", "none"])
def test_part_of_assigned_anchors_is_divided_like_the_whole(normalizer):
    loss = loss_of(
        jnp.zeros((2, 4, 2)), jnp.zeros((2, 4, 4)), batch_targets(*ONE_AND_TWO_OBJECTS), normalizer=normalizer
    )
    # Each anchor has 2 ln 2. Image 1: one of one object. Image 2: two of two. Both means are 2 ln 2, the sum is 6 ln 2.
    expected = 3 * LN2 if normalizer == "none" else 2 * LN2
    assert float(loss.classification_of_positives) == pytest.approx(expected, rel=1e-6)


def test_no_gradient_comes_from_the_part_of_assigned_anchors():
    def part(logits):
        loss = loss_of(logits, jnp.zeros((2, 4, 4)), batch_targets(*ONE_AND_TWO_OBJECTS))
        return loss.classification_of_positives

    np.testing.assert_array_equal(jax.grad(part)(jnp.zeros((2, 4, 2))), 0.0)


def test_batch_normalizer_divides_by_the_objects_of_the_batch():
    loss = loss_of(jnp.zeros((2, 4, 2)), jnp.zeros((2, 4, 4)), batch_targets(*ONE_AND_TWO_OBJECTS), normalizer="batch")
    # 7 anchors count, 3 objects.
    assert float(loss.classification) == pytest.approx(14 * LN2 / 3, rel=1e-6)


def test_without_a_normalizer_it_is_the_mean_of_the_images_sums():
    loss = loss_of(jnp.zeros((2, 4, 2)), jnp.zeros((2, 4, 4)), batch_targets(*ONE_AND_TWO_OBJECTS), normalizer="none")
    assert float(loss.classification) == pytest.approx(14 * LN2 / 2, rel=1e-6)


def test_mined_anchors_are_divided_by_the_assigned_or_by_themselves():
    keeps_two = lambda loss, anchors, is_positive, is_ignored: jnp.array([1.0, 0.0, 1.0, 0.0])  # noqa: E731
    batch = jnp.zeros((2, 4, 2)), jnp.zeros((2, 4, 4)), batch_targets(*ONE_AND_TWO_OBJECTS)
    # Each anchor has 2 ln 2: of each image two are kept; they have one and two objects.
    assert float(loss_of(*batch, mining=keeps_two).classification) == pytest.approx(3 * LN2, rel=1e-6)
    of_kept = loss_of(*batch, mining=keeps_two, divisor="kept")
    assert float(of_kept.classification) == pytest.approx(2 * LN2, rel=1e-6)
    # Of image 1 the kept ones are its object and one more, of image 2 one of its two objects and one more.
    assert float(of_kept.classification_of_positives) == pytest.approx(LN2, rel=1e-6)
    # Boxes are those of all objects.
    assert float(of_kept.box) == float(loss_of(*batch).box)


def test_ghm_is_divided_by_all_outputs_that_count():
    batch = jnp.zeros((2, 4, 2)), jnp.zeros((2, 4, 4)), batch_targets(*ONE_AND_TWO_OBJECTS)
    loss = loss_of(*batch, classification="ghm", divisor="outputs")
    # All gradients are 1/2: of thirty parts one has all, so that each weighs a thirtieth.
    assert float(loss.classification) == pytest.approx(LN2 / 30, rel=1e-6)
    # Three of the seven anchors that count have an object.
    assert float(loss.classification_of_positives) == pytest.approx(3 / 7 * LN2 / 30, rel=1e-6)


@pytest.mark.parametrize(("classification", "expected"), [("quality_focal", LN2 / 36), ("varifocal", LN2 / 3)])
def test_label_of_an_assigned_anchor_is_the_overlap_of_its_predicted_box_without_gradient(classification, expected):
    # Moved to the right by half of it, the box overlaps its object by 8 of 24 px: 1/3. |1/3 - 1/2|^2 ln 2; 1/3 ln 2.
    targets = batch_targets((0, IGNORED, IGNORED, IGNORED))
    deltas = jnp.zeros((1, 4, 4)).at[0, 0, 0].set(0.5)

    def classification_of(deltas):
        return loss_of(jnp.zeros((1, 4, 1)), deltas, targets, classification=classification).classification

    assert float(classification_of(deltas)) == pytest.approx(expected, rel=1e-5)
    assert not jax.grad(classification_of)(deltas).any()


def test_box_loss_is_of_assigned_anchors_only_and_weighted_in_the_total():
    # Targets equal the anchors, so the right deltas are 0 and L1 is the sum of |delta|.
    deltas = jnp.full((1, 4, 4), 0.5).at[0, 1:].set(100.0)
    loss = loss_of(jnp.zeros((1, 4, 2)), deltas, batch_targets((0, BACKGROUND, IGNORED, BACKGROUND)), box_weight=3.0)
    assert float(loss.box) == pytest.approx(2.0)
    assert float(loss.total) == pytest.approx(float(loss.classification) + 6.0)


# A box half an anchor to the right of the 4 x 4 anchor that answers for it, and no deltas: they have 4 x 2 in common,
# the union is 6 x 4, the enclosing box as well; the centres are 2 apart, the diagonal's square is 6^2 + 4^2.
BY_HAND = {"smooth_l1": 0.45, "l1": 0.5, "iou": 2 / 3, "giou": 2 / 3, "diou": 2 / 3 + 4 / 52, "ciou": 2 / 3 + 4 / 52}


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_losses_by_name_compare_the_deltas_or_the_boxes_that_they_make(name):
    loss = make_box_loss(name, beta=0.1)
    anchor, box = ANCHORS[0], jnp.array([2.0, 0.0, 6.0, 4.0])
    assert float(loss(jnp.zeros(4), box, anchor)) == pytest.approx(BY_HAND[name], rel=1e-6)
    assert float(loss(encode_boxes(box, anchor), box, anchor)) == pytest.approx(0.0, abs=1e-6)
    # Deltas are in units of the anchor and overlaps have none: both are indifferent to the unit of length.
    assert float(loss(jnp.zeros(4), 8 * box, 8 * anchor)) == pytest.approx(BY_HAND[name], rel=1e-6)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_step_along_the_gradient_brings_the_box_nearer(name):
    loss = make_box_loss(name)
    anchor, box = ANCHORS[0], jnp.array([1.0, -1.0, 6.0, 2.0])
    deltas = jnp.array([0.1, 0.05, -0.2, 0.1])
    step = deltas - 1e-2 * jax.grad(loss)(deltas, box, anchor)
    assert float(loss(step, box, anchor)) < float(loss(deltas, box, anchor))


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_neither_deltas_nor_boxes_of_unassigned_anchors_count(name):
    targets = batch_targets((0, BACKGROUND, IGNORED, BACKGROUND))
    deltas = jnp.full((1, 4, 4), 0.25)

    def box_loss(deltas, boxes_xyxy):
        targets_of_boxes = AnchorTargets(labels=targets.labels, boxes_xyxy=boxes_xyxy)
        return loss_of(jnp.zeros((1, 4, 2)), deltas, targets_of_boxes, box=name).box

    value_and_gradients = jax.jit(jax.value_and_grad(box_loss, (0, 1)))
    expected, gradients = value_and_gradients(deltas, targets.boxes_xyxy)
    assert float(expected) > 0
    for garbage in (np.nan, np.inf, -np.inf, 1e30):
        wild_boxes = targets.boxes_xyxy.at[:, 1:].set(garbage)
        value, gradients_of_wild = value_and_gradients(deltas.at[:, 1:].set(garbage), wild_boxes)
        assert float(value) == float(expected)
        jax.tree.map(np.testing.assert_array_equal, gradients_of_wild, gradients)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[:, 1:], 0.0)
        assert (np.abs(gradient[0, 0]) > 0).any()


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_losses_are_finite_for_wild_deltas_and_keep_float64(name):
    loss, anchor, box = make_box_loss(name), ANCHORS[0], ANCHORS[1]
    for size in (1e30, -1e30):
        value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.full(4, size), box, anchor)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    with jax.enable_x64(True):
        assert loss(np.zeros(4), np.float64(box), np.float64(anchor)).dtype == np.float64
    assert loss(jnp.zeros(4, jnp.bfloat16), box, anchor).dtype == np.float32


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


def test_unknown_names_are_errors_that_list_the_known_ones():
    with pytest.raises(ValueError, match="smooth_l1, l1, iou, giou, diou, ciou, got 'l2'"):
        make_box_loss("l2")
    with pytest.raises(ValueError, match="image, batch"):
        loss_of(jnp.zeros((1, 4, 2)), jnp.zeros((1, 4, 4)), batch_targets((IGNORED,) * 4), normalizer="mean")
    with pytest.raises(ValueError, match="positives, kept, outputs"):
        loss_of(jnp.zeros((1, 4, 2)), jnp.zeros((1, 4, 4)), batch_targets((IGNORED,) * 4), divisor="anchors")

import functools

import jax
import numpy as np
import pytest

from focaljax.detection import Candidates, candidates, flip_boxes, merge_views, postprocess, rescale_boxes, suppress

WIDTH, HEIGHT = 60, 40
OPTIONS = {"nms_iou": 0.5, "max_detections": 60}
FIND = {"score_threshold": 0.6, "pre_nms_top_k": 80}
find = jax.jit(functools.partial(candidates, **FIND))
detect = jax.jit(functools.partial(postprocess, **FIND, **OPTIONS))
merge = jax.jit(functools.partial(merge_views, **OPTIONS))


def outputs():
    """Logits, deltas and anchors of two levels, on which many boxes overlap."""
    random = np.random.default_rng(3)
    anchors, logits, deltas = [], [], []
    for count, side in ((50, 16), (20, 30)):
        center = random.integers(0, [WIDTH, HEIGHT], (count, 2))
        anchors.append(np.concatenate([center - side / 2, center + side / 2], axis=1).astype(np.float32))
        logits.append(random.normal(0, 1, (count, 3)).astype(np.float32))
        deltas.append(random.normal(0, 0.2, (count, 4)).astype(np.float32))
    return logits, deltas, anchors


def mirrored(logits, deltas, anchors):
    """What a network that sees left and right alike says of the mirrored image."""
    anchors = [np.stack([WIDTH - a[:, 2], a[:, 1], WIDTH - a[:, 0], a[:, 3]], axis=1) for a in anchors]
    return logits, [d * np.float32([-1, 1, 1, 1]) for d in deltas], anchors


def view(outputs):
    return find(*outputs, np.array([HEIGHT, WIDTH]))


def test_flipped_view_alone_gives_the_same_boxes():
    plain = detect(*outputs(), np.array([HEIGHT, WIDTH]))
    assert 10 < plain.is_detection.sum() < min(60, (view(outputs()).scores > 0).sum())
    flipped = view(mirrored(*outputs()))
    assert np.abs(np.asarray(flipped.boxes_xyxy) - view(outputs()).boxes_xyxy).max() > 5
    found = merge([Candidates(flip_boxes(flipped.boxes_xyxy, WIDTH), flipped.scores, flipped.labels)])
    np.testing.assert_array_equal(found.labels, plain.labels)
    np.testing.assert_array_equal(found.scores, plain.scores)
    # Padding rows are 0 in both.
    np.testing.assert_allclose(found.boxes_xyxy, plain.boxes_xyxy, atol=1e-4)


def test_view_given_twice_equals_it_once():
    one = view(outputs())
    # Boxes cut to nothing at the border suppress nothing, not even their copies.
    has_area = np.prod(one.boxes_xyxy[:, 2:] - one.boxes_xyxy[:, :2], axis=1) > 0
    one = Candidates(one.boxes_xyxy, jax.numpy.where(has_area, one.scores, 0), one.labels)
    jax.tree.map(np.testing.assert_array_equal, merge([one, one]), merge([one]))
    jax.tree.map(np.testing.assert_array_equal, merge([one]), suppress(one, **OPTIONS))


def test_best_box_of_an_object_comes_from_any_view_and_the_first_of_equals_from_the_first():
    def view(box, score):
        return Candidates(np.float32([box]), np.float32([score]), np.array([2]))

    a, b = view([0, 0, 4, 4], 0.5), view([0, 0, 4, 4.5], 0.75)
    found = merge([a, b])
    assert found.is_detection.sum() == 1
    np.testing.assert_array_equal(found.boxes_xyxy[0], [0, 0, 4, 4.5])
    found = merge([view([0, 0, 4, 4], 0.75), b])
    np.testing.assert_array_equal(found.boxes_xyxy[0], [0, 0, 4, 4])


def test_views_may_differ_in_their_number_of_candidates_and_be_batched():
    one = view(outputs())
    few = jax.tree.map(lambda field: field[:7], one)
    stack = lambda views: jax.tree.map(lambda field: np.stack([field, field]), views)  # noqa: E731
    batched = jax.jit(jax.vmap(lambda *views: merge_views(views, **OPTIONS)))(stack(one), stack(few))
    assert batched.scores.shape == (2, 60)
    np.testing.assert_array_equal(batched.scores[1], merge([one, few]).scores)


def test_soft_suppression_of_views_is_chosen_by_name():
    one = Candidates(np.float32([[0, 0, 4, 4]]), np.float32([0.5]), np.array([0]))
    found = merge_views([one, one], max_detections=2, suppression="gaussian", soft_sigma=1.0)
    np.testing.assert_allclose(found.scores, [0.5, 0.5 * np.exp(-1)], rtol=1e-6)


def test_no_view_is_refused():
    with pytest.raises(ValueError, match="views is empty"):
        merge_views([])


def test_flip_is_its_own_inverse_and_keeps_boxes_upright():
    boxes = np.float32([[[1, 2, 5, 9]], [[0, 0, 60, 40]]])
    flipped = flip_boxes(boxes, WIDTH)
    np.testing.assert_array_equal(flipped, [[[55, 2, 59, 9]], [[0, 0, 60, 40]]])
    np.testing.assert_array_equal(flip_boxes(flipped, WIDTH), boxes)


def test_rescaling_follows_each_side_and_returns():
    boxes = np.float32([[1, 2, 5, 9], [0, 0, 60, 40]])
    scaled = jax.jit(rescale_boxes)(boxes, np.array([40, 60]), np.array([80, 90]))
    np.testing.assert_allclose(scaled, [[1.5, 4, 7.5, 18], [0, 0, 90, 80]], rtol=1e-6)
    np.testing.assert_allclose(rescale_boxes(scaled, (80, 90), (40, 60)), boxes, rtol=1e-6)
    np.testing.assert_array_equal(rescale_boxes(boxes, (7, 3), (7, 3)), boxes)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"boxes_xyxy must have the shape \[..., 4\], got \(4, 3\)"):
        flip_boxes(np.zeros((4, 3)), 1)
    with pytest.raises(ValueError, match=r"to_size must be a height and a width, shape \(2,\), got \(\)"):
        rescale_boxes(np.zeros((3, 4)), (1, 2), 2)


def test_float64_stays_and_halves_become_float32():
    for function in (lambda x: flip_boxes(x, 10), lambda x: rescale_boxes(x, (2, 2), (4, 4))):
        assert function(np.zeros((1, 4), np.float16)).dtype == np.float32
        with jax.enable_x64(True):
            assert function(np.zeros((1, 4))).dtype == np.float64

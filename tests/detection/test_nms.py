"""Hard suppression against the rule in plain loops; what hard and soft suppression have in common."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.detection import gaussian_soft_nms, linear_soft_nms, nms_mask, non_maximum_suppression
from focaljax.detection import nms as nms_module
from tests.detection.suppression import ROWS, crowds, gaussian, iou, linear, nms

mask = jax.jit(nms_mask, static_argnames="iou_threshold")


def greedy(boxes, scores, labels, iou_threshold):
    """The indices that are kept, best first."""
    is_open, kept = np.asarray(scores) > 0, []
    while is_open.any():
        best = np.flatnonzero(is_open)[np.argmax(np.asarray(scores)[is_open])]  # the first of equals
        kept.append(best)
        is_open &= ~((iou(boxes[best], boxes) > iou_threshold) & (labels == labels[best]))
        is_open[best] = False
    return np.array(kept, int)


def assert_rows(found, boxes, scores, labels, kept):
    """Checks that the detections are the rows of the input with these indices, exactly, and padding."""
    found = jax.tree.map(np.asarray, found)
    count = min(len(kept), len(found.scores))
    kept = kept[:count]
    np.testing.assert_array_equal(found.is_detection, np.arange(len(found.scores)) < count)
    np.testing.assert_array_equal(found.scores[:count], scores[kept])
    np.testing.assert_array_equal(found.labels[:count], labels[kept])
    np.testing.assert_array_equal(found.boxes_xyxy[:count], boxes[kept])
    np.testing.assert_array_equal(found.scores[count:], 0)
    np.testing.assert_array_equal(found.labels[count:], -1)
    np.testing.assert_array_equal(found.boxes_xyxy[count:], 0)


@hypothesis.given(crowd=crowds())
@hypothesis.settings(max_examples=60)
def test_kept_boxes_are_those_of_plain_loops(crowd):
    kept = greedy(*crowd, 0.5)
    assert_rows(nms(*crowd, max_detections=20), *crowd, kept)  # stops early
    assert_rows(nms(*crowd, max_detections=ROWS), *crowd, kept)


@pytest.mark.parametrize("iou_threshold", [0.0, 0.25, 1.0])
@hypothesis.given(crowd=crowds())
@hypothesis.settings(max_examples=10)
def test_mask_is_that_of_plain_loops_at_any_threshold(iou_threshold, crowd):
    is_kept = mask(*crowd, iou_threshold=iou_threshold)
    np.testing.assert_array_equal(np.flatnonzero(is_kept), np.sort(greedy(*crowd, iou_threshold)))


@pytest.mark.parametrize("block_size", [1, 7, 64, 512])
def test_blocks_of_any_size_keep_the_same(block_size):
    options = {"iou_threshold": 0.5, "block_size": block_size}
    of_each_class = jax.jit(functools.partial(nms_module._kept_of_each_class, **options))
    best = jax.jit(functools.partial(nms_module._best_kept, max_detections=50, **options))
    for seed in range(3):
        random = np.random.default_rng(seed)
        corner = random.integers(0, 6, (100, 2))
        boxes = np.concatenate([corner, corner + random.integers(4, 12, (100, 2))], axis=1).astype(np.float32)
        scores, labels = np.float32(random.integers(0, 9, 100) / 8), np.int32(random.integers(0, 2, 100))
        kept = greedy(boxes, scores, labels, 0.5)
        assert 10 < len(kept) < 50
        np.testing.assert_array_equal(np.flatnonzero(of_each_class(boxes, scores, labels)), np.sort(kept))
        index, is_detection = best(boxes, scores, labels)
        np.testing.assert_array_equal(np.asarray(index)[np.asarray(is_detection)], kept)


def test_long_chains_of_overlaps_are_settled():
    # Each overlaps its neighbours only, so that every second is kept: the fate of the last depends on all.
    boxes = np.float32([[4 * i, 0, 4 * i + 10, 1] for i in range(200)])  # IoU 6 / 14 with the next, 2 / 18 after it
    scores, labels = np.linspace(1, 0.5, 200, dtype=np.float32), np.zeros(200, np.int32)
    for max_detections in (25, 200):
        found = nms(boxes, scores, labels, iou_threshold=0.25, max_detections=max_detections)
        assert_rows(found, boxes, scores, labels, np.arange(0, 200, 2))


def test_images_of_a_batch_do_not_touch_each_other():
    random = np.random.default_rng(0)
    corner = random.integers(0, 9, (4, 160, 2))
    boxes = np.concatenate([corner, corner + random.integers(1, 9, (4, 160, 2))], axis=-1).astype(np.float32)
    scores, labels = np.float32(random.random((4, 160))), random.integers(0, 3, (4, 160))
    scores[1], scores[2, 20:] = 0, 0  # an image without candidates, and one with few
    for max_detections in (10, 100):
        run = jax.jit(jax.vmap(functools.partial(non_maximum_suppression, max_detections=max_detections)))
        found = run(boxes, scores, labels)
        for image in range(4):
            kept = greedy(boxes[image], scores[image], labels[image], 0.5)
            rows = jax.tree.map(lambda field, image=image: field[image], found)
            assert_rows(rows, boxes[image], scores[image], labels[image], kept)


def test_eager_and_compiled_agree():
    boxes, scores = np.float32([[0, 0, 4, 4], [0, 0, 4, 3], [9, 9, 12, 12]]), np.float32([0.5, 0.9, 0.7])
    for function, compiled in (
        (non_maximum_suppression, nms),
        (linear_soft_nms, linear),
        (gaussian_soft_nms, gaussian),
    ):
        eager = function(boxes, scores, np.zeros(3, int), max_detections=3)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6),
            eager,
            compiled(boxes, scores, np.zeros(3, int), max_detections=3),
        )


def test_only_boxes_of_the_same_class_suppress_each_other():
    boxes = np.float32([[0, 0, 4, 4]] * 3)
    kept = nms(boxes, np.float32([0.5, 0.9, 0.7]), np.array([0, 0, 1]), max_detections=3)
    np.testing.assert_array_equal(kept.labels, [0, 1, -1])
    np.testing.assert_allclose(kept.scores, [0.9, 0.7, 0])


def test_overlap_of_exactly_the_threshold_is_kept():
    boxes = np.float32([[0, 0, 4, 4], [0, 0, 4, 2]])  # IoU 8 / 16
    scores, labels = np.float32([0.9, 0.8]), np.zeros(2, int)
    assert nms(boxes, scores, labels, iou_threshold=0.5, max_detections=2).is_detection.sum() == 2
    assert nms(boxes, scores, labels, iou_threshold=0.499, max_detections=2).is_detection.sum() == 1


def test_a_suppressed_box_suppresses_nothing():
    # The second overlaps the first and the third; the first and third do not overlap enough.
    boxes = np.float32([[0, 0, 10, 1], [3, 0, 13, 1], [6, 0, 16, 1]])
    kept = nms(boxes, np.float32([0.9, 0.8, 0.7]), np.zeros(3, int), max_detections=3)
    np.testing.assert_allclose(kept.scores, [0.9, 0.7, 0])


@pytest.mark.parametrize("function", [nms, linear, gaussian])
def test_no_candidates_and_fewer_than_rows_give_padding(function):
    for rows in (0, 2):
        found = function(
            np.zeros((rows, 4), np.float32), np.zeros(rows, np.float32), np.zeros(rows, int), max_detections=5
        )
        assert found.boxes_xyxy.shape == (5, 4)
        assert not found.is_detection.any()
        np.testing.assert_array_equal(found.labels, -1)
    found = function(np.float32([[0, 0, 4, 4]]), np.float32([0.5]), np.array([7]), max_detections=3)
    np.testing.assert_array_equal(found.labels, [7, -1, -1])


def test_mask_of_no_boxes_is_empty():
    assert nms_mask(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int)).shape == (0,)


@pytest.mark.parametrize("function", [nms, linear, gaussian])
@pytest.mark.parametrize("max_detections", [1, 12])
def test_scores_that_are_zero_negative_or_nan_are_padding(function, max_detections):
    boxes = np.float32([[0, 0, 4, 4]] * 12)
    scores = np.float32([np.nan, 0, -1, -np.inf, 0.25] + [np.nan] * 7)
    found = function(boxes, scores, np.zeros(12, int), max_detections=max_detections)
    np.testing.assert_array_equal(found.scores, ([0.25] + [0] * 11)[:max_detections])


@pytest.mark.parametrize("function", [nms, linear])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e30])
def test_overlap_does_not_depend_on_the_unit(function, size):
    boxes = np.float32([[0, 0, 4, 4], [0, 0, 4, 3], [0, 0, 4, 1], [-4, -4, 0, 0]]) * np.float32(size / 4)
    for max_detections in (1, 4):
        found = function(
            np.repeat(boxes, 2, axis=0),
            np.float32([0.8, 0.8, 0.75, 0.7, 0.5, 0.4, 0.3, 0.3]),
            np.zeros(8, int),
            iou_threshold=0.7,
            max_detections=max_detections,
        )
        expected = [0.8, 0.5, 0.3, 0] if function is nms else [0.8, 0.5, 0.3, 0.75 * 0.25 * 0.25]
        assert np.isfinite(found.scores).all()
        np.testing.assert_allclose(found.scores[:3], expected[:max_detections][:3], rtol=1e-5)


@pytest.mark.parametrize("garbage", [0.0, 1e30, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("function", [nms, linear])
def test_what_stands_in_padding_rows_has_no_influence(function, garbage):
    # In fractions of the image, where a change of unit would make the areas 0.
    boxes = np.float32([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.45], [garbage] * 4])
    for max_detections in (1, 3):
        found = function(
            boxes, np.float32([0.9, 0.8, 0]), np.zeros(3, int), iou_threshold=0.5, max_detections=max_detections
        )
        expected = [0.9, 0, 0] if function is nms else [0.9, 0.8 * 0.1, 0]
        np.testing.assert_allclose(found.scores, expected[:max_detections], rtol=1e-5)


def test_boxes_without_area_suppress_nothing():
    boxes = np.float32([[2, 2, 2, 2], [2, 2, 2, 2], [0, 0, 4, 4], [3, 3, 1, 1]])  # the last is inside out
    found = nms(boxes, np.float32([0.9, 0.8, 0.7, 0.6]), np.zeros(4, int), iou_threshold=0.0, max_detections=4)
    assert found.is_detection.all()


@pytest.mark.parametrize("function", [non_maximum_suppression, linear_soft_nms, gaussian_soft_nms])
def test_results_are_float32_or_float64_as_the_input(function):
    boxes, labels = np.array([[0.0, 0.0, 4.0, 4.0]]), np.zeros(1, np.int64)
    for given, expected in ((np.float16, np.float32), (jnp.bfloat16, np.float32), (np.float32, np.float32)):
        found = jax.eval_shape(
            functools.partial(function, max_detections=2), boxes.astype(given), np.ones(1, given), labels
        )
        assert (found.boxes_xyxy.dtype, found.scores.dtype, found.labels.dtype) == (expected, expected, np.int32)
    with jax.enable_x64(True):
        found = function(boxes, np.array([0.1]), labels, max_detections=2)
        assert (found.boxes_xyxy.dtype, found.scores.dtype, found.labels.dtype) == (np.float64, np.float64, np.int32)
        assert float(found.scores[0]) == 0.1


@pytest.mark.parametrize("max_detections", [20, 200])
def test_float64_boxes_are_compared_in_float64(max_detections):
    random = np.random.default_rng(0)
    corner = random.uniform(0, 40, (200, 2))
    boxes = np.concatenate([corner, corner + random.uniform(1, 20, (200, 2))], axis=1)
    # Those of the first two differ from IoU 0.5 by 1e-12.
    boxes[:2] = [[0, 0, 2, 1], [0, 0, 1 + 1e-12, 1]]
    scores, labels = random.permutation(200) / 200.0, random.integers(0, 3, 200)
    scores[:2], labels[:2] = [3, 2], 9
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(non_maximum_suppression, max_detections=max_detections))
        assert_rows(run(boxes, scores, labels), boxes, scores, labels, greedy(boxes, scores, labels, 0.5))
        assert run(boxes, scores, labels).labels[1] != 9


def test_derivatives_are_those_of_the_rows_that_are_kept():
    boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [9.0, 9.0, 12.0, 12.0]] * 4)
    scores, labels = jnp.array([0.5, 0.9, 0.7] * 4) + jnp.linspace(0.0, 0.09, 12), jnp.zeros(12, int)
    for max_detections in (1, 3):

        def total(boxes, scores, max_detections=max_detections):
            found = non_maximum_suppression(boxes, scores, labels, max_detections=max_detections)
            return (found.boxes_xyxy**2).sum() / 2 + (found.scores**2).sum() / 2

        by_boxes, by_scores = jax.jit(jax.grad(total, argnums=(0, 1)))(boxes, scores)
        is_kept = np.isin(np.arange(12), [10, 11][:max_detections])
        np.testing.assert_allclose(by_boxes, np.where(is_kept[:, None], boxes, 0))
        np.testing.assert_allclose(by_scores, np.where(is_kept, scores, 0))
        np.testing.assert_allclose(
            jax.jit(jax.hessian(total, argnums=1))(boxes, scores), np.diag(is_kept.astype(float)), atol=1e-7
        )
        tangent = jax.jvp(lambda x: total(boxes, x), (scores,), (jnp.ones(12),))[1]
        np.testing.assert_allclose(tangent, scores[is_kept].sum(), rtol=1e-6)


@pytest.mark.parametrize("function", [non_maximum_suppression, linear_soft_nms, gaussian_soft_nms, nms_mask])
def test_wrong_input_is_named_with_its_remedy(function):
    boxes, scores, labels = np.zeros((2, 4), np.float32), np.zeros(2, np.float32), np.zeros(2, int)
    with pytest.raises(ValueError, match=r"scores has the shape \(1, 2\).*vmap"):
        function(boxes, scores[None], labels)
    with pytest.raises(ValueError, match=r"boxes_xyxy must have the shape \(2, 4\).*got \(3, 4\)"):
        function(np.zeros((3, 4), np.float32), scores, labels)
    with pytest.raises(ValueError, match=r"labels must have the shape \(2,\)"):
        function(boxes, scores, labels[:1])
    with pytest.raises(TypeError, match="boxes_xyxy must be floating point, got int32"):
        function(boxes.astype(np.int32), scores, labels)
    with pytest.raises(TypeError, match="labels must be integers, got float32"):
        function(boxes, scores, scores)


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        (non_maximum_suppression, "iou_threshold", 1.5),
        (nms_mask, "iou_threshold", -0.5),
        (linear_soft_nms, "iou_threshold", float("nan")),
        (non_maximum_suppression, "max_detections", 0),
        (gaussian_soft_nms, "max_detections", 0),
        (gaussian_soft_nms, "sigma", 0.0),
        (linear_soft_nms, "min_score", -1.0),
    ],
)
def test_hyperparameters_out_of_range_are_refused(function, name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        function(np.zeros((1, 4), np.float32), np.zeros(1, np.float32), np.zeros(1, int), **{name: value})

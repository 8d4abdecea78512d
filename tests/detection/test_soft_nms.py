"""Soft suppression against the rule in plain loops."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.detection import gaussian_soft_nms, linear_soft_nms
from tests.detection.suppression import crowds, gaussian, iou, linear

FACTORS = {
    "linear": lambda overlap: np.where(overlap > 0.25, 1 - overlap, 1),
    "gaussian": lambda overlap: np.exp(-(overlap**2) / 0.5),
}


def replay(found, boxes, scores, labels, factor, *, rtol):
    """Checks that each row is the best of what the rows before it have left, by the rule in float64."""
    found = jax.tree.map(np.asarray, found)
    remaining = scores.astype(np.float64)
    for row, score in enumerate(found.scores):
        best = remaining.max()
        if not found.is_detection[row]:
            assert best < 0.001 * (1 + rtol)
            continue
        assert score == pytest.approx(best, rel=rtol)
        tied = np.flatnonzero(remaining > best * (1 - rtol))
        is_same = (boxes[tied] == found.boxes_xyxy[row]).all(axis=1) & (labels[tied] == found.labels[row])
        assert is_same.any()
        taken = tied[is_same][0]
        # Rounding decides between lowered scores; of equal scores as given the first is taken.
        if (remaining[tied] == scores[tied]).all():
            assert taken == remaining.argmax()
        remaining *= np.where(labels == labels[taken], factor(iou(boxes[taken], boxes)), 1)
        remaining[taken] = 0


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
@hypothesis.given(crowd=crowds(rows=60))
@hypothesis.settings(max_examples=30)
def test_each_row_of_soft_suppression_is_the_best_that_is_left(kind, crowd):
    options = {"linear": {"iou_threshold": 0.25}, "gaussian": {"sigma": 0.5}}[kind]
    found = {"linear": linear, "gaussian": gaussian}[kind](*crowd, max_detections=40, **options)
    assert (np.diff(found.scores) <= 0).all()
    replay(found, *crowd, FACTORS[kind], rtol=2e-5)  # up to 40 factors, each rounded


def test_soft_suppression_worked_by_hand():
    # IoU of the first with the second 0.5, with the third (another class) 1, with the fourth 0.25.
    boxes = np.float32([[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 4], [0, 0, 4, 1]])
    scores, labels = np.float32([0.8, 0.6, 0.5, 0.4]), np.array([0, 0, 1, 0])
    # Linear above 0.3: 0.6 / 2 = 0.3; the fourth is lowered by the second alone (IoU 0.5), but taken before it.
    found = linear(boxes, scores, labels, max_detections=4)
    np.testing.assert_allclose(found.scores, [0.8, 0.5, 0.4, 0.15], rtol=1e-6)
    # Gaussian: the second 0.6 e^-0.5 = 0.364, the fourth 0.4 e^-0.125 = 0.353, then e^-0.5 of it.
    found = gaussian(boxes, scores, labels, max_detections=4)
    second, fourth = 0.6 * np.exp(-0.5), 0.4 * np.exp(-0.125) * np.exp(-0.5)
    np.testing.assert_allclose(found.scores, [0.8, 0.5, second, fourth], rtol=1e-6)
    np.testing.assert_array_equal(found.labels, [0, 1, 0, 0])


def test_soft_scores_must_exceed_the_minimum():
    boxes, labels = np.float32([[0, 0, 4, 4], [0, 0, 4, 2]]), np.zeros(2, int)
    scores = np.float32([0.75, 0.5])  # the second becomes 0.25
    assert linear(boxes, scores, labels, min_score=0.24, max_detections=2).is_detection.sum() == 2
    found = linear(boxes, scores, labels, min_score=0.25, max_detections=2)
    np.testing.assert_array_equal(found.labels, [0, -1])
    np.testing.assert_array_equal(found.scores, [0.75, 0])


def test_boxes_apart_keep_their_scores_and_copies_lose_all():
    boxes = np.float32([[10 * i, 0, 10 * i + 4, 4] for i in range(5)])
    scores = np.float32([0.1, 0.5, 0.3, 0.4, 0.2])
    for function in (linear, gaussian):
        found = function(boxes, scores, np.zeros(5, int), max_detections=5)
        np.testing.assert_array_equal(found.scores, np.sort(scores)[::-1])
    found = linear(np.repeat(boxes, 2, axis=0), np.repeat(scores, 2), np.zeros(10, int), max_detections=10)
    np.testing.assert_array_equal(found.scores, [*np.sort(scores)[::-1], 0, 0, 0, 0, 0])


@pytest.mark.parametrize("function", [functools.partial(linear_soft_nms, iou_threshold=0.05), gaussian_soft_nms])
def test_gradient_of_soft_scores_is_that_of_differences(function):
    random = np.random.default_rng(0)
    corner = random.uniform(0, 4, (6, 2))
    boxes = np.concatenate([corner, corner + random.uniform(2, 6, (6, 2))], axis=1)
    scores, labels, weights = random.uniform(0.6, 1, 6), np.array([0, 0, 0, 0, 1, 1]), random.normal(size=6)
    with jax.enable_x64(True):

        @jax.jit
        def total(boxes, scores):
            return jnp.dot(function(boxes, scores, labels, max_detections=6).scores, weights)

        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(boxes, scores)
        for argument, gradient in enumerate(gradients):
            for index in np.ndindex(gradient.shape):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = [boxes.copy(), scores.copy()]
                    moved[argument][index] += step
                    ends.append(float(total(*moved)))
                assert gradient[index] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)
        assert np.abs(gradients[0]).max() > 0.01
        assert np.isfinite(jax.jit(jax.hessian(total))(boxes, scores)).all()


@pytest.mark.parametrize("function", [linear_soft_nms, gaussian_soft_nms])
def test_gradient_is_finite_at_copies_and_boxes_without_area(function):
    boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    total = lambda boxes, scores: function(boxes, scores, jnp.zeros(4, int), max_detections=6).scores.sum()  # noqa: E731
    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(boxes, jnp.array([0.9, 0.8, 0.0, 0.5])):
        assert np.isfinite(gradient).all()

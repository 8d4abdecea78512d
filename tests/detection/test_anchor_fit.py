"""Anchors fitted to boxes: planted shapes are found, the fit is no worse than its start, and knows no unit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.detection import anchor_fit, pyramid_anchors
from focaljax.detection.anchor_fit import AnchorShapes, fit_anchors
from focaljax.detection.coverage import measure_coverage

START = AnchorShapes(sizes=(32.0, 64.0), scales=(1.0, 1.4), ratios=(0.5, 1.0, 2.0))
STRIDES = (8, 16)


def sides_of(rng, count, *, size=40.0, ratios=(0.5, 2.0), spread=0.1):
    side = size * np.exp(rng.normal(0, 0.4, count))
    ratio = rng.choice(ratios, count) * np.exp(rng.normal(0, spread, count))
    return np.stack([side * np.sqrt(ratio), side / np.sqrt(ratio)], axis=1)


def matched_share(sides, shapes, image=256):
    """The share of boxes in the middle of an image, anywhere between positions, that an anchor meets at 0.5."""
    rng = np.random.default_rng(1)
    centers = image / 2 + rng.uniform(-16, 16, (len(sides), 2))
    boxes = np.concatenate([centers - sides[:, ::-1] / 2, centers + sides[:, ::-1] / 2], axis=1)
    anchors = pyramid_anchors((image, image), levels=(3, 4), **vars(shapes))
    coverage = measure_coverage(anchors, boxes, np.zeros(len(boxes), bool), np.ones(len(boxes), int))
    return float((coverage.best_iou >= 0.5).mean())


@pytest.mark.parametrize(
    ("size", "ratios", "least"),
    [(40.0, (0.15, 1.0, 6.0), 0.9), (12.0, (0.5, 1.0, 2.0), 0.5), (130.0, (0.3, 0.3, 0.3), 0.95)],
)
def test_planted_shapes_are_met(size, ratios, least):
    """Not all of the small ones: a box of 12 pixels may lie 4 off an anchor's centre on both axes."""
    sides = sides_of(np.random.default_rng(0), 150, size=size, ratios=ratios)
    fitted = fit_anchors(sides, START, strides=STRIDES)
    assert matched_share(sides, fitted) > max(least, matched_share(sides, START) + 0.2)
    if size == 40.0:
        np.testing.assert_allclose(fitted.ratios, ratios, rtol=0.15)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_fit_is_ordered_repeatable_and_has_no_unit(seed):
    rng = np.random.default_rng(seed)
    sides = sides_of(rng, 60, size=rng.uniform(8, 100), ratios=rng.uniform(0.3, 3.0, 2))
    fitted = fit_anchors(sides, START, strides=STRIDES)
    assert fitted == fit_anchors(sides, START, strides=STRIDES)
    assert fitted.scales[0] == 1.0
    assert max(fitted.scales) <= 2.0
    for values, like in zip(vars(fitted).values(), vars(START).values(), strict=True):
        assert len(values) == len(like)
        assert list(values) == sorted(values)
        assert min(values) > 0
    # Sides, anchors and strides twice as long: so is the fit, up to its rounding to three digits.
    doubled = AnchorShapes(tuple(2 * size for size in START.sizes), START.scales, START.ratios)
    twice = fit_anchors(2 * sides, doubled, strides=[2 * stride for stride in STRIDES])
    np.testing.assert_allclose(twice.sizes, 2 * np.array(fitted.sizes), rtol=0.01)
    np.testing.assert_allclose(twice.ratios, fitted.ratios, rtol=0.01)


def test_anchors_that_fit_already_are_kept_within_a_little():
    shapes = np.multiply.outer(START.sizes, START.scales).ravel()
    sides = np.concatenate([[(s * np.sqrt(r), s / np.sqrt(r)) for s in shapes] for r in START.ratios])
    fitted = fit_anchors(np.repeat(sides, 5, axis=0), START, strides=(1, 2))
    for values, expected in zip(vars(fitted).values(), vars(START).values(), strict=True):
        np.testing.assert_allclose(values, expected, rtol=0.02)


def test_many_boxes_are_sampled_by_the_seed(monkeypatch):
    sides = sides_of(np.random.default_rng(0), 400)
    of_all = fit_anchors(sides, START, strides=STRIDES)
    monkeypatch.setattr(anchor_fit, "_MOST_BOXES", 150)
    of_some = fit_anchors(sides, START, strides=STRIDES, seed=3)
    assert of_some == fit_anchors(sides, START, strides=STRIDES, seed=3)
    assert of_some != of_all
    assert matched_share(sides, of_some) > matched_share(sides, of_all) - 0.05


@pytest.mark.parametrize(
    ("sides", "strides", "words"),
    [
        (np.zeros((0, 2)), STRIDES, "at least one box"),
        (np.array([[3.0, 0.0]]), STRIDES, "all above 0"),
        (np.ones((2, 2)), (8,), "sizes has 2 entries, strides 1"),
    ],
)
def test_impossible_arguments_are_refused(sides, strides, words):
    with pytest.raises(ValueError, match=words):
        fit_anchors(sides, START, strides=strides)

"""Coverage of boxes by anchors, beside the matching of one image and a plain IoU."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.detection import assign_anchors, pyramid_anchors
from focaljax.detection.coverage import measure_coverage
from focaljax.losses import BACKGROUND, IGNORED

SIZE = (32, 48)
ANCHORS = pyramid_anchors(SIZE, levels=(3, 4), sizes=(10.0, 20.0), scales=(1.0,), ratios=(0.5, 2.0))


def iou(a, b):
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
    return np.prod(sides) / (sum(areas) - np.prod(sides))


def random_boxes(rng, count):
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * (SIZE[1] - 2, SIZE[0] - 2)
    corners[:, 1] += 1
    return corners.reshape(-1, 4).astype(np.float32)


@settings(max_examples=6)
@given(seed=st.integers(0, 1000), low_quality=st.booleans())
def test_each_image_is_what_its_own_matching_gives(seed, low_quality):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 12, 10)
    boxes, is_crowd = random_boxes(rng, counts.sum()), rng.random(counts.sum()) < 0.2
    matching = {"positive_iou": 0.4, "negative_iou": 0.3, "low_quality": low_quality}
    coverage = measure_coverage(ANCHORS, boxes, is_crowd, counts, **matching)
    all_anchors = np.concatenate(ANCHORS)
    start = 0
    for image, count in enumerate(counts.tolist()):
        rows = slice(start, start + count)
        start += count
        pad = ((0, 12 - count), (0, 0))
        targets = assign_anchors(
            jnp.asarray(all_anchors),
            jnp.pad(boxes[rows], pad),
            jnp.arange(12),
            jnp.pad(is_crowd[rows], pad[0]),
            jnp.arange(12) < count,
            **matching,
        )
        labels = np.asarray(targets.labels)
        assert coverage.positives[image] == (labels >= 0).sum()
        assert coverage.ignored[image] == (labels == IGNORED).sum()
        assert coverage.background[image] == (labels == BACKGROUND).sum()
        assert coverage.assigned[rows].tolist() == np.bincount(labels[labels >= 0], minlength=12)[:count].tolist()
    row = int(np.argmax(~is_crowd)) if len(boxes) else None
    if row is not None and not is_crowd[row]:
        overlaps = np.array([iou(anchor, boxes[row]) for anchor in all_anchors])
        assert coverage.best_iou[row] == pytest.approx(overlaps.max(), abs=1e-5)
        level = 0 if overlaps[: len(ANCHORS[0])].max() >= overlaps.max() - 1e-6 else 1
        assert coverage.best_level[row] == level
    assert not coverage.best_iou[is_crowd].any()


def test_boxes_that_are_anchors_are_met_exactly():
    inside = [
        np.asarray(level)[(np.asarray(level)[:, :2] >= 0).all(1) & (np.asarray(level)[:, 2:] <= (48, 32)).all(1)]
        for level in ANCHORS
    ]
    boxes = np.concatenate(inside)
    coverage = measure_coverage(ANCHORS, boxes, np.zeros(len(boxes), bool), np.ones(len(boxes), int))
    np.testing.assert_allclose(coverage.best_iou, 1.0, rtol=1e-6)
    assert coverage.best_level.tolist() == [0] * len(inside[0]) + [1] * len(inside[1])


def test_image_without_boxes_is_all_background():
    coverage = measure_coverage(ANCHORS, np.zeros((0, 4)), np.zeros(0, bool), np.array([0, 0]))
    assert coverage.background.tolist() == [sum(len(level) for level in ANCHORS)] * 2
    assert len(coverage.best_iou) == 0


def test_counts_that_do_not_fit_the_boxes_are_refused():
    with pytest.raises(ValueError, match="counts must sum to the number of boxes, 2, got 3"):
        measure_coverage(ANCHORS, np.zeros((2, 4)), np.zeros(2, bool), np.array([1, 2]))

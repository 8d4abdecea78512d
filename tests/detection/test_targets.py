from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.detection import assign_anchors, pairwise_iou, pyramid_anchors
from focaljax.losses import BACKGROUND, IGNORED
from tests.users_programs import jit_as_users

THRESHOLDS = ("positive_iou", "negative_iou", "low_quality", "low_quality_at_zero")
assign = jax.jit(assign_anchors, static_argnames=THRESHOLDS)


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def common(a, b):
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def iou(a, b):
    union = area(a) + area(b) - common(a, b)
    return Fraction(common(a, b), union) if union else Fraction(0)


def expected_targets(anchors, boxes, labels, is_crowd, is_box, positive, negative, low_quality):
    """The rules, anchor by anchor, in exact arithmetic on integer corners. Returns (label, box index) of each."""
    anchors, boxes = [[int(v) for v in a] for a in anchors], [[int(v) for v in b] for b in boxes]
    objects = [n for n in range(len(boxes)) if is_box[n] and not is_crowd[n]]
    crowds = [n for n in range(len(boxes)) if is_box[n] and is_crowd[n]]
    best_of_box = {n: max(iou(a, boxes[n]) for a in anchors) for n in objects}
    result = []
    for anchor in anchors:
        overlaps = {n: iou(anchor, boxes[n]) for n in objects}
        best = max(overlaps, key=overlaps.get) if objects else None
        value = overlaps[best] if objects else Fraction(-1)  # background, even if the ignored band begins at 0
        is_best = low_quality and any(overlaps[n] == best_of_box[n] > 0 for n in objects)
        if objects and (value >= positive or is_best):
            result.append((labels[best], best))
        elif value >= negative or any(2 * common(anchor, boxes[n]) >= area(anchor) for n in crowds):
            result.append((IGNORED, None))
        else:
            result.append((BACKGROUND, None))
    return result


def box_in(limit):
    """A box with integer corners, sometimes without area."""
    position, side = st.integers(0, limit), st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 10, 16])
    return st.tuples(position, position, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


# On a grid of 4 px, so that equal overlaps are common; every area is positive.
ANCHORS = np.float32([(x, y, x + w, y + h) for x in (0, 4, 8) for y in (0, 4, 8) for w, h in ((4, 4), (8, 4), (8, 8))])
GARBAGE = np.float32([[np.nan] * 4, [0, 0, np.inf, np.inf], [0, 0, 12, 12]])


@settings(max_examples=200)
@given(
    st.lists(st.tuples(box_in(16), st.booleans() | st.just(False)), max_size=4),
    st.sampled_from([(0.5, 0.4), (0.5, 0.5), (1.0, 0.0)]),
    st.booleans(),
    st.integers(0, 2),
)
def test_targets_equal_the_rules_applied_one_by_one(objects, thresholds, low_quality, garbage):
    boxes = np.concatenate([np.float32([box for box, _ in objects]).reshape(-1, 4), GARBAGE[[garbage] * 4]])[:4]
    is_crowd = np.array([crowd for _, crowd in objects] + [True, False, True, False])[:4]
    is_box = np.arange(4) < len(objects)
    labels = np.array([3, 0, 7, 1])
    targets = assign(ANCHORS, boxes, labels, is_crowd, is_box, positive_iou=thresholds[0], negative_iou=thresholds[1],
                     low_quality=low_quality)  # fmt: skip
    real = np.where(is_box[:, None], boxes, 0)
    exact = [Fraction(str(threshold)) for threshold in thresholds]
    expected = expected_targets(ANCHORS, real, labels, is_crowd, is_box, *exact, low_quality)
    np.testing.assert_array_equal(targets.labels, [label for label, _ in expected])
    for anchor, (label, box) in enumerate(expected):
        if label >= 0:
            np.testing.assert_array_equal(targets.boxes_xyxy[anchor], boxes[box])
    assert targets.labels.dtype == np.int32
    np.testing.assert_array_equal(targets.is_positive, np.asarray(targets.labels) >= 0)
    np.testing.assert_array_equal(targets.is_ignored, np.asarray(targets.labels) == IGNORED)


def one_box(anchors, box, **thresholds):
    yes, no = np.array([True]), np.array([False])
    return list(np.asarray(assign(
        np.float32(anchors), np.float32([box]), np.array([5]), no, yes, **thresholds
    ).labels))  # fmt: skip


def test_thresholds_belong_to_the_better_state():
    # A box of 10 px^2 in which the anchors lie: IoU 10/10, 5/10, 4/10, 3.9/10.
    anchors = [[0, 0, 10, 1], [0, 0, 5, 1], [0, 0, 4, 1], [0, 0, 3.9, 1]]
    assert one_box(anchors, [0, 0, 10, 1]) == [5, 5, IGNORED, BACKGROUND]
    assert one_box(anchors, [0, 0, 10, 1], negative_iou=0.5) == [5, 5, BACKGROUND, BACKGROUND]


def test_best_anchors_of_a_hard_box_are_assigned_ties_included():
    # IoU 3/10 twice and 2/10: below both thresholds, but the first two are the best that the box has.
    anchors = [[0, 0, 3, 1], [7, 0, 10, 1], [4, 0, 6, 1], [20, 0, 30, 1]]
    assert one_box(anchors, [0, 0, 10, 1]) == [5, 5, BACKGROUND, BACKGROUND]
    assert one_box(anchors, [0, 0, 10, 1], low_quality=False) == [BACKGROUND] * 4


def test_box_that_meets_no_anchor_gets_none():
    assert one_box([[0, 0, 4, 4], [4, 0, 8, 4]], [100, 100, 104, 104]) == [BACKGROUND, BACKGROUND]
    assert one_box([[0, 0, 4, 4], [4, 0, 8, 4]], [2, 2, 2, 2]) == [BACKGROUND, BACKGROUND]


def test_box_that_meets_no_anchor_assigns_all_to_their_best_as_torchvision_does_if_asked():
    anchors, boxes = (
        np.float32([[0, 0, 4, 4], [3, 0, 7, 4], [20, 0, 24, 4]]),
        np.float32([[90, 90, 94, 94], [0, 0, 4, 4]]),
    )
    yes, no = np.ones(2, bool), np.zeros(2, bool)
    targets = assign(anchors, boxes, np.array([1, 2]), no, yes, low_quality_at_zero=True)
    # The last anchor meets neither box, so the first of them counts as its best.
    np.testing.assert_array_equal(targets.labels, [2, 2, 1])
    np.testing.assert_array_equal(targets.boxes_xyxy, boxes[[1, 1, 0]])
    np.testing.assert_array_equal(assign(anchors, boxes, np.array([1, 2]), no, yes).labels, [2, BACKGROUND, BACKGROUND])
    # Neither padding nor a crowd region is such a box.
    for is_crowd, is_box in ((no, np.array([False, True])), (np.array([True, False]), yes)):
        alone = assign(anchors, boxes, np.array([1, 2]), is_crowd, is_box, low_quality_at_zero=True)
        np.testing.assert_array_equal(alone.labels, [2, BACKGROUND, BACKGROUND])
    with pytest.raises(ValueError, match="low_quality_at_zero is a part of the low-quality rule"):
        one_box(anchors, boxes[0], low_quality=False, low_quality_at_zero=True)


def test_best_anchor_of_one_box_stays_with_the_box_that_it_fits_better():
    # The anchor is the only one, so it is both boxes' best; its own best is the second box.
    anchors, boxes = np.float32([[0, 0, 4, 4]]), np.float32([[0, 0, 2, 2], [0, 0, 4, 4]])
    yes, no = np.ones(2, bool), np.zeros(2, bool)
    targets = assign(anchors, boxes, np.array([1, 2]), no, yes)
    np.testing.assert_array_equal(targets.labels, [2])
    np.testing.assert_array_equal(targets.boxes_xyxy, boxes[1:])


@pytest.mark.parametrize("low_quality", [True, False])
def test_image_without_boxes_is_all_background(low_quality):
    empty = assign(ANCHORS, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool),
                   low_quality=low_quality)  # fmt: skip
    padded = assign(ANCHORS, GARBAGE, np.arange(3), np.array([True, False, True]), np.zeros(3, bool),
                    low_quality=low_quality, negative_iou=0.0)  # fmt: skip
    for targets in (empty, padded):
        np.testing.assert_array_equal(targets.labels, np.full(len(ANCHORS), BACKGROUND))
        assert targets.boxes_xyxy.shape == (len(ANCHORS), 4)


def test_anchors_in_a_crowd_are_ignored_unless_they_are_assigned():
    # Half inside the crowd, a little less than half, wholly inside and on an object, outside.
    anchors = np.float32([[6, 0, 14, 4], [7, 0, 15, 4], [0, 0, 4, 4], [40, 0, 44, 4]])
    boxes, is_crowd = np.float32([[0, 0, 10, 10], [0, 0, 4, 4]]), np.array([True, False])
    targets = assign(anchors, boxes, np.array([1, 2]), is_crowd, np.ones(2, bool))
    assert list(np.asarray(targets.labels)) == [IGNORED, BACKGROUND, 2, BACKGROUND]
    only_crowd = assign(anchors, boxes, np.array([1, 2]), np.ones(2, bool), np.ones(2, bool))
    assert list(np.asarray(only_crowd.labels)) == [IGNORED, BACKGROUND, IGNORED, BACKGROUND]


@pytest.fixture(scope="module")
def realistic_batch():
    """Real anchors and boxes with fractional corners, which round in every operation."""
    anchors = np.concatenate(pyramid_anchors((96, 128), levels=(3, 4, 5), sizes=(16.0, 32.0, 64.0)))
    random = np.random.default_rng(0)
    corner = random.uniform(0, 90, size=(12, 8, 2))
    boxes = np.concatenate([corner, corner + random.lognormal(2.5, 1, size=(12, 8, 2))], axis=-1).astype(np.float32)
    boxes[:, 7] = boxes[:, 6]  # two objects in one place
    return anchors, boxes, random.integers(0, 5, (12, 8)), random.random((12, 8)) < 0.15, random.random((12, 8)) < 0.8


def test_vmap_and_jit_equal_the_eager_function_image_by_image(realistic_batch):
    anchors, *batch = realistic_batch
    batched = jax.jit(jax.vmap(assign_anchors, in_axes=(None, 0, 0, 0, 0)))(anchors, *batch)
    for image in range(2):
        alone = assign_anchors(anchors, *(field[image] for field in batch))
        np.testing.assert_array_equal(batched.labels[image], alone.labels)
        np.testing.assert_array_equal(batched.boxes_xyxy[image], alone.boxes_xyxy)


def test_every_object_that_meets_an_anchor_has_its_best_one_assigned_in_compiled_code(realistic_batch):
    # A compiler that computed the overlaps twice, rounding them in two ways, would break the search for the best.
    anchors, *batch = realistic_batch
    batched = jax.jit(jax.vmap(assign_anchors, in_axes=(None, 0, 0, 0, 0)))(anchors, *batch)
    boxes, _, is_crowd, is_box = batch
    for image in range(len(boxes)):
        best_anchor = np.asarray(pairwise_iou(anchors, boxes[image])).argmax(axis=0)[is_box[image] & ~is_crowd[image]]
        assert np.asarray(batched.is_positive[image])[best_anchor].all()


@pytest.fixture(scope="module")
def crowded_image():
    """More boxes than are compared at once, a number that does not divide, crowds and padding among them."""
    anchors = np.concatenate(pyramid_anchors((128, 128), levels=(3, 4, 5), sizes=(16.0, 32.0, 64.0)))
    random = np.random.default_rng(0)
    corner = random.uniform(0, 110, size=(101, 2))
    boxes = np.concatenate([corner, corner + random.lognormal(2.5, 1, size=(101, 2))], axis=1).astype(np.float32)
    boxes[70] = boxes[10]  # equals, far from each other
    return anchors, boxes, random.integers(0, 5, 101), random.random(101) < 0.1, random.random(101) < 0.9


@pytest.mark.parametrize("low_quality", [True, False])
def test_many_boxes_are_matched_as_if_they_were_compared_at_once(crowded_image, low_quality):
    anchors, boxes, labels, is_crowd, is_box = crowded_image
    is_object = is_box & ~is_crowd
    iou = np.where(is_object, jax.jit(pairwise_iou)(anchors, boxes), -1.0)
    best_of_box = iou.max(axis=0)
    is_positive = iou.max(axis=1) >= 0.5
    if low_quality:
        is_positive |= ((iou == best_of_box) & (best_of_box > 0)).any(axis=1)
    targets = assign(*crowded_image, low_quality=low_quality)
    np.testing.assert_array_equal(targets.is_positive, is_positive)
    np.testing.assert_array_equal(np.asarray(targets.labels)[is_positive], labels[iou.argmax(axis=1)][is_positive])
    np.testing.assert_array_equal(np.asarray(targets.boxes_xyxy)[is_positive], boxes[iou.argmax(axis=1)][is_positive])
    # The order of the boxes decides between equals and nothing else.
    order = np.random.default_rng(1).permutation(101)
    shuffled = assign(anchors, boxes[order], labels[order], is_crowd[order], is_box[order], low_quality=low_quality)
    np.testing.assert_array_equal(shuffled.is_positive, targets.is_positive)
    np.testing.assert_array_equal(shuffled.is_ignored, targets.is_ignored)


def test_memory_does_not_grow_with_the_number_of_boxes():
    shapes = lambda *shape, dtype=np.float32: jax.ShapeDtypeStruct(shape, dtype)  # noqa: E731
    anchors, most = 20_000, 512
    program = jit_as_users(assign_anchors)

    def temporaries(count):
        boxes = shapes(count, 4), shapes(count, dtype=int), shapes(count, dtype=bool), shapes(count, dtype=bool)
        return program.lower(shapes(anchors, 4), *boxes).compile().memory_analysis().temp_size_in_bytes

    # A number for each anchor and each of 512 boxes would be 41 MB.
    assert temporaries(most) < 1.5 * temporaries(128)
    assert temporaries(most) < 4 * anchors * most / 3


def test_impossible_thresholds_are_refused():
    for thresholds in ((0.5, 0.6), (0.0, 0.0), (1.5, 0.4), (0.5, -0.1)):
        with pytest.raises(ValueError, match=f"got negative_iou {thresholds[1]} and positive_iou {thresholds[0]}"):
            one_box([[0, 0, 4, 4]], [0, 0, 4, 4], positive_iou=thresholds[0], negative_iou=thresholds[1])


def test_a_batch_or_unequal_lengths_are_refused():
    # Out-of-range indices are clamped on the device: without the check, a short array gives wrong labels silently.
    two, three = np.zeros(2, bool), np.zeros(3, bool)
    with pytest.raises(ValueError, match=r"labels must have the shape \(3,\), got \(2,\)"):
        assign_anchors(ANCHORS, GARBAGE, np.zeros(2, int), three, three)
    with pytest.raises(ValueError, match=r"is_box must have the shape \(3,\), got \(2,\)"):
        assign_anchors(ANCHORS, GARBAGE, np.zeros(3, int), three, two)
    with pytest.raises(ValueError, match=r"boxes_xyxy must have the shape \(2, 4\), got \(2, 3, 4\); .*jax.vmap"):
        assign_anchors(ANCHORS, np.zeros((2, 3, 4)), np.zeros(2, int), two, two)

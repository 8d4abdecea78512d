import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.losses.box import iou_loss
from focaljax.losses.mining import hard_negative_mask, ohem_mask
from focaljax.losses.reductions import mean_over_positives
from tests.users_programs import jit_as_users

A = 12
NOTHING = np.zeros(A, bool)
# Few values, so that ties are frequent.
LOSSES = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 1e30, np.inf, np.nan])
MASKS = st.lists(st.booleans(), min_size=A, max_size=A).map(np.array)
VECTORS = st.lists(LOSSES, min_size=A, max_size=A).map(np.float32)


@functools.cache
def compiled(function, **hyperparameters):
    return jax.jit(functools.partial(function, **hyperparameters))


def hardest_first(loss, candidates):
    """Indices of the candidates by falling loss, NaN first; Python's sort keeps the order of equals."""
    return sorted(candidates, key=lambda i: (not np.isnan(loss[i]), 0.0 if np.isnan(loss[i]) else -float(loss[i])))


def as_mask(kept, num_anchors):
    mask = np.zeros(num_anchors)
    mask[list(kept)] = 1.0
    return mask


# hard_negative_mask


@pytest.mark.parametrize(("ratio", "minimum"), [(3, 0), (1, 2), (0, 0), (0, 4), (2**40, 0), (0, 2**40)])
@hypothesis.given(loss=VECTORS, is_positive=MASKS, is_ignored=MASKS)
@hypothesis.settings(max_examples=40)
def test_hard_negatives_are_those_of_a_sort(ratio, minimum, loss, is_positive, is_ignored):
    positives = [i for i in range(A) if is_positive[i] and not is_ignored[i]]
    negatives = [i for i in range(A) if not is_positive[i] and not is_ignored[i]]
    kept = hardest_first(loss, negatives)[: max(ratio * len(positives), minimum)]
    mask = compiled(hard_negative_mask, negatives_per_positive=ratio, min_negatives=minimum)
    np.testing.assert_array_equal(mask(loss, is_positive, is_ignored), as_mask(positives + kept, A))


def test_hard_negatives_by_hand():
    # Anchor 3 is the one positive: of the negatives 5, 1, 9, 9, 7 its three hardest are the two 9s and the 7.
    loss = np.float32([5, 1, 9, 0, 9, 7])
    is_positive = np.arange(6) == 3
    np.testing.assert_array_equal(hard_negative_mask(loss, is_positive), [0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(hard_negative_mask(loss, is_positive, negatives_per_positive=1), [0, 0, 1, 1, 0, 0])


def test_of_equal_losses_the_first_negatives_are_kept_and_no_more():
    mask = hard_negative_mask(np.ones(1000, np.float32), np.arange(1000) == 500, negatives_per_positive=7)
    np.testing.assert_array_equal(np.flatnonzero(mask), [0, 1, 2, 3, 4, 5, 6, 500])


def test_image_without_positives_keeps_the_minimum_of_negatives():
    loss = np.arange(A, dtype=np.float32)
    assert hard_negative_mask(loss, NOTHING).sum() == 0
    np.testing.assert_array_equal(np.flatnonzero(hard_negative_mask(loss, NOTHING, min_negatives=2)), [A - 2, A - 1])
    assert hard_negative_mask(loss, NOTHING, ~NOTHING, min_negatives=2).sum() == 0


def test_as_many_negatives_as_there_are_in_a_large_image_without_overflow():
    # 60,000 positives times 60,000 is more than int32 holds.
    is_positive = np.arange(100_000) < 60_000
    mask = hard_negative_mask(np.ones(100_000, np.float32), is_positive, negatives_per_positive=60_000)
    assert mask.sum() == 100_000


def test_losses_that_float32_holds_only_as_subnormals_are_told_apart():
    loss = np.float32([0.0, 1e-45, 3e-45, 1e-45])
    mask = compiled(hard_negative_mask, min_negatives=2)(loss, np.zeros(4, bool))
    np.testing.assert_array_equal(mask, [0, 1, 1, 0])


def test_the_sign_of_zero_and_of_nan_has_no_influence():
    mask = compiled(hard_negative_mask, min_negatives=1)
    np.testing.assert_array_equal(mask(np.float32([1, -np.nan, np.nan]), np.zeros(3, bool)), [0, 1, 0])
    np.testing.assert_array_equal(mask(np.float32([-1, -0.0, 0.0]), np.zeros(3, bool)), [0, 1, 0])


# ohem_mask


def iou_of_one_with_many(box, boxes):
    # In float64, where a quotient of whole areas is the nearest number to it, as 0.7 is to seven tenths.
    box, boxes = np.float64(box), np.float64(boxes)
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    intersection = np.where((width > 0) & (height > 0), width * height, 0.0)
    area, areas = ((b[..., 2] - b[..., 0]).clip(0) * (b[..., 3] - b[..., 1]).clip(0) for b in (box, boxes))
    return intersection / np.maximum(area + areas - intersection, 1e-30)


def naive_survivors(loss, boxes, iou_threshold, is_ignored):
    """All survivors of greedy suppression, hardest first."""
    left, survivors = hardest_first(loss, np.flatnonzero(~is_ignored)), []
    while left:
        best = left.pop(0)
        survivors.append(best)
        is_dropped = iou_of_one_with_many(boxes[best], boxes) > iou_threshold
        left = [i for i in left if not is_dropped[i]]
    return survivors


def naive_ohem(loss, boxes, size, iou_threshold, is_positive, is_ignored, ratio):
    survivors = naive_survivors(loss, boxes, iou_threshold, is_ignored)
    if ratio is None:
        return as_mask(survivors[:size], len(loss))
    positives = [i for i in survivors if is_positive[i]][: size // (1 + ratio)]
    negatives = [i for i in survivors if not is_positive[i]][: ratio * len(positives)]
    return as_mask(positives + negatives, len(loss))


# Whole and small, so that equal, touching, empty and inverted boxes and overlaps of exactly 0.5 and 0.7 occur.
SMALL_BOXES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 10), st.integers(0, 4)), min_size=A, max_size=A
).map(np.float32)


@pytest.mark.parametrize(
    ("size", "iou_threshold", "ratio"),
    [
        (4, 0.5, None),
        (3, 0.7, None),
        (2 * A, 0.0, None),
        (A, 1.0, None),
        (8, 0.5, 3),
        (6, 0.7, 1),
        (3, 0.5, 0),
        (A, 0.0, 2),
    ],
)
@hypothesis.given(loss=VECTORS, boxes=SMALL_BOXES, is_positive=MASKS, is_ignored=MASKS)
@hypothesis.settings(max_examples=40)
def test_ohem_is_that_of_a_naive_loop(size, iou_threshold, ratio, loss, boxes, is_positive, is_ignored):
    mask = compiled(ohem_mask, size=size, iou_threshold=iou_threshold, negatives_per_positive=ratio)
    np.testing.assert_array_equal(
        mask(loss, boxes, is_positive=is_positive, is_ignored=is_ignored),
        naive_ohem(loss, boxes, size, iou_threshold, is_positive, is_ignored, ratio),
    )


@functools.cache
def crowded_image(seed, num_anchors=160):
    """Many boxes on few places, so that chains of boxes drop one another; a tenth positive, with losses all over."""
    random = np.random.default_rng(seed)
    centers = random.uniform(0, 40, (num_anchors, 2))
    half_sides = random.uniform(8, 14, (num_anchors, 2))
    boxes = np.concatenate([centers - half_sides, centers + half_sides], axis=1).astype(np.float32)
    loss = random.exponential(size=num_anchors).astype(np.float32)
    return loss, boxes, random.random(num_anchors) < 0.1, random.random(num_anchors) < 0.1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "iou_threshold"), [(8, 0.5), (32, 0.3), (64, 0.7)])
def test_ohem_of_a_crowded_image_is_that_of_a_naive_loop(seed, size, iou_threshold):
    loss, boxes, is_positive, is_ignored = crowded_image(seed)
    for ratio in (None, 3):
        mask = compiled(ohem_mask, size=size, iou_threshold=iou_threshold, negatives_per_positive=ratio)
        actual = mask(loss, boxes, is_positive=is_positive, is_ignored=is_ignored)
        expected = naive_ohem(loss, boxes, size, iou_threshold, is_positive, is_ignored, ratio)
        np.testing.assert_array_equal(actual, expected)


def test_overlap_is_that_of_the_iou_loss():
    """Of two boxes both are kept unless their IoU is above the threshold."""
    _, boxes, _, _ = crowded_image(0)
    mask = jax.jit(jax.vmap(functools.partial(ohem_mask, np.ones(2, np.float32), size=2, iou_threshold=0.4)))
    pairs = np.stack([boxes[:-1], boxes[1:]], axis=1)
    iou = 1.0 - np.asarray(iou_loss(pairs[:, 0], pairs[:, 1]))
    assert 10 < (iou > 0.4).sum() < 150
    np.testing.assert_array_equal(mask(pairs).sum(axis=1) == 1, iou > 0.4)


def test_ohem_by_hand():
    # IoU of 0 with 1 is 16 / 20 = 0.8; 2 is apart; 3 shares half of 2: IoU 8 / 16 = 0.5, which drops at 0.4 only.
    boxes = np.float32([[0, 0, 4, 4], [0, 0, 4, 5], [10, 0, 14, 4], [10, 0, 14, 2]])
    loss = np.float32([2, 3, 4, 1])
    for size, iou_threshold, expected in [
        (4, 0.7, [0, 1, 1, 1]),
        (4, 0.8, [1, 1, 1, 1]),
        (4, 0.5, [0, 1, 1, 1]),
        (4, 0.4, [0, 1, 1, 0]),
        (2, 0.5, [0, 1, 1, 0]),
        (1, 0.5, [0, 0, 1, 0]),
    ]:
        np.testing.assert_array_equal(ohem_mask(loss, boxes, size=size, iou_threshold=iou_threshold), expected)


def apart(num_anchors):
    corner = 10.0 * np.arange(num_anchors, dtype=np.float32)
    return np.stack([corner, corner, corner + 5, corner + 5], axis=1)


def test_with_a_ratio_the_number_kept_follows_the_positives():
    loss = np.arange(A, 0, -1, dtype=np.float32)
    ohem = functools.partial(ohem_mask, loss, apart(A), negatives_per_positive=3)
    # Positives 10 and 11 are the easiest: both find room in 8 with 6 negatives, one in 7 with 3.
    is_positive = np.arange(A) >= 10
    np.testing.assert_array_equal(np.flatnonzero(ohem(size=8, is_positive=is_positive)), [0, 1, 2, 3, 4, 5, 10, 11])
    np.testing.assert_array_equal(np.flatnonzero(ohem(size=7, is_positive=is_positive)), [0, 1, 2, 10])
    # One positive in a large minibatch has three negatives, and none has none.
    assert ohem(size=512, is_positive=np.arange(A) == 5).sum() == 4
    assert ohem(size=512, is_positive=NOTHING).sum() == 0
    assert ohem(size=512, is_positive=~NOTHING).sum() == A
    assert ohem(size=2**40, is_positive=~NOTHING).sum() == A
    assert ohem(size=2**40, is_positive=~NOTHING, negatives_per_positive=None).sum() == A
    assert ohem(size=8, is_positive=~NOTHING).sum() == 2
    assert ohem(size=512, is_positive=is_positive, is_ignored=is_positive).sum() == 0


def test_a_positive_that_a_harder_negative_covers_is_dropped_and_does_not_count():
    boxes = apart(4)
    boxes[1] = boxes[0]
    is_positive = np.array([False, True, False, False])
    loss = np.float32([3, 2, 1, 1])
    assert ohem_mask(loss, boxes, size=4, is_positive=is_positive, negatives_per_positive=1).sum() == 0
    loss = np.float32([2, 3, 1, 1])
    np.testing.assert_array_equal(
        ohem_mask(loss, boxes, size=4, is_positive=is_positive, negatives_per_positive=3), [0, 1, 1, 1]
    )


def test_ignored_anchors_drop_no_others():
    boxes = np.tile(np.float32([0, 0, 4, 4]), (3, 1))
    loss = np.float32([3, 2, 1])
    np.testing.assert_array_equal(ohem_mask(loss, boxes, size=3, is_ignored=np.array([True, False, False])), [0, 1, 0])


def test_without_a_ratio_the_positives_have_no_influence():
    loss, boxes, is_positive, _ = crowded_image(1)
    ohem = compiled(ohem_mask, size=16)
    np.testing.assert_array_equal(ohem(loss, boxes, is_positive=is_positive), ohem(loss, boxes))


def test_boxes_that_are_not_numbers_overlap_nothing():
    boxes = np.full((3, 4), np.nan, np.float32)
    np.testing.assert_array_equal(ohem_mask(np.ones(3, np.float32), boxes, size=2), [1, 1, 0])


def test_a_hundred_thousand_anchors_need_no_matrix_of_pairs():
    shapes = jax.ShapeDtypeStruct((100_000,), jnp.float32), jax.ShapeDtypeStruct((100_000, 4), jnp.float32)
    memory = jit_as_users(functools.partial(ohem_mask, size=512)).lower(*shapes).compile().memory_analysis()
    # 40 MB is 100 numbers an anchor; a matrix of pairs takes 40 GB, of anchors with the 512 kept 200 MB.
    assert memory.temp_size_in_bytes < 40e6


# both


def both_masks(loss, boxes, is_positive, is_ignored):
    hard = hard_negative_mask(loss, is_positive, is_ignored)
    plain = ohem_mask(loss, boxes, size=16, iou_threshold=0.5, is_ignored=is_ignored)
    balanced = ohem_mask(
        loss,
        boxes,
        size=16,
        iou_threshold=0.5,
        is_positive=is_positive,
        is_ignored=is_ignored,
        negatives_per_positive=3,
    )
    return jnp.stack([hard, plain, balanced])


def test_a_batch_by_vmap_equals_its_images():
    images = [crowded_image(seed) for seed in range(4)]
    batch = [np.stack(arrays) for arrays in zip(*images, strict=True)]
    batch[2][0] = False  # an image that is done before the others begin
    single = jax.jit(both_masks)
    expected = np.stack([single(*(array[i] for array in batch)) for i in range(4)])
    np.testing.assert_array_equal(jax.jit(jax.vmap(both_masks))(*batch), expected)
    np.testing.assert_array_equal(both_masks(*(array[1] for array in batch)), expected[1])


def test_no_gradient_flows_through_the_choice():
    loss, boxes, is_positive, is_ignored = crowded_image(2)

    def mined(loss, boxes):
        return both_masks(loss, boxes, is_positive, is_ignored) @ (loss * loss)

    masks = both_masks(loss, boxes, is_positive, is_ignored)
    by_loss, by_boxes = jax.jit(jax.jacrev(mined, argnums=(0, 1)))(loss, boxes)
    np.testing.assert_allclose(by_loss, masks * (2 * loss), rtol=1e-6)
    np.testing.assert_array_equal(by_boxes, np.zeros((3, *boxes.shape)))
    by_loss = jax.jit(jax.jacfwd(mined))(loss, boxes)
    np.testing.assert_allclose(by_loss, masks * (2 * loss), rtol=1e-6)
    hessian = jax.jit(jax.hessian(lambda loss, boxes: mined(loss, boxes)[2]))(loss, boxes)
    np.testing.assert_allclose(hessian, np.diag(2 * np.asarray(masks[2])), rtol=1e-6)


def test_ssd_loss_is_the_sum_over_what_is_kept_by_the_positives():
    # Positive 0.5 and its hardest negatives 4 and 2, over one positive.
    loss, is_positive = np.float32([0.5, 1, 4, 2]), np.arange(4) == 0
    weights = hard_negative_mask(loss, is_positive, negatives_per_positive=2)
    assert mean_over_positives(weights * loss, is_positive) == 6.5


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64")]
)
def test_weights_are_float32_or_float64(dtype, expected):
    with jax.enable_x64(dtype == "float64"):
        loss, boxes, is_positive, is_ignored = crowded_image(3)
        loss = jnp.asarray(loss, dtype)
        masks = both_masks(loss, jnp.asarray(boxes, dtype), is_positive, is_ignored)
        assert masks.dtype == expected
        hard = hard_negative_mask(np.asarray(loss, np.float32), is_positive, is_ignored)
        np.testing.assert_array_equal(masks[0], hard)


def test_float64_losses_are_told_apart_beyond_float32():
    with jax.enable_x64(True):
        loss = np.float64([1.0, 1.0 + 1e-12, 1.0])
        np.testing.assert_array_equal(hard_negative_mask(loss, np.zeros(3, bool), min_negatives=1), [0, 1, 0])
        np.testing.assert_array_equal(ohem_mask(loss, apart(3), size=1), [0, 1, 0])


def test_no_anchors():
    nothing = np.zeros(0, np.float32)
    assert hard_negative_mask(nothing, np.zeros(0, bool), min_negatives=1).shape == (0,)
    assert ohem_mask(nothing, np.zeros((0, 4)), size=4).shape == (0,)


# misuse

LOSS = np.ones(A, np.float32)
BOXES = apart(A)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            TypeError,
            "loss must be floating point, got int32",
            lambda: hard_negative_mask(np.ones(A, np.int32), NOTHING),
        ),
        (TypeError, "is_positive must be bool, got float32", lambda: hard_negative_mask(LOSS, np.ones(A))),
        (
            TypeError,
            "is_ignored must be bool, got int32",
            lambda: ohem_mask(LOSS, BOXES, size=1, is_ignored=np.ones(A, int)),
        ),
        (ValueError, r"loss has shape \(2, 12\).*jax.vmap", lambda: hard_negative_mask(np.ones((2, A)), NOTHING)),
        (ValueError, r"is_positive has shape \(3,\), loss \(12,\)", lambda: hard_negative_mask(LOSS, NOTHING[:3])),
        (ValueError, r"boxes_xyxy has shape \(3, 4\), loss \(12,\)", lambda: ohem_mask(LOSS, BOXES[:3], size=1)),
        (ValueError, "size must be at least 1, got 0", lambda: ohem_mask(LOSS, BOXES, size=0)),
        (
            TypeError,
            "size must be a whole number, known when tracing, got 2.5",
            lambda: ohem_mask(LOSS, BOXES, size=2.5),
        ),
        (
            ValueError,
            r"iou_threshold must be in \[0, 1\], got 50",
            lambda: ohem_mask(LOSS, BOXES, size=1, iou_threshold=50),
        ),
        (
            ValueError,
            "negatives_per_positive needs is_positive",
            lambda: ohem_mask(LOSS, BOXES, size=4, negatives_per_positive=3),
        ),
        (
            ValueError,
            "size is 3, with negatives_per_positive 3 it must be at least 4",
            lambda: ohem_mask(LOSS, BOXES, size=3, is_positive=NOTHING, negatives_per_positive=3),
        ),
        (
            ValueError,
            "min_negatives must be at least 0, got -1",
            lambda: hard_negative_mask(LOSS, NOTHING, min_negatives=-1),
        ),
        (
            TypeError,
            "negatives_per_positive must be a whole number",
            lambda: hard_negative_mask(LOSS, NOTHING, negatives_per_positive=1.5),
        ),
    ],
)
def test_misuse_is_told(error, message, call):
    with pytest.raises(error, match=message):
        call()

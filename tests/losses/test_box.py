import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

from focaljax.detection.boxes import pairwise_iou
from focaljax.losses import ciou_loss, diou_loss, giou_loss, iou_loss, l1, smooth_l1
from tests.users_programs import jit_as_users

OVERLAP_LOSSES = (iou_loss, giou_loss, diou_loss, ciou_loss)

# Pairs of prediction and target at which every loss of overlap has derivatives on both sides, the same or not.
SMOOTH = {
    "overlapping": ([1, 0.5, 3, 2.75], [0, 0, 2, 2]),
    "overlapping on the other side": ([-1.5, -0.5, 0.75, 1.5], [-1, -2, 3, 1]),
    "inside": ([0.5, 0.25, 1, 1.5], [0, 0, 2, 2]),
    "around": ([-1, -2, 3, 3], [0, 0, 2, 1]),
    "a cross": ([-3, 0.25, 3, 0.5], [0, -1, 1, 2]),
    "a cross of thin boxes": ([0, 0.5, 1, 0.50048828125], [0.5, -0.25, 0.50048828125, 0.75]),
    "apart on both axes": ([3, 3, 4, 5.5], [0, 0, 2, 2]),
    "apart on one axis": ([0.5, -4, 1.5, -1], [0, 0, 2, 2]),
    "far apart": ([300, 200, 301, 201.5], [0, 0, 2, 2]),
    "thin": ([0, 0, 100, 0.125], [50, -0.0625, 140, 0.03125]),
}
LEVEL = {
    "equal": ([0, 0, 2, 2], [0, 0, 2, 2]),
    "equal, far from the origin": ([1000, 2000, 1003, 2007], [1000, 2000, 1003, 2007]),
    "level on one side": ([0, 0.5, 3, 1], [0, 0, 2, 2]),
    "level on two sides": ([0, 0, 1.5, 3], [0, 0, 2, 2]),
    "the left half": ([0, 0, 1, 2], [0, 0, 2, 2]),
}
# The derivative is that of the side on which the boxes overlap, or open.
ONE_SIDED = {
    "touching on an edge": ([2, 0.5, 3, 1.5], [0, 0, 2, 2]),
    "touching in a corner": ([2, 2, 3, 4], [0, 0, 2, 2]),
    "a prediction without width inside": ([0.5, 0.5, 0.5, 1.5], [0, 0, 2, 2]),
    "a prediction without width outside": ([3, 0.5, 3, 1.5], [0, 0, 2, 2]),
    "a prediction without height inside": ([0.25, 0.5, 1.5, 0.5], [0, 0, 2, 2]),
    "a target without width inside": ([0, 0, 2, 2], [0.5, 0.5, 0.5, 1.5]),
    "a target without width outside": ([0, 0, 2, 2], [-1, -2, -1, 1.5]),
}
DEGENERATE = {
    "a point inside": ([0.5, 0.5, 0.5, 0.5], [0, 0, 2, 2]),
    "a point on a corner": ([2, 2, 2, 2], [0, 0, 2, 2]),
    "a point outside": ([5, 3, 5, 3], [0, 0, 2, 2]),
    "a target that is a point": ([0, 0, 2, 2], [0.5, 1.5, 0.5, 1.5]),
    "a point twice": ([1, 1, 1, 1], [1, 1, 1, 1]),
    "two points": ([1, 2, 1, 2], [3, 0, 3, 0]),
    "two points on a level": ([1, 2, 1, 2], [4, 2, 4, 2]),
    "a line twice": ([1, 0, 1, 2], [1, 0, 1, 2]),
    "two lines that cross": ([0, 1, 2, 1], [1, 0, 1, 2]),
    "turned in x": ([2, 0, 0.5, 2], [0, 0, 2, 2]),
    "turned in both": ([3, 4, 0, 1], [0, 0, 2, 2]),
    "a target turned in y": ([0, 0, 2, 2], [0.5, 2, 1, 0]),
}


def exact(prediction, target, aspect_weight=None):
    """The four losses and CIoU's weight: areas are counted on the grid that all edges make, to 60 digits."""
    with mpmath.workdps(60):
        boxes = []
        for box in (prediction, target):
            x1, y1, x2, y2 = (mpmath.mpf(value) for value in box)
            x1, x2 = (x1, x2) if x1 <= x2 else ((x1 + x2) / 2,) * 2
            y1, y2 = (y1, y2) if y1 <= y2 else ((y1 + y2) / 2,) * 2
            boxes.append((x1, y1, x2, y2))
        xs = sorted(x for box in boxes for x in box[::2])
        ys = sorted(y for box in boxes for y in box[1::2])
        area_by_cover = [mpmath.mpf(0)] * 3
        for (left, right), (top, bottom) in itertools.product(itertools.pairwise(xs), itertools.pairwise(ys)):
            cover = sum(x1 <= left and right <= x2 and y1 <= top and bottom <= y2 for x1, y1, x2, y2 in boxes)
            area_by_cover[cover] += (right - left) * (bottom - top)
        bare, union = area_by_cover[0], area_by_cover[1] + area_by_cover[2]
        iou = area_by_cover[2] / union if union else 0
        uncovered = bare / (bare + union) if bare + union else 0
        centers = [mpmath.mpc(x1 + x2, y1 + y2) / 2 for x1, y1, x2, y2 in boxes]
        diagonal = abs(mpmath.mpc(xs[-1] - xs[0], ys[-1] - ys[0]))
        distance = abs(centers[0] - centers[1]) / diagonal if diagonal else 0
        # The angle between a box's diagonal and its height; a point counts as a square.
        angles = [mpmath.arg(mpmath.mpc(y2 - y1, x2 - x1) or mpmath.mpc(1, 1)) for x1, y1, x2, y2 in boxes]
        mismatch = ((angles[1] - angles[0]) * 2 / mpmath.pi) ** 2
        if aspect_weight is None:
            aspect_weight = mismatch / (1 - iou + mismatch) if mismatch else 0
        diou = 1 - iou + distance**2
        return np.array([1 - iou, 1 - iou + uncovered, diou, diou + aspect_weight * mismatch]), aspect_weight


def exact_gradients(prediction, target, directions=((-1, 1),) * 4):
    """`[loss, 4]` by the prediction, CIoU's weight held: the mean of the slopes in the directions of each corner."""
    losses, weight = exact(prediction, target)
    slopes = np.zeros((4, 4))
    with mpmath.workdps(60):
        step = mpmath.mpf(10) ** -25 * max(abs(value) for value in prediction)
        for i in range(4):
            for toward in directions[i]:
                moved = [mpmath.mpf(value) for value in prediction]
                moved[i] += toward * step
                difference = exact(moved, target, weight)[0] - losses
                slopes[:, i] += (difference / (toward * step * len(directions[i]))).astype(float)
    return slopes


def exact_hessians(prediction, target):
    """`[loss, 4, 4]` by the prediction, CIoU's weight held."""
    weight = exact(prediction, target)[1]
    curvatures = np.zeros((4, 4, 4))
    with mpmath.workdps(60):
        step = mpmath.mpf(10) ** -12 * max(abs(value) for value in prediction)
        for i, j in itertools.product(range(4), repeat=2):
            total = 0
            for along_i, along_j in itertools.product((-1, 1), repeat=2):
                moved = [mpmath.mpf(value) for value in prediction]
                moved[i] += along_i * step
                moved[j] += along_j * step
                total = total + along_i * along_j * exact(moved, target, weight)[0]
            curvatures[:, i, j] = (total / (4 * step * step)).astype(float)
    return curvatures


def all_losses(prediction, target):
    return jnp.stack([loss(prediction, target) for loss in OVERLAP_LOSSES])


@jit_as_users
@jax.vmap
def differentiated(prediction, target):
    """Values, gradients and Hessians by the prediction: `[N, loss]`, `[N, loss, 4]`, `[N, loss, 4, 4]`."""
    gradient = jax.jacrev(all_losses)
    return all_losses(prediction, target), gradient(prediction, target), jax.jacfwd(gradient)(prediction, target)


def evaluate(pairs, scale=1.0):
    """`differentiated` of at most 16 pairs in float32, padded so that it is compiled once; and the pairs as rounded."""
    boxes = np.array(list(pairs.values()) if isinstance(pairs, dict) else pairs, np.float64) * scale
    boxes = boxes.astype(np.float32)
    padded = np.concatenate([boxes, np.zeros((16 - len(boxes), 2, 4), np.float32)])
    results = differentiated(padded[:, 0], padded[:, 1])
    return boxes.astype(np.float64), [np.asarray(result)[: len(boxes)] for result in results]


def test_smooth_l1_by_hand():
    # beta 0.5: below it d^2 / (2 x 0.5) = d^2, from it on d - 0.25.
    loss = smooth_l1(jnp.array([0.0, 0.25, -0.25, 0.5, 2.0, -2.0]), np.zeros(6), beta=0.5)
    np.testing.assert_allclose(loss, [0.0, 0.0625, 0.0625, 0.25, 1.75, 1.75])


def test_smooth_l1_equals_huber_over_beta():
    difference = np.linspace(-4, 4, 33)
    for beta in (0.1, 1.0, 3.0):
        expected = optax.huber_loss(difference, np.zeros(33), delta=beta) / beta
        np.testing.assert_allclose(smooth_l1(difference, np.zeros(33), beta=beta), expected, rtol=2e-6, atol=1e-7)


def test_smooth_l1_slope_is_bounded_and_continuous_at_beta():
    slope = jax.jit(jax.vmap(jax.grad(lambda x: smooth_l1(x, 0.0, beta=0.1))))
    np.testing.assert_allclose(slope(jnp.array([-5.0, -0.05, 0.0, 0.05, 5.0])), [-1, -0.5, 0, 0.5, 1], rtol=1e-6)
    below, above = slope(jnp.array([0.0999999, 0.1000001]))
    np.testing.assert_allclose(below, above, rtol=1e-5)


def test_beta_zero_is_l1_with_a_gradient_of_zero_at_equality():
    predictions, targets = jnp.array([1.0, 2.0, -3.0, 0.0]), jnp.array([1.0, -1.0, 2.0, 1e-30])
    np.testing.assert_array_equal(smooth_l1(predictions, targets, beta=0.0), l1(predictions, targets))
    np.testing.assert_allclose(l1(predictions, targets), [0, 3, 5, 1e-30])
    for loss in (l1, lambda p, t: smooth_l1(p, t, beta=0.0), smooth_l1):
        gradient = jax.jit(jax.grad(lambda p, loss=loss: loss(p, targets).sum()))(predictions)
        np.testing.assert_allclose(gradient[:3], [0, 1, -1])


def test_huge_differences_have_finite_values_and_gradients():
    for loss in (l1, smooth_l1):
        value, gradient = jax.jit(jax.value_and_grad(loss))(1e30, 0.0)
        np.testing.assert_allclose((value, gradient), (1e30, 1.0), rtol=1e-6)


def test_half_precision_is_subtracted_in_float32():
    predictions = jnp.array([256.0], jnp.bfloat16)
    assert l1(predictions, jnp.array([0.125])).dtype == jnp.float32
    np.testing.assert_array_equal(l1(predictions, jnp.array([0.125])), [255.875])
    np.testing.assert_array_equal(smooth_l1(predictions, jnp.array([0.125])), [255.375])


def test_no_boxes_and_shapes_that_do_not_fit():
    assert smooth_l1(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0, 4)
    for loss in (l1, smooth_l1):
        with pytest.raises(ValueError, match=r"predictions has shape \(3, 4\), targets \(4,\): they must be equal"):
            loss(np.zeros((3, 4)), np.zeros(4))
    with pytest.raises(ValueError, match="beta must be at least 0 and finite, got -0.1"):
        smooth_l1(0.0, 0.0, beta=-0.1)
    with pytest.raises(ValueError, match="beta must be at least 0 and finite, got nan"):
        smooth_l1(0.0, 0.0, beta=float("nan"))


def test_losses_of_overlap_by_hand():
    # Unit squares, 0.5 of each shared: IoU 0.5 / 1.5, enclosing box 1.5 x 1 without bare area, diagonal^2 3.25, centres
    # 0.5 apart.
    square, shifted = jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([0.5, 0.0, 1.5, 1.0])
    expected = [2 / 3, 2 / 3, 2 / 3 + 0.25 / 3.25, 2 / 3 + 0.25 / 3.25]
    np.testing.assert_allclose(all_losses(shifted, square), expected, rtol=1e-6)
    # Apart by 1: a third of the enclosing box is bare, 4 / 10 of the squared diagonal is between the centres.
    np.testing.assert_allclose(all_losses(square + np.array([2, 0, 2, 0]), square), [1, 4 / 3, 1.4, 1.4], rtol=1e-6)
    # 2 x 1 in 2 x 2: IoU 0.5, d^2 / c^2 = 0.25 / 8; angles 63.435 and 45 degrees: v = (18.435 / 90)^2 = 0.041957,
    # weight 0.041957 / 0.541957 = 0.077417, product 0.0032482.
    tall = all_losses(jnp.array([0.0, 0.0, 2.0, 1.0]), jnp.array([0.0, 0.0, 2.0, 2.0]))
    np.testing.assert_allclose(tall, [0.5, 0.5, 0.53125, 0.5344982], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6, 1e18, 1e30])
def test_values_equal_measured_areas_in_any_unit(scale):
    for pairs in (SMOOTH, LEVEL, ONE_SIDED, DEGENERATE):
        boxes, (losses, gradients, _) = evaluate(pairs, scale)
        expected = np.array([exact(*pair)[0] for pair in boxes]).astype(float)
        # Sums of up to three quotients of order one, of sides each right to 6e-8.
        np.testing.assert_allclose(losses, expected, rtol=0, atol=6e-7, err_msg=str(list(pairs)))
        assert np.isfinite(gradients).all()


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6, 1e18])
def test_gradients_equal_differences_of_exact_values_in_any_unit(scale):
    for pairs in (SMOOTH, LEVEL):
        boxes, (_, gradients, _) = evaluate(pairs, scale)
        expected = np.array([exact_gradients(*pair) for pair in boxes])
        # The terms of each are of order 1 / side, and cancel in part.
        size = np.abs(expected).max(axis=(1, 2), keepdims=True) + 1.0 / scale
        np.testing.assert_array_less(np.abs(gradients - expected) / size, 2e-6)


def test_gradient_at_equality_is_zero():
    _, (losses, gradients, hessians) = evaluate([LEVEL["equal"], LEVEL["equal, far from the origin"]])
    np.testing.assert_array_equal(losses, np.zeros((2, 4)))
    np.testing.assert_array_equal(gradients, np.zeros((2, 4, 4)))
    assert np.isfinite(hessians).all()
    # Corners that are no round numbers: the slopes on both sides, of order 1 / side, cancel to within rounding.
    corners = np.random.default_rng(0).uniform(0, 700, (16, 2, 2)).astype(np.float32)
    low, high = corners.min(axis=1), corners.max(axis=1)
    pairs = np.repeat(np.concatenate([low, high], axis=-1)[:, None], 2, axis=1)
    _, (losses, gradients, _) = evaluate(pairs)
    np.testing.assert_array_equal(losses, np.zeros((16, 4)))
    shorter = (high - low).min(axis=-1)[:, None, None]
    np.testing.assert_allclose(gradients * shorter, np.zeros((16, 4, 4)), atol=3e-7)


def test_touching_and_flat_boxes_have_the_gradient_of_overlap_and_opening():
    boxes, (_, gradients, hessians) = evaluate(ONE_SIDED)
    expected = np.array([exact_gradients(*pair, directions=((-1,), (-1,), (1,), (1,))) for pair in boxes])
    np.testing.assert_allclose(gradients, expected, rtol=2e-6, atol=1e-6)
    assert np.isfinite(hessians).all()


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6, 1e18])
def test_hessians_equal_differences_of_exact_values(scale):
    boxes, (_, _, hessians) = evaluate(SMOOTH, scale)
    # At 1e18, 1 / side^2 is of the order of the smallest float32: finite is all that can be asked.
    assert np.isfinite(hessians).all()
    if scale < 1e18:
        expected = np.array([exact_hessians(*pair) for pair in boxes])
        size = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
        np.testing.assert_array_less(np.abs(hessians - expected) / size, 2e-5)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1.0, 1e6, 1e18, 1e30])
def test_degenerate_boxes_have_finite_derivatives(scale):
    for pairs in (DEGENERATE, LEVEL, ONE_SIDED):
        for result in evaluate(pairs, scale)[1]:
            assert np.isfinite(result).all()


def test_boxes_of_unlike_sizes_have_finite_derivatives():
    unlike = {
        "a speck far away": ([1e18, 1e18, 1.001e18, 1.001e18], [0, 0, 1e-15, 1e-15]),
        "a speck inside": ([0.4, 0.4, 0.4000001, 0.4000001], [-1e18, -1e18, 1e18, 1e18]),
        "crossed hairs": ([0, 0, 1e-18, 1], [0, 0, 1, 1e-18]),
        "long hairs": ([0, 0, 1e-9, 1e9], [0, 0, 1e9, 1e-9]),
        "a hair inside": ([0.5, 0, 0.5000001, 1], [0, 0, 1, 1]),
        "the ends of the range": ([-1e37, -1e37, 0, 1], [0, 0, 1e37, 1e37]),
    }
    for pairs in (unlike, {name: pair[::-1] for name, pair in unlike.items()}):
        boxes, (losses, gradients, hessians) = evaluate(pairs)
        expected = np.array([exact(*pair)[0] for pair in boxes]).astype(float)
        np.testing.assert_allclose(losses, expected, atol=6e-7)
        assert np.isfinite(gradients).all()
        assert np.isfinite(hessians).all()


def test_small_boxes_far_from_the_origin_keep_their_distance():
    # Corners near 2^20 have a spacing of 1/8: all of these numbers are exact, their squares are not.
    near = np.array([[0, 0, 1, 1.125], [0.125, 0.25, 1.5, 1]])
    _, (losses, gradients, _) = evaluate([near, near + 2.0**20])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)


# Whole numbers: boxes that touch, are level, flat or turned are frequent.
@hypothesis.settings(max_examples=60)
@hypothesis.given(hnp.arrays(np.int8, (4, 2, 4), elements=st.integers(-6, 6)), st.integers(-40, 40))
def test_ranges_symmetry_and_invariance(boxes, exponent):
    boxes = boxes.astype(np.float64)
    mirrored, moved = -boxes[..., [2, 1, 0, 3]] * [1, -1, 1, -1], boxes + [64, -32, 64, -32]
    _, (losses, gradients, hessians) = evaluate(np.concatenate([boxes, boxes[:, ::-1], mirrored, moved]))
    for result in (losses, gradients, hessians):
        assert np.isfinite(result).all()
    expected = np.array([exact(*pair)[0] for pair in boxes]).astype(float)
    for part in losses.reshape(4, 4, 4):
        np.testing.assert_allclose(part, expected, atol=6e-7)
    # Powers of two round nothing: the results are the same to the bit, derivatives but for the unit.
    _, (scaled_losses, scaled_gradients, _) = evaluate(boxes, 2.0**exponent)
    np.testing.assert_array_equal(scaled_losses, losses[:4])
    np.testing.assert_array_equal(scaled_gradients * 2.0**exponent, gradients[:4])
    iou, giou, diou, ciou = losses.T
    assert (losses >= -1e-7).all()
    assert (iou <= 1).all()
    assert (np.maximum(giou, diou) <= 2 + 1e-6).all()
    assert (giou >= iou - 1e-6).all()
    assert (diou >= iou).all()
    assert (ciou >= diou).all()
    assert (ciou <= 3).all()


@pytest.mark.parametrize("loss", [giou_loss, diou_loss, ciou_loss])
def test_gradient_descent_brings_disjoint_boxes_together(loss):
    target, start = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([5.0, 3.0, 6.0, 5.0])
    np.testing.assert_array_equal(jax.grad(iou_loss)(start, target), np.zeros(4))
    slope = jax.grad(loss)

    @jax.jit
    def descend(box):
        return jax.lax.fori_loop(0, 2000, lambda i, box: box - 0.3 * 0.998**i * slope(box, target), box)

    np.testing.assert_allclose(descend(start), target, atol=0.05)


def test_one_box_with_many_and_all_pairs_by_broadcasting():
    boxes = np.random.default_rng(1).uniform(0, 9, (7, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    expected = 1 - pairwise_iou(jnp.asarray(boxes), jnp.asarray(boxes))
    grids = jax.jit(all_losses)(boxes[:, None], boxes[None])
    np.testing.assert_allclose(grids[0], expected, atol=2e-7)
    for one_with_many in (all_losses, jax.vmap(all_losses, (None, 0), 1)):
        np.testing.assert_allclose(jax.jit(one_with_many)(boxes[2], boxes), grids[:, 2], atol=3e-7)
    np.testing.assert_allclose(jax.jit(iou_loss)(boxes[2:3], boxes), expected[2], atol=2e-7)
    assert jax.eval_shape(all_losses, np.zeros((0, 4), np.float32), boxes[:1]).shape == (4, 0)


def test_half_precision_boxes_are_computed_in_float32():
    prediction, target = jnp.array([100.0, 100.0, 203.0, 250.0], jnp.bfloat16), jnp.array([101.0, 99.0, 200.0, 251.0])
    for loss in OVERLAP_LOSSES:
        value, gradient = jax.value_and_grad(loss)(prediction, target)
        expected = jax.value_and_grad(loss)(prediction.astype(jnp.float32), target)
        assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
        assert value == expected[0]
        np.testing.assert_array_equal(gradient, expected[1].astype(jnp.bfloat16))
        assert loss(np.array([0, 0, 3, 3]), np.array([0, 0, 2, 2])).dtype == jnp.float32


def test_float64_boxes_are_exact_to_thirteen_digits():
    with jax.enable_x64(True):
        boxes = np.array([pair for pairs in (SMOOTH, DEGENERATE) for pair in pairs.values()]) / 3
        expected = np.array([exact(*pair)[0] for pair in boxes]).astype(float)
        losses = jax.jit(jax.vmap(all_losses))(boxes[:, 0], boxes[:, 1])
        assert losses.dtype == jnp.float64
        np.testing.assert_allclose(losses, expected, rtol=1e-13)


def test_boxes_that_do_not_fit_are_refused():
    boxes = np.zeros((3, 4), np.float32)
    for loss in OVERLAP_LOSSES:
        with pytest.raises(ValueError, match=r"targets_xyxy has shape \(3, 2\): the last axis must be the 4 corners"):
            loss(boxes, np.zeros((3, 2)))
        with pytest.raises(ValueError, match=r"predictions_xyxy has shape \(\): the last axis"):
            loss(1.0, boxes)
        with pytest.raises(ValueError, match=r"shape \(3, 4\), targets_xyxy \(2, 4\), which do not broadcast"):
            loss(boxes, boxes[:2])
        with pytest.raises(TypeError, match="targets_xyxy must be real numbers, got bool"):
            loss(boxes, boxes > 0)

"""The focal loss on logits: exact, finite, of every type; what transformations make of it: test_transformations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focaljax.losses import (
    balanced_cross_entropy,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    sigmoid_focal_loss_gradient,
    sigmoid_focal_loss_with_integer_labels,
)
from tests.losses import exact
from tests.users_programs import jit_as_users


@functools.cache
def with_known(alpha, gamma):
    # The bars are for what users run; of the many programs those with other alphas differ by a factor.
    jit = jit_as_users if alpha in (None, 0.25) else jax.jit
    return exact.value_slope_and_curvatures(functools.partial(sigmoid_focal_loss, alpha=alpha, gamma=gamma), jit)


# alpha and gamma are traced, so that one program serves all their values.
plain = exact.value_slope_and_curvatures(
    lambda logits, labels, gamma: sigmoid_focal_loss(logits, labels, gamma=gamma), jit_as_users
)
weighted = exact.value_slope_and_curvatures(
    lambda logits, labels, alpha, gamma: sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma), jit_as_users
)
integer = jax.jit(sigmoid_focal_loss_with_integer_labels, static_argnames=("alpha", "gamma", "label_smoothing"))


# Exactness


@pytest.mark.parametrize("is_traced", [False, True], ids=["known gamma", "traced gamma"])
@pytest.mark.parametrize("gamma", exact.GAMMAS)
def test_value_and_derivatives_equal_fifty_digit_arithmetic(gamma, is_traced):
    if is_traced:
        gamma = float(np.float32(gamma))
    for label in exact.LABELS:
        labels = np.full_like(exact.LOGITS, label)
        for alpha in exact.ALPHAS:
            if is_traced:
                alpha = alpha and float(np.float32(alpha))
                args = (labels, gamma) if alpha is None else (labels, alpha, gamma)
                actual = (plain if alpha is None else weighted)(exact.LOGITS, *args)
            else:
                actual = with_known(alpha, gamma)(exact.LOGITS, labels)
            value, slope, *curvatures = (np.asarray(part) for part in actual)
            expected = exact.focal_of(exact.LOGITS, label, alpha, gamma)
            case = f"label {label:.1f}, alpha {alpha}"
            exact.assert_exact(value, expected[0], exact.LOGITS, f"value, {case}")
            exact.assert_exact(slope, expected[1], exact.LOGITS, f"slope, {case}")
            for curvature in curvatures:
                np.testing.assert_allclose(curvature, expected[2], rtol=1e-4, atol=1e-6, err_msg=f"curvature, {case}")


@pytest.mark.parametrize("gamma", [0.0, 0.1, 2.0])
def test_float64_reaches_thirteen_digits(gamma):
    with jax.enable_x64(True):
        logits = exact.LOGITS.astype(np.float64)
        for label in exact.LABELS:
            value, slope, *_ = with_known(0.25, gamma)(logits, np.full_like(logits, label))
            assert value.dtype == slope.dtype == np.float64
            expected = exact.focal_of(logits, label, 0.25, gamma)
            np.testing.assert_allclose(value, expected[0], rtol=1e-13, atol=1e-300, err_msg=f"label {label}")
            np.testing.assert_allclose(slope, expected[1], rtol=1e-13, atol=1e-300, err_msg=f"label {label}")


def test_paper_numbers_of_well_classified_examples():
    # Section 3.2: with gamma 2, p_t = 0.9 costs 100 times less than cross entropy, p_t = 0.968 about 1000 times less,
    # p_t <= 0.5 at most 4 times less. FL(0.9) = 0.01 x 0.1053605, FL(0.99) = 1e-4 x 0.0100503.
    p_t = np.array([0.9, 0.99, 0.968, 0.5])
    logits = jnp.asarray(np.log(p_t / (1 - p_t)), jnp.float32)
    focal = plain(logits, np.ones(4), 2.0)[0]
    np.testing.assert_allclose(focal[:2], [1.0536052e-3, 1.0050336e-6], rtol=2e-6)
    ratio = np.asarray(jax.jit(sigmoid_cross_entropy)(logits, np.ones(4))) / focal
    np.testing.assert_allclose(ratio[0], 100, rtol=1e-5)
    assert 950 < ratio[2] < 1000
    np.testing.assert_allclose(ratio[3], 4, rtol=1e-6)


def test_the_gradient_is_the_paper_s_appendix():
    # alpha_t y (1 - p_t)^gamma (gamma p_t log(p_t) + p_t - 1), by hand at x = 0: p_t = 1/2, gamma = 2:
    # (1/4) (2 (1/2) log(1/2) - 1/2) = -0.298287
    np.testing.assert_allclose(sigmoid_focal_loss_gradient(0.0, 1.0, gamma=2.0), -0.2982868, rtol=1e-6)
    np.testing.assert_allclose(sigmoid_focal_loss_gradient(0.0, 0.0, alpha=0.25), 0.75 * 0.2982868, rtol=1e-6)
    logits = exact.LOGITS
    for label in exact.LABELS:
        for gamma in (0.0, 0.5, 2.0):
            closed = sigmoid_focal_loss_gradient(logits, label, alpha=0.25, gamma=gamma)
            automatic = with_known(0.25, gamma)(logits, np.full_like(logits, label))[1]
            # Fused and unfused code may round the last bits differently.
            np.testing.assert_allclose(closed, automatic, rtol=2e-6, atol=exact.SMALLEST_NORMAL)


# Limits


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 2.0, 5.0])
def test_huge_logits_give_finite_values_and_derivatives(gamma):
    logits = np.array([20, 40, 88, 89, 104, 1e3, 1e10, 1e30], np.float32)
    logits = np.concatenate([logits, -logits])
    for label in (0.0, 1.0, 0.3, 1e-6, 1 - 1e-6):
        for part in plain(logits, np.full_like(logits, label), gamma):
            assert np.isfinite(part).all(), f"label {label}"
    # A confidently wrong output costs |logit|, not a clamped log, and pulls with the full slope.
    value, slope, *_ = plain(-np.abs(logits), np.ones_like(logits), gamma)
    np.testing.assert_allclose(value, np.abs(logits), rtol=1e-6)
    np.testing.assert_allclose(slope, np.full(16, -1.0), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.0, 1.0])
def test_infinite_logits_give_the_limits(alpha, gamma):
    logits = np.array([-math.inf, math.inf], np.float32)
    right, wrong = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    for function in (with_known(alpha, gamma), lambda x, y: (weighted(x, y, alpha, gamma) if alpha is not None
                                                             else plain(x, y, gamma))):  # fmt: skip
        value, slope, *curvatures = function(logits, np.ones(2, np.float32))
        np.testing.assert_array_equal(value, [math.inf if right else 0.0, 0.0])
        np.testing.assert_allclose(slope, [-right, 0.0], rtol=1e-6, atol=0)
        value, slope, *more = function(logits, np.zeros(2, np.float32))
        np.testing.assert_array_equal(value, [0.0, math.inf if wrong else 0.0])
        np.testing.assert_allclose(slope, [0.0, wrong], rtol=1e-6, atol=0)
        for curvature in curvatures + more:
            np.testing.assert_array_equal(curvature, [0.0, 0.0])


def test_infinite_logits_with_a_soft_label_give_the_limits():
    value, slope, *_ = plain(np.array([-math.inf, math.inf], np.float32), np.float32([0.3, 0.3]), 2.0)
    np.testing.assert_array_equal(value, [math.inf, math.inf])
    # (1 - p_t)^2 (p - y): 0.3^2 (0 - 0.3) and 0.7^2 (1 - 0.3)
    np.testing.assert_allclose(slope, [-0.027, 0.343], rtol=1e-6)


def test_nan_logits_stay_visible():
    value, slope, *_ = plain(np.float32([math.nan, 1.0]), np.float32([1.0, 1.0]), 2.0)
    assert np.isnan(value[0])
    assert np.isnan(slope[0])
    assert np.isfinite(value[1])


# Derivatives by the hyperparameters and the labels


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
def test_derivatives_by_alpha_gamma_and_labels_equal_difference_quotients(label):
    logits = np.array([-5.0, -0.5, 0.0, 0.7, 4.0])
    alpha, gamma, h = 0.25, 1.5, 1e-6

    def loss(x, y, alpha, gamma):
        return sigmoid_focal_loss(x, y, alpha=alpha, gamma=gamma)

    with jax.enable_x64(True):
        at = (jnp.full(5, label), jnp.float64(alpha), jnp.float64(gamma))
        for i in range(3):
            if i == 0 and label != 0.3:
                continue  # labels end at 0 and 1
            step = [h if i == j else 0.0 for j in range(3)]
            above, below = (
                loss(logits, *(a + sign * s for a, s in zip(at, step, strict=True))) for sign in (1.0, -1.0)
            )
            tangents = [jnp.ones_like(a) if i == j else jnp.zeros_like(a) for j, a in enumerate(at)]
            by_jvp = jax.jvp(lambda *args: loss(logits, *args), at, tuple(tangents))[1]
            np.testing.assert_allclose(by_jvp, (above - below) / (2 * h), rtol=1e-7, atol=1e-9)
            by_grad = jax.grad(lambda *args: loss(logits, *args).sum(), argnums=i)(*at)
            np.testing.assert_allclose(np.sum(by_grad), by_jvp.sum(), rtol=1e-9)


def test_a_label_of_one_half_has_no_derivative_by_alpha():
    logits = np.array([-math.inf, -3.0, 0.0, math.inf], np.float32)
    by_alpha = jax.jacrev(lambda alpha: sigmoid_focal_loss(logits, 0.5, alpha=alpha))(0.25)
    np.testing.assert_array_equal(by_alpha, np.zeros(4))


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 2.0, 5.0])
def test_derivatives_by_alpha_and_gamma_are_finite_at_saturated_logits(gamma):
    logits = np.array([-1e30, -1e4, -100, -20, 0, 20, 100, 1e4, 1e30], np.float32)
    by_both = jax.jit(jax.jacfwd(lambda a, g, y: sigmoid_focal_loss(logits, y, alpha=a, gamma=g), argnums=(0, 1)))
    for label in (0.0, 1.0, 0.3):
        by_alpha, by_gamma = by_both(0.25, gamma, label)
        assert np.isfinite(by_alpha).all(), f"label {label}"
        assert np.isfinite(by_gamma).all(), f"label {label}"


def test_the_derivative_by_a_per_class_alpha_has_its_shape():
    logits, labels = np.float32([[0.5, -1.0, 2.0], [1.0, 0.0, -3.0]]), np.float32([[1, 0, 0], [0, 0, 1]])
    by_alpha = jax.grad(lambda a: sigmoid_focal_loss(logits, labels, alpha=a).sum())(jnp.full(3, 0.25))
    loss = sigmoid_focal_loss(logits, labels)
    np.testing.assert_allclose(by_alpha, (loss * (2 * labels - 1)).sum(axis=0), rtol=1e-5)


def test_the_derivative_by_broadcast_labels_has_their_shape():
    logits = np.float32([[0.5, -1.0], [2.0, 0.0], [1.0, 1.0]])
    by_labels = jax.grad(lambda y: sigmoid_focal_loss(logits, y, gamma=0.0).sum())(jnp.full(2, 0.3))
    # The cross entropy's derivative by the label is -x.
    np.testing.assert_allclose(by_labels, -logits.sum(axis=0), rtol=1e-6)


# Properties


@given(
    logit=st.floats(-60, 60, width=32),
    label=st.floats(0, 1, width=32),
    gamma=st.floats(0, 5, width=32),
)
def test_more_focus_never_costs_more(logit, label, gamma):
    less, *_ = plain(np.float32([logit]), np.float32([label]), gamma)
    more, *_ = plain(np.float32([logit]), np.float32([label]), gamma + 0.5)
    assert 0 <= more <= less * (1 + exact.RELATIVE_FAR) + exact.SMALLEST_NORMAL


@given(logit=st.floats(-(2.0**100), 2.0**100, width=32), gamma=st.sampled_from([0.0, 0.5, 2.0]))
def test_swapping_labels_and_sign_changes_nothing(logit, gamma):
    as_one = plain(np.float32([logit]), np.float32([1.0]), gamma)
    as_zero = plain(np.float32([-logit]), np.float32([0.0]), gamma)
    np.testing.assert_array_equal(as_one[0], as_zero[0])
    np.testing.assert_array_equal(as_one[1], -as_zero[1])


def test_balanced_cross_entropy_weights_the_two_labels():
    logits = jnp.array([0.7, 0.7])
    loss = balanced_cross_entropy(logits, jnp.array([1.0, 0.0]), alpha=0.75)
    # -log(sigmoid(0.7)) = 0.403186, -log(1 - sigmoid(0.7)) = 1.103186
    np.testing.assert_allclose(loss, [0.75 * 0.403186, 0.25 * 1.103186], rtol=2e-6)


def test_alpha_per_class_weights_the_last_axis():
    loss = sigmoid_focal_loss(
        np.zeros((2, 3)), jnp.array([[1.0, 1, 1], [0, 0, 0]]), alpha=jnp.array([0.0, 0.25, 1.0]), gamma=0.0
    )
    np.testing.assert_allclose(loss, math.log(2) * np.array([[0, 0.25, 1], [1, 0.75, 0]]), rtol=1e-6)


def test_a_soft_label_weights_the_cross_entropy_by_the_mean_miss():
    # p = 1/2: q = 1/2 whatever y; C = log 2; alpha_t = 0.3 x 0.25 + 0.7 x 0.75 = 0.6
    loss = sigmoid_focal_loss(0.0, 0.3, alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(loss, 0.6 * 0.25 * math.log(2), rtol=1e-6)


# Types


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_give_the_float32_loss_of_the_same_numbers(dtype):
    logits = jnp.clip(jnp.asarray(exact.LOGITS, dtype), -6e4, 6e4)
    labels = np.tile(np.float32([1, 0]), 19)[: logits.size]
    value, slope, *_ = plain(logits, labels, 2.0)
    expected_value, expected_slope, *_ = plain(np.asarray(logits, np.float32), labels, 2.0)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected_value, rtol=1e-6, atol=exact.SMALLEST_NORMAL)
    assert slope.dtype == dtype
    np.testing.assert_array_equal(slope, expected_slope.astype(dtype))


def test_labels_may_be_bool_integer_or_broadcast():
    logits = jnp.array([[0.5, -1.0], [2.0, 0.0], [1.0, 1.0]])
    expected = sigmoid_focal_loss(logits, jnp.array([[1.0, 0.0]] * 3))
    np.testing.assert_array_equal(sigmoid_focal_loss(logits, jnp.array([True, False])), expected)
    np.testing.assert_array_equal(sigmoid_focal_loss(logits, np.array([[1, 0]] * 3)), expected)
    np.testing.assert_array_equal(sigmoid_focal_loss(logits, 0), sigmoid_focal_loss(logits, np.zeros((3, 2))))


def test_no_anchors_give_an_empty_loss():
    assert sigmoid_focal_loss(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)


# Errors


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, sigmoid_focal_loss_gradient])
@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"gamma": -1}, "gamma must be at least 0 and finite, got -1"),
        ({"gamma": math.nan}, "gamma must be at least 0 and finite, got nan"),
        ({"gamma": math.inf}, "gamma must be at least 0 and finite, got inf"),
        ({"gamma": jnp.float32(-0.5)}, "gamma must be at least 0 and finite, got -0.5"),
        ({"gamma": np.array([2.0, 1.0, 0.0])}, r"gamma has shape \(3,\), expected a number: for several values vmap"),
        ({"alpha": 2.0}, "alpha must be in .*got 2.0"),
        ({"alpha": -1}, "None for no weights"),  # torchvision's way to say so
        ({"alpha": np.array([0.5, 0.5, 1.5])}, r"alpha must be in \[0, 1\], got \[0.5 0.5 1.5\]"),
        ({"alpha": np.ones(2)}, r"alpha has shape \(2,\), expected a number or one per class, \(3,\)"),
    ],
)
def test_impossible_hyperparameters_are_refused(loss, hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        loss(np.zeros((2, 3)), np.zeros((2, 3)), **hyperparameters)


def test_hyperparameters_that_are_no_numbers_are_refused():
    for gamma in (None, "2"):
        with pytest.raises(TypeError, match=f"gamma must be a number at least 0 and finite, got {gamma!r}"):
            sigmoid_focal_loss(np.zeros(2), np.zeros(2), gamma=gamma)
    with pytest.raises(TypeError, match="alpha must be a number, one per class, or None for no weights, got 'auto'"):
        sigmoid_focal_loss(np.zeros(2), np.zeros(2), alpha="auto")


def test_integer_logits_are_refused():
    with pytest.raises(TypeError, match=r"logits must be floating point, got int32: pass raw scores, not class ids"):
        sigmoid_focal_loss(jnp.array([1, 2]), np.ones(2))


def test_class_ids_in_place_of_labels_name_the_right_function():
    message = r"labels has shape \(4,\), logits \(4, 3\): for class ids call sigmoid_focal_loss_with_integer_labels"
    with pytest.raises(ValueError, match=message):
        sigmoid_focal_loss(np.zeros((4, 3)), jnp.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="call sigmoid_focal_loss_with_integer_labels"):
        sigmoid_focal_loss(np.zeros((3, 3)), jnp.array([0, 1, 2]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\], got 2; for class ids call sigmoid"):
        sigmoid_focal_loss(np.zeros((3, 4, 3)), np.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\], got -1"):
        sigmoid_focal_loss(np.zeros(1), -1)


def test_labels_that_would_enlarge_the_loss_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(4, 1\), which must broadcast to that of logits, \(4,\)"):
        sigmoid_focal_loss(np.zeros(4), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"labels has shape \(5,\)"):
        sigmoid_focal_loss(np.zeros((4, 3)), np.zeros(5))


def test_values_known_only_at_run_time_are_not_checked():
    # Under jit there is nothing to look at; the call must still trace.
    loss = jax.jit(lambda x, y, g: sigmoid_focal_loss(x, y, gamma=g))(np.zeros(2), np.zeros(2), -1.0)
    np.testing.assert_allclose(loss, 2 * math.log(2), rtol=1e-6)

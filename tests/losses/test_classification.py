import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

from focaljax.losses import (
    BACKGROUND,
    IGNORED,
    balanced_cross_entropy,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
)

LOGITS = np.array([-100, -88, -40, -16, -10, -3, -0.5, 0, 1e-3, 0.5, 3, 10, 16, 40, 88, 100], np.float32)
# Powers and products of about ten float32 operations, each right to 6e-8; exp(u) passes on u's error times |u| <= 500.
RELATIVE = 5e-5
# Below the smallest normal float32, XLA flushes to 0.
ABSOLUTE = 1e-37


def exact(logit, label, alpha, gamma):
    """Value and derivative in the logit, to 50 digits, from the paper's definition in probabilities."""
    with mpmath.workdps(50):
        x, y = mpmath.mpf(float(logit)), mpmath.mpf(label)

        def loss(x):
            p = 1 / (1 + mpmath.exp(-x))
            miss = y * (1 - p) + (1 - y) * p
            weight = 1 if alpha is None else y * alpha + (1 - y) * (1 - alpha)
            return weight * miss**gamma * -(y * mpmath.log(p) + (1 - y) * mpmath.log(1 - p))

        with mpmath.workdps(150):  # differences of p from 1 of 1e-44, and the finite difference below them
            return float(loss(x)), float(mpmath.diff(loss, x, h=mpmath.mpf(10) ** -40))


def values_and_gradients(loss):
    """A compiled function of the logits and further arguments: the elements' losses and their derivatives."""

    def both(logits, *args):
        return loss(logits, *args), jax.grad(lambda x: loss(x, *args).sum())(logits)

    return jax.jit(both)


# gamma is traced, so that one program serves all its values.
plain = values_and_gradients(lambda logits, labels, gamma: sigmoid_focal_loss(logits, labels, gamma=gamma))
weighted = values_and_gradients(
    lambda logits, labels, gamma: sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=gamma)
)
integer = jax.jit(sigmoid_focal_loss_with_integer_labels, static_argnames=("alpha", "gamma"))
ignored_then_class_0 = jax.jit(
    jax.value_and_grad(lambda logits: sigmoid_focal_loss_with_integer_labels(logits, jnp.array([IGNORED, 0])).sum())
)


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


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_value_and_gradient_equal_fifty_digit_arithmetic(alpha, gamma):
    for label in (0.0, 1.0, 0.3):
        expected = np.array([exact(x, label, alpha, gamma) for x in LOGITS])
        ours = plain if alpha is None else weighted
        value, gradient = ours(LOGITS, np.full_like(LOGITS, label), gamma)
        np.testing.assert_allclose(value, expected[:, 0], rtol=RELATIVE, atol=ABSOLUTE, err_msg=f"value, label {label}")
        # Relative to the derivative of the cross entropy: its zero for the soft label is a difference of equals.
        np.testing.assert_allclose(
            gradient, expected[:, 1], rtol=RELATIVE, atol=1e-6 if label == 0.3 else ABSOLUTE, err_msg=f"label {label}"
        )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_huge_logits_give_finite_values_and_gradients(gamma):
    logits = np.array([20, 40, 88, 89, 104, 1e3, 1e10, 1e30], np.float32)
    logits = np.concatenate([logits, -logits])
    for label in (0.0, 1.0, 0.3, 1e-6, 1 - 1e-6):
        value, gradient = plain(logits, np.full_like(logits, label), gamma)
        assert np.isfinite(value).all(), f"label {label}"
        assert np.isfinite(gradient).all(), f"label {label}"
    # A confidently wrong output costs |logit|, not a clamped log, and pulls with the full slope.
    value, gradient = plain(-np.abs(logits), np.ones_like(logits), gamma)
    np.testing.assert_allclose(value, np.abs(logits), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.full(16, -1.0), rtol=1e-6)


def test_second_derivative_is_finite_for_saturated_logits():
    second = jax.jit(jax.vmap(jax.grad(jax.grad(lambda x, y: sigmoid_focal_loss(x, y, gamma=2.0)))))
    logits = np.array([-1e4, -100.0, 0.0, 100.0, 1e4] * 2)
    assert np.isfinite(second(logits, np.repeat([0.0, 1.0], 5))).all()


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_equals_optax_where_optax_is_accurate(alpha):
    random = np.random.default_rng(0)
    logits = random.normal(size=(64, 3), scale=3).astype(np.float32)
    labels = (random.random((64, 3)) < 0.3).astype(np.float32)
    labels[:8] = 0.3
    ours, theirs = (
        values_and_gradients(functools.partial(loss, alpha=alpha, gamma=2.0))(logits, labels)
        for loss in (sigmoid_focal_loss, optax.sigmoid_focal_loss)
    )
    # optax takes 1 - p_t as a difference from 1, which leaves it 6e-8 / (1 - p_t), times gamma.
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=2e-4, atol=1e-6)


def test_gamma_zero_equals_optax_cross_entropy():
    logits = np.linspace(-100, 100, 64, dtype=np.float32)
    labels = np.tile(np.float32([0, 1, 0.3, 0.7]), 16)
    expected = values_and_gradients(optax.sigmoid_binary_cross_entropy)(logits, labels)
    for loss in (sigmoid_cross_entropy, functools.partial(sigmoid_focal_loss, gamma=0.0)):
        value, gradient = values_and_gradients(loss)(logits, labels)
        np.testing.assert_allclose(value, expected[0], rtol=1e-6)
        # A difference of numbers up to 1, each rounded to 6e-8.
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=2e-7)


def test_balanced_cross_entropy_weights_the_two_labels():
    logits = jnp.array([0.7, 0.7])
    loss = balanced_cross_entropy(logits, jnp.array([1.0, 0.0]), alpha=0.75)
    # -log(sigmoid(0.7)) = 0.403186, -log(1 - sigmoid(0.7)) = 1.103186
    np.testing.assert_allclose(loss, [0.75 * 0.403186, 0.25 * 1.103186], rtol=2e-6)


def test_alpha_per_class_weights_the_last_axis():
    logits = np.zeros((2, 3))
    loss = sigmoid_focal_loss(logits, jnp.array([[1.0, 1, 1], [0, 0, 0]]), alpha=jnp.array([0.0, 0.25, 1.0]), gamma=0.0)
    np.testing.assert_allclose(loss, math.log(2) * np.array([[0, 0.25, 1], [1, 0.75, 0]]), rtol=1e-6)
    classes = sigmoid_focal_loss_with_integer_labels(
        logits, jnp.array([2, BACKGROUND]), alpha=jnp.array([0.0, 0.25, 1.0]), gamma=0.0
    )
    np.testing.assert_allclose(classes, math.log(2) * np.array([1 + 0.75 + 1, 1 + 0.75 + 0]), rtol=1e-6)


def test_larger_gamma_never_gives_a_larger_loss():
    losses = [plain(LOGITS, np.ones_like(LOGITS), gamma)[0] for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)]
    assert (np.diff(losses, axis=0) <= 0).all()
    assert (np.diff(losses, axis=0)[:, 7] < 0).all()  # at logit 0


def test_swapping_labels_and_signs_changes_nothing():
    for label in (0.0, 1.0, 0.3):
        labels = np.full_like(LOGITS, label)
        value, gradient = plain(LOGITS, labels, 2.0)
        swapped_value, swapped_gradient = plain(-LOGITS, 1 - labels, 2.0)
        np.testing.assert_allclose(value, swapped_value, rtol=2e-6)
        np.testing.assert_allclose(gradient, -swapped_gradient, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_jit_with_a_traced_gamma_equals_eager(gamma):
    labels = np.tile(np.float32([0, 1, 0.3, 1]), 4)
    # Fused and unfused code may round the last bit differently, and exp(u) passes it on times |u|.
    np.testing.assert_allclose(
        plain(LOGITS, labels, gamma)[0], sigmoid_focal_loss(LOGITS, labels, gamma=gamma), rtol=RELATIVE, atol=ABSOLUTE
    )


# Integer labels


@pytest.fixture(scope="module")
def anchors_logits_and_labels():
    random = np.random.default_rng(3)
    labels = np.tile(np.array([IGNORED, BACKGROUND, 0, 1, 2, 3, 4], np.int32), 6)
    return random.normal(size=(42, 5), scale=5).astype(np.float32), labels


def test_integer_labels_equal_one_hot_labels(anchors_logits_and_labels):
    logits, labels = anchors_logits_and_labels
    one_hot = (labels[:, None] == np.arange(5)).astype(np.float32)
    is_counted = (labels != IGNORED).astype(np.float32)[:, None]
    dense = weighted(logits, one_hot, 2.0)
    value, gradient = values_and_gradients(functools.partial(sigmoid_focal_loss_with_integer_labels, alpha=0.25))(
        logits, labels
    )
    np.testing.assert_allclose(value, (dense[0] * is_counted).sum(axis=-1), rtol=2e-6)
    np.testing.assert_allclose(gradient, dense[1] * is_counted, rtol=1e-5, atol=1e-9)


def test_vmap_over_anchors_and_jit_equal_the_batched_call(anchors_logits_and_labels):
    logits, labels = anchors_logits_and_labels
    batched = sigmoid_focal_loss_with_integer_labels(logits, labels)
    # Fused and unfused code may round the last bit of exp differently.
    for other in (integer, jax.jit(jax.vmap(sigmoid_focal_loss_with_integer_labels))):
        np.testing.assert_allclose(other(logits, labels), batched, rtol=5e-6)


def test_background_wants_every_output_low():
    logits = jnp.array([[0.0, 0.0], [-20.0, -20.0], [-20.0, 20.0]])
    loss = integer(logits, np.full(3, BACKGROUND), alpha=None, gamma=2.0)
    # Two outputs at p = 0.5: 2 x 0.25 x log(2). One output wrong with certainty: its logit.
    np.testing.assert_allclose(loss, [0.5 * math.log(2), 0.0, 20.0], rtol=1e-6, atol=1e-20)


@pytest.mark.parametrize("logit", [0.0, 50.0, -1e30, math.inf, -math.inf, math.nan])
def test_ignored_anchor_has_no_loss_and_no_gradient(logit):
    logits = jnp.array([[logit, 1.0], [2.0, 1.0]])
    loss, gradient = ignored_then_class_0(logits)
    np.testing.assert_allclose(loss, integer(logits[1], jnp.array(0)), rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], [0.0, 0.0])
    assert np.isfinite(gradient[1]).all()
    assert (np.asarray(gradient[1]) != 0).all()


def test_no_anchors_give_an_empty_loss():
    assert sigmoid_focal_loss_with_integer_labels(np.zeros((0, 3)), np.zeros(0, jnp.int32)).shape == (0,)
    assert sigmoid_focal_loss(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)


# Types


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_give_the_float32_loss_of_the_same_numbers(dtype):
    logits = jnp.asarray(LOGITS, dtype)
    labels = np.tile(np.float32([1, 0]), 8)
    value, gradient = plain(logits, labels, 2.0)
    assert value.dtype == jnp.float32
    expected_value, expected_gradient = plain(np.asarray(logits, np.float32), labels, 2.0)
    np.testing.assert_array_equal(value, expected_value)
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, expected_gradient.astype(dtype))
    assert integer(logits[None], jnp.array([3])).dtype == jnp.float32


def test_float64_logits_are_computed_in_float64():
    with jax.enable_x64(True):
        value = sigmoid_focal_loss(jnp.float64(30.0), 1.0, gamma=2.0)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, exact(30.0, 1.0, None, 2.0)[0], rtol=1e-13)


def test_labels_may_be_bool_integer_or_broadcast():
    logits = jnp.array([[0.5, -1.0], [2.0, 0.0], [1.0, 1.0]])
    expected = sigmoid_focal_loss(logits, jnp.array([[1.0, 0.0]] * 3))
    np.testing.assert_array_equal(sigmoid_focal_loss(logits, jnp.array([True, False])), expected)
    np.testing.assert_array_equal(sigmoid_focal_loss(logits, np.array([[1, 0]] * 3)), expected)
    np.testing.assert_array_equal(sigmoid_focal_loss(logits, 0), sigmoid_focal_loss(logits, np.zeros((3, 2))))


# Errors


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, sigmoid_focal_loss_with_integer_labels])
@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"gamma": -1}, "gamma must be at least 0, got -1"),
        ({"gamma": math.nan}, "gamma must be at least 0, got nan"),
        ({"alpha": 2.0}, "alpha must be in .*got 2.0"),
        ({"alpha": -1}, "None for no weights"),  # torchvision's way to say so
    ],
)
def test_impossible_hyperparameters_are_refused(loss, hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        loss(np.zeros((2, 3)), np.zeros(2 if loss is sigmoid_focal_loss_with_integer_labels else (2, 3), jnp.int32),
             **hyperparameters)  # fmt: skip


def test_integer_logits_are_refused():
    with pytest.raises(TypeError, match=r"logits must be floating point, got int32"):
        sigmoid_focal_loss(jnp.array([1, 2]), np.ones(2))
    with pytest.raises(TypeError, match=r"logits must be floating point, got int32"):
        sigmoid_focal_loss_with_integer_labels(jnp.array([[1, 2]]), jnp.array([1]))


def test_class_ids_in_place_of_labels_name_the_right_function():
    with pytest.raises(ValueError, match="call sigmoid_focal_loss_with_integer_labels"):
        sigmoid_focal_loss(np.zeros((4, 3)), jnp.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="call sigmoid_focal_loss_with_integer_labels"):
        sigmoid_focal_loss(np.zeros((3, 3)), jnp.array([0, 1, 2]))


def test_labels_that_would_enlarge_the_loss_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(4, 1\), which must broadcast to that of logits, \(4,\)"):
        sigmoid_focal_loss(np.zeros(4), np.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"labels has shape \(5,\)"):
        sigmoid_focal_loss(np.zeros((4, 3)), np.zeros(5))


def test_integer_labels_of_a_wrong_type_or_shape_are_refused():
    with pytest.raises(TypeError, match="labels must be integers.*float32"):
        sigmoid_focal_loss_with_integer_labels(np.zeros((4, 3)), np.zeros(4))
    with pytest.raises(ValueError, match=r"labels has shape \(4, 3\).*shape \(4,\)"):
        sigmoid_focal_loss_with_integer_labels(np.zeros((4, 3)), np.zeros((4, 3), jnp.int32))

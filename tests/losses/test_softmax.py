"""The focal loss over a softmax, with one-hot, soft and integer labels."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focaljax.losses import (
    BACKGROUND,
    IGNORED,
    sigmoid_focal_loss,
    softmax_cross_entropy,
    softmax_focal_loss,
    softmax_focal_loss_with_integer_labels,
)
from tests.users_programs import jit_as_users

INF = math.inf
# Three classes: balanced, confident, saturated, huge; the label is each of them in turn.
ROWS = np.float32(
    [[0, 0, 0], [1, 2, 3], [-3, 0.5, 0.4], [20, 0, -20], [0, 0, 16], [88, 0, -88], [100, 0, 99], [0, 1e4, -1e4],
     [5, 5, -5], [1e30, 0, -1e30]]
)  # fmt: skip


@functools.cache
def exact(row, label, gamma):
    """The loss of one class, its gradient and its Hessian, to 50 digits, from the definition in probabilities."""
    # Scaled down where the loss is a straight line or 0 in float32, so that the exponentials stay within reach.
    scale = max(1.0, max(abs(x) for x in row) / 200.0)
    with mpmath.workdps(60 + 2 * int(max(abs(x) for x in row) / scale)):
        gamma = mpmath.mpf(gamma)

        def loss(x):
            powers = [mpmath.exp(z) for z in x]
            p = powers[label] / sum(powers)
            return (1 - p) ** gamma * -mpmath.log(p)

        x, h = [mpmath.mpf(z) / scale for z in row], mpmath.mpf(10) ** -15

        def shifted(*steps):
            return loss([z + h * sum(sign for k, sign in steps if k == i) for i, z in enumerate(x)])

        gradient = [(shifted((i, 1)) - shifted((i, -1))) / (2 * h) for i in range(len(x))]
        hessian = [
            [
                (
                    shifted((i, 1), (j, 1))
                    - shifted((i, 1), (j, -1))
                    - shifted((i, -1), (j, 1))
                    + shifted((i, -1), (j, -1))
                )
                / (4 * h**2)
                for j in range(len(x))
            ]
            for i in range(len(x))
        ]
        return float(loss(x) * scale), np.array(gradient, float), np.array(hessian, float)


def value_gradient_hessian(loss):
    def all_of(x, *args):
        return loss(x, *args), jax.grad(loss)(x, *args), jax.hessian(loss)(x, *args)

    return jit_as_users(jax.vmap(all_of, in_axes=(0, 0, None)))


of_ids = value_gradient_hessian(lambda x, c, gamma: softmax_focal_loss_with_integer_labels(x, c, gamma=gamma))
of_labels = value_gradient_hessian(lambda x, y, gamma: softmax_focal_loss(x, y, gamma=gamma))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_value_gradient_and_hessian_equal_fifty_digit_arithmetic(gamma):
    tiny = np.finfo(np.float32).tiny
    for label in range(3):
        labels = np.full(len(ROWS), label)
        for actual in (of_ids(ROWS, labels, gamma), of_labels(ROWS, np.eye(3, dtype=np.float32)[labels], gamma)):
            for i, row in enumerate(ROWS.tolist()):
                value, gradient, hessian = exact(tuple(row), label, gamma)
                case = f"logits {row}, label {label}"
                relative = 4e-6 if max(np.ptp(row), 1) <= 20 else 4e-5
                np.testing.assert_allclose(actual[0][i], value, rtol=relative, atol=tiny, err_msg=case)
                np.testing.assert_allclose(actual[1][i], gradient, rtol=relative, atol=tiny, err_msg=case)
                np.testing.assert_allclose(actual[2][i], hessian, rtol=1e-4, atol=1e-6, err_msg=case)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_infinite_logits_give_the_limits(gamma):
    logits = np.float32([[INF, 0, 1], [0, INF, 1], [-INF, 0, 0], [0, -INF, 0], [0, INF, INF], [-INF, -INF, 0]])
    labels = np.zeros(6, np.int32)
    # Right with certainty; wrong with certainty; labelled class impossible; another impossible: two classes are left.
    two_left = 0.5**gamma * math.log(2)
    slope = 0.5**gamma * (gamma * 0.5 * math.log(0.5) - 0.5)
    for value, gradient, hessian in (
        of_ids(logits, labels, gamma),
        of_labels(logits, np.eye(3, dtype=np.float32)[labels], gamma),
    ):
        np.testing.assert_allclose(value, [0, INF, INF, two_left, INF, INF], rtol=1e-6)
        expected = [[0, 0, 0], [-1, 1, 0], [-1, 0.5, 0.5], [slope, 0, -slope], [-1, 0.5, 0.5], [-1, 0, 1]]
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-30)
        assert np.isfinite(hessian).all()


def test_two_classes_are_one_sigmoid_at_the_difference_of_the_logits():
    logits = np.float32([[0, 0], [3, -1], [-20, 30]])
    for gamma in (0.0, 1.5, 2.0):
        for label in (0, 1):
            loss = softmax_focal_loss_with_integer_labels(logits, np.full(3, label), gamma=gamma)
            expected = sigmoid_focal_loss(logits[:, label] - logits[:, 1 - label], np.ones(3), gamma=gamma)
            np.testing.assert_allclose(loss, expected, rtol=2e-6)


def test_gamma_zero_equals_optax_softmax_cross_entropy():
    random = np.random.default_rng(0)
    logits = random.normal(size=(16, 7), scale=4).astype(np.float32)
    soft = random.dirichlet(np.ones(7), 16).astype(np.float32)
    ids = random.integers(0, 7, 16)
    np.testing.assert_allclose(
        softmax_cross_entropy(logits, soft), optax.softmax_cross_entropy(logits, soft), rtol=2e-6
    )
    np.testing.assert_allclose(
        softmax_focal_loss_with_integer_labels(logits, ids, gamma=0.0),
        optax.softmax_cross_entropy_with_integer_labels(logits, ids),
        rtol=1e-5,
    )


def test_soft_labels_weight_the_losses_of_their_classes():
    logits, labels = np.float32([0.3, -1.0, 2.0]), np.float32([0.2, 0.5, 0.3])
    each = [softmax_focal_loss_with_integer_labels(logits, c, gamma=1.5) for c in range(3)]
    np.testing.assert_allclose(softmax_focal_loss(logits, labels, gamma=1.5), np.dot(labels, each), rtol=1e-6)


def test_alpha_is_a_weight_for_each_class_and_does_not_touch_the_others():
    logits, alpha = np.zeros((3, 3), np.float32), np.float32([0.0, 1.0, 4.0])
    plain = math.log(3) * (2 / 3) ** 2
    for loss in (
        softmax_focal_loss_with_integer_labels(logits, np.arange(3), alpha=alpha),
        softmax_focal_loss(logits, np.eye(3), alpha=alpha),
    ):
        np.testing.assert_allclose(loss, plain * alpha, rtol=1e-6)
    np.testing.assert_allclose(
        softmax_focal_loss_with_integer_labels(logits, np.arange(3), alpha=0.5), np.full(3, 0.5 * plain), rtol=1e-6
    )
    # A class of weight 0 costs nothing even if it is impossible.
    impossible = softmax_focal_loss_with_integer_labels(np.float32([-INF, 0, 0]), 0, alpha=alpha)
    np.testing.assert_array_equal(impossible, 0.0)


def test_an_ignored_row_has_no_loss_and_no_gradient():
    logits = jnp.array([[math.nan, INF, 0.0], [1.0, 2.0, 3.0]])

    def total(x):
        return softmax_focal_loss_with_integer_labels(x, jnp.array([IGNORED, 1])).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(logits)
    np.testing.assert_allclose(value, softmax_focal_loss_with_integer_labels(logits[1], 1), rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], [0, 0, 0])
    np.testing.assert_allclose(gradient[1].sum(), 0, atol=1e-6)


@given(st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5), st.floats(-100, 100, width=32))
def test_adding_a_number_to_all_logits_changes_nothing(row, shift):
    logits = np.float32([row])
    before = of_five(logits, np.array([1]), 2.0)
    after = of_five(logits + np.float32(shift), np.array([1]), 2.0)
    # The shifted logits are rounded: 150 * 6e-8, times 1 + gamma.
    np.testing.assert_allclose(after[0], before[0], rtol=2e-4, atol=1e-10)
    np.testing.assert_allclose(before[1].sum(), 0, atol=1e-6)


of_five = jax.jit(
    jax.value_and_grad(lambda x, c, gamma: softmax_focal_loss_with_integer_labels(x, c, gamma=gamma).sum()),
)


def test_class_ids_equal_one_hot_labels():
    random = np.random.default_rng(1)
    logits = random.normal(size=(2, 6, 5), scale=8).astype(np.float32)
    labels = random.integers(0, 5, (2, 6))
    of_ids = softmax_focal_loss_with_integer_labels(logits, labels)
    np.testing.assert_allclose(softmax_focal_loss(logits, np.eye(5)[labels]), of_ids, rtol=2e-6)


def test_derivatives_by_alpha_and_gamma_are_finite():
    by_both = jax.jit(
        jax.jacrev(lambda a, g: softmax_focal_loss_with_integer_labels(ROWS, np.full(10, 1), alpha=a, gamma=g), (0, 1))
    )
    for part in by_both(jnp.ones(3), 2.0) + by_both(jnp.ones(3), 0.0):
        assert np.isfinite(part).all()


def test_types_and_edges():
    logits = jnp.array([[1.0, -2.0]], jnp.bfloat16)
    value, vjp = jax.vjp(lambda x: softmax_focal_loss_with_integer_labels(x, np.array([0])), logits)
    assert value.dtype == jnp.float32
    assert vjp(value)[0].dtype == jnp.bfloat16
    with jax.enable_x64(True):
        exact_value, exact_gradient, _ = exact((1.0, 2.0, 3.0), 0, 2.0)
        value, gradient = jax.value_and_grad(lambda x: softmax_focal_loss(x, np.eye(3)[0]))(np.array([1.0, 2.0, 3.0]))
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, exact_value, rtol=1e-13)
        np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-13)
    # One class is certain.
    np.testing.assert_array_equal(softmax_focal_loss_with_integer_labels(np.zeros((2, 1)), np.zeros(2, int)), [0, 0])
    np.testing.assert_array_equal(softmax_focal_loss(np.zeros((2, 1)), np.ones((2, 1))), [0, 0])
    assert softmax_focal_loss_with_integer_labels(np.zeros((0, 3)), np.zeros(0, int)).shape == (0,)


def test_misuse_is_refused_with_the_remedy():
    ids = softmax_focal_loss_with_integer_labels
    with pytest.raises(ValueError, match="for class ids call softmax_focal_loss_with_integer_labels"):
        softmax_focal_loss(np.zeros((4, 3)), np.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match=rf"labels has {BACKGROUND}, logits are of 3 classes: expected 0..2, or IG"):
        ids(np.zeros((1, 3)), np.array([BACKGROUND]))
    with pytest.raises(TypeError, match="labels must be integers"):
        ids(np.zeros((1, 3)), np.zeros(1))
    with pytest.raises(ValueError, match=r"logits has shape \(\), expected \(..., K\)"):
        softmax_focal_loss(0.0, 1.0)
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        ids(np.zeros((1, 3)), np.array([0]), alpha=np.array([1.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match=r"alpha has shape \(2,\)"):
        ids(np.zeros((1, 3)), np.array([0]), alpha=np.ones(2))
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        softmax_focal_loss(np.zeros(3), np.ones(3) / 3, gamma=-0.1)
    with pytest.raises(TypeError, match="logits must be floating point"):
        softmax_focal_loss(np.zeros(3, int), np.ones(3) / 3)

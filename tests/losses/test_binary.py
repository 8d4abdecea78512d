"""The focal loss as the paper writes it, on probabilities."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from focaljax.losses import binary_focal_loss, sigmoid_focal_loss

PROBABILITIES = np.float32([1e-30, 1e-8, 1e-3, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999, 1 - 2**-24])
both_derivatives = jax.jit(
    jax.vmap(
        lambda p, y, alpha, gamma: (
            binary_focal_loss(p, y, alpha=alpha, gamma=gamma),
            jax.grad(lambda p: binary_focal_loss(p, y, alpha=alpha, gamma=gamma))(p),
            jax.grad(jax.grad(lambda p: binary_focal_loss(p, y, alpha=alpha, gamma=gamma)))(p),
        ),
        in_axes=(0, None, None, None),
    )
)


def exact(p, y, gamma):
    """Value, first and second derivative by p to 50 digits, from the paper's equation."""
    with mpmath.workdps(120):
        gamma = mpmath.mpf(gamma)

        def loss(p):
            p_t = p if y == 1 else 1 - p
            return -((1 - p_t) ** gamma) * mpmath.log(p_t)

        p = mpmath.mpf(float(p))
        h = min(p, 1 - p) * mpmath.mpf(10) ** -20
        below, here, above = loss(p - h), loss(p), loss(p + h)
        return float(here), float((above - below) / (2 * h)), float((above - 2 * here + below) / h**2)


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("y", [1, -1])
def test_value_and_derivatives_equal_fifty_digit_arithmetic(y, gamma):
    alpha = 0.25
    expected = (alpha if y == 1 else 1 - alpha) * np.array(
        [exact(p, y, float(np.float32(gamma))) for p in PROBABILITIES]
    )
    value, slope, curvature = both_derivatives(PROBABILITIES, y, alpha, gamma)
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_allclose(value, expected[:, 0], rtol=4e-6, atol=tiny)
    np.testing.assert_allclose(slope, expected[:, 1], rtol=4e-6, atol=tiny)
    is_normal = np.abs(expected[:, 2]) < np.finfo(np.float32).max
    np.testing.assert_allclose(curvature[is_normal], expected[is_normal, 2], rtol=1e-4, atol=1e-6)


def test_the_paper_s_numbers_with_the_natural_logarithm():
    loss = binary_focal_loss(np.array([0.9, 0.99]), 1, gamma=2.0)
    np.testing.assert_allclose(loss, [0.00105361, 1.00503e-06], rtol=5e-6)
    # What articles print that take the logarithm to base 10.
    np.testing.assert_allclose(loss / math.log(10), [0.000457575, 4.36481e-07], rtol=5e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_certainty_has_the_limits_in_value_and_gradient(gamma):
    right_slope = -1.0 if gamma == 0 else 0.0
    for static in (True, False):
        for y, right, wrong in ((1, 1.0, 0.0), (-1, 0.0, 1.0)):

            def loss(p, gamma, y=y):
                return binary_focal_loss(p, y, gamma=gamma)

            if static:
                value, slope = jax.vmap(jax.value_and_grad(lambda p: loss(p, gamma)))(jnp.array([right, wrong]))
            else:
                value, slope = jax.jit(jax.vmap(jax.value_and_grad(loss), (0, None)))(jnp.array([right, wrong]), gamma)
            np.testing.assert_array_equal(value, [0.0, math.inf])
            np.testing.assert_array_equal(slope, [y * right_slope, -y * math.inf])
            assert not np.signbit(value[0])
            second = jax.vmap(jax.grad(jax.grad(lambda p: loss(p, gamma))))(jnp.array([right, wrong]))
            assert not np.isnan(second).any()


def test_equals_the_loss_on_logits():
    logits = np.float32([-8, -2, 0, 1, 5])
    p = jax.nn.sigmoid(logits)
    for y in (1, -1):
        np.testing.assert_allclose(
            binary_focal_loss(p, y, alpha=0.25), sigmoid_focal_loss(logits, (y + 1) / 2, alpha=0.25), rtol=2e-4
        )


def test_labels_broadcast_and_alpha_weights_the_two_labels():
    loss = binary_focal_loss(np.full((2, 3), 0.5), np.array([1, -1, 1]), alpha=np.array([0.0, 0.25, 1.0]), gamma=0.0)
    np.testing.assert_allclose(loss, math.log(2) * np.array([[0, 0.75, 1]] * 2), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("p", "y", "alpha"), [(0.0, 1, 0.0), (1.0, -1, 1.0)])
def test_an_infinite_loss_with_the_weight_0_is_0_and_has_no_gradient(p, y, alpha, gamma):
    def loss(p, alpha):
        return binary_focal_loss(p, y, alpha=alpha, gamma=gamma)

    for transform in (jax.value_and_grad, lambda f: jax.jit(jax.value_and_grad(f))):
        assert transform(lambda p: loss(p, alpha))(p) == (0.0, 0.0)
        assert transform(loss)(p, alpha) == (0.0, 0.0)
    assert jax.jvp(lambda p: loss(p, alpha), (p,), (1.0,)) == (0.0, 0.0)


def test_float64_reaches_thirteen_digits():
    with jax.enable_x64(True):
        p = np.array([1e-30, 1e-8, 0.1, 0.5, 0.9, 0.999, 1 - 2.0**-53])
        for y in (1, -1):
            expected = np.array([exact(each, y, 1.5) for each in p])
            value, slope, _ = both_derivatives(p, y, 1.0 if y == 1 else 0.0, 1.5)
            assert value.dtype == slope.dtype == np.float64
            np.testing.assert_allclose(value, expected[:, 0], rtol=1e-13)
            np.testing.assert_allclose(slope, expected[:, 1], rtol=1e-13)


def test_derivatives_by_alpha_and_gamma():
    p, h = np.array([0.0, 0.2, 0.9, 1.0]), 1e-6
    with jax.enable_x64(True):

        def loss(alpha, gamma):
            return binary_focal_loss(p, -1, alpha=alpha, gamma=gamma)

        by_alpha, by_gamma = jax.jacfwd(loss, (0, 1))(jnp.float64(0.25), jnp.float64(1.5))
        np.testing.assert_allclose(by_gamma[:3], (loss(0.25, 1.5 + h) - loss(0.25, 1.5 - h))[:3] / (2 * h), rtol=1e-6)
        np.testing.assert_allclose(by_alpha[:3], -loss(0.0, 1.5)[:3], rtol=1e-12)
        # p_t = 0: the factor is 1 for every gamma.
        np.testing.assert_array_equal(jax.grad(lambda gamma: loss(0.25, gamma)[3])(jnp.float64(1.5)), 0.0)


def test_no_elements():
    assert binary_focal_loss(np.zeros(0), np.ones(0)).shape == (0,)


def test_misuse_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\], got 3.0: for logits call sigmoid_focal"):
        binary_focal_loss(np.array([0.5, 3.0]), 1)
    with pytest.raises(ValueError, match=r"labels must be \+1 or -1, got 0: labels in \[0, 1\] go with logits"):
        binary_focal_loss(np.array([0.5, 0.3]), np.array([1, 0]))
    with pytest.raises(ValueError, match=r"labels has shape \(2, 1\), which must broadcast to that of probabilities"):
        binary_focal_loss(np.array([0.5, 0.3]), np.array([[1], [-1]]))
    with pytest.raises(ValueError, match=r"labels has shape \(3,\), which must broadcast"):
        binary_focal_loss(np.array([0.5, 0.3]), np.ones(3))
    with pytest.raises(TypeError, match="probabilities must be floating point, got int32"):
        binary_focal_loss(1, 1)
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        binary_focal_loss(0.5, 1, gamma=-2)
    with pytest.raises(ValueError, match=r"gamma has shape \(2,\), expected a number"):
        binary_focal_loss(0.5, 1, gamma=np.zeros(2))
    with pytest.raises(ValueError, match=r"alpha has shape \(2,\), .* the last axis of probabilities"):
        binary_focal_loss(np.full(3, 0.5), 1, alpha=np.zeros(2))
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        binary_focal_loss(0.5, 1, alpha=1.5)

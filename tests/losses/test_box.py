import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from focaljax.losses import l1, smooth_l1


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


def test_vmap_over_anchors_equals_the_batched_call():
    predictions, targets = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    np.testing.assert_array_equal(jax.vmap(smooth_l1)(predictions, targets), smooth_l1(predictions, targets))
    assert smooth_l1(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0, 4)


def test_unequal_shapes_and_negative_beta_are_refused():
    for loss in (l1, smooth_l1):
        with pytest.raises(ValueError, match=r"predictions has shape \(3, 4\), targets \(4,\): they must be equal"):
            loss(np.zeros((3, 4)), np.zeros(4))
    with pytest.raises(ValueError, match="beta must be at least 0, got -0.1"):
        smooth_l1(0.0, 0.0, beta=-0.1)

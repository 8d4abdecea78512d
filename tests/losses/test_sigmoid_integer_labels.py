"""The focal loss on class ids: what it is equal to, and what it costs in memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.losses import (
    BACKGROUND,
    IGNORED,
    global_mean_over_positives,
    mean_over_positives,
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
    softmax_focal_loss_with_integer_labels,
)
from tests.users_programs import jit_as_users

integer = jax.jit(sigmoid_focal_loss_with_integer_labels, static_argnames=("alpha", "gamma"))
ignored_then_class_0 = jax.jit(
    jax.value_and_grad(lambda logits: sigmoid_focal_loss_with_integer_labels(logits, jnp.array([IGNORED, 0])).sum())
)


@pytest.fixture(scope="module")
def anchors_logits_and_labels():
    random = np.random.default_rng(3)
    labels = np.tile(np.array([IGNORED, BACKGROUND, 0, 1, 2, 3, 4], np.int32), 6)
    return random.normal(size=(42, 5), scale=5).astype(np.float32), labels


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0, 2.3])
@pytest.mark.parametrize("alpha", [None, 0.25, "per class"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_integer_labels_equal_one_hot_labels(anchors_logits_and_labels, alpha, gamma, label_smoothing):
    logits, labels = anchors_logits_and_labels
    if alpha == "per class":
        alpha = np.float32([0.0, 0.25, 0.5, 0.75, 1.0])
    one_hot = (labels[:, None] == np.arange(5)).astype(np.float32)
    one_hot = one_hot * (1 - label_smoothing) + 0.5 * label_smoothing
    is_counted = (labels != IGNORED).astype(np.float32)

    def of_ids(x):
        return sigmoid_focal_loss_with_integer_labels(
            x, labels, alpha=alpha, gamma=gamma, label_smoothing=label_smoothing
        )

    def of_one_hot(x):
        return sigmoid_focal_loss(x, one_hot, alpha=alpha, gamma=gamma).sum(axis=-1) * is_counted

    (actual, actual_vjp), (expected, expected_vjp) = jax.vjp(of_ids, logits), jax.vjp(of_one_hot, logits)
    np.testing.assert_allclose(actual, expected, rtol=2e-6)
    np.testing.assert_allclose(actual_vjp(is_counted + 1)[0], expected_vjp(is_counted + 1)[0], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32])
def test_labels_of_few_bits_mean_the_same(dtype):
    # More classes than 8 bits can tell: none may meet itself again, nor one of the special labels.
    random = np.random.default_rng(2)
    ids = np.arange(0, min(np.iinfo(dtype).max, 299) + 1, dtype=dtype)
    if np.iinfo(dtype).min < 0:
        ids = np.concatenate([np.array([IGNORED, BACKGROUND], dtype), ids])
    logits = random.normal(size=(ids.size, 300)).astype(np.float32)
    np.testing.assert_array_equal(integer(logits, ids), integer(logits, ids.astype(np.int32)))
    np.testing.assert_array_equal(
        softmax_focal_loss_with_integer_labels(logits, np.maximum(ids, 0).astype(dtype)),
        softmax_focal_loss_with_integer_labels(logits, np.maximum(ids, 0).astype(np.int32)),
    )


def test_alpha_per_class_weights_the_labelled_class():
    loss = sigmoid_focal_loss_with_integer_labels(
        np.zeros((2, 3)), jnp.array([2, BACKGROUND]), alpha=jnp.array([0.0, 0.25, 1.0]), gamma=0.0
    )
    np.testing.assert_allclose(loss, math.log(2) * np.array([1 + 0.75 + 1, 1 + 0.75 + 0]), rtol=1e-6)


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


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_an_anchor_that_is_ignored_costs_exactly_nothing(gamma, label_smoothing):
    logits = np.float32([[-math.inf, math.inf, 0.0, 1e30]])
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            loss = sigmoid_focal_loss_with_integer_labels(
                logits.astype(dtype), np.array([IGNORED]), gamma=gamma, label_smoothing=label_smoothing
            )
            assert loss.dtype == dtype
            np.testing.assert_array_equal(loss, [0.0])


def test_label_smoothing_by_hand():
    # Two outputs, s = 0.2: labels 0.9 and 0.1. At logits 0: q = 1/2 and C = log 2 whatever the label.
    loss = sigmoid_focal_loss_with_integer_labels(np.zeros(2), 0, alpha=None, gamma=0.0, label_smoothing=0.2)
    np.testing.assert_allclose(loss, 2 * math.log(2), rtol=1e-6)
    # At logits (2, -2): 0.9 softplus(-2) + 0.1 softplus(2), twice; softplus(-2) = 0.126928, softplus(2) = 2.126928.
    loss = sigmoid_focal_loss_with_integer_labels(np.float32([2, -2]), 0, alpha=None, gamma=0.0, label_smoothing=0.2)
    np.testing.assert_allclose(loss, 2 * (0.9 * 0.126928 + 0.1 * 2.126928), rtol=1e-5)
    np.testing.assert_array_equal(
        integer(np.zeros((1, 2)), np.array([1])),
        sigmoid_focal_loss_with_integer_labels(np.zeros((1, 2)), np.array([1]), label_smoothing=0.0),
    )


def test_no_anchors_give_an_empty_loss():
    assert sigmoid_focal_loss_with_integer_labels(np.zeros((0, 3)), np.zeros(0, jnp.int32)).shape == (0,)


# Memory


def normalised_over_the_batch(logits, labels, gamma):
    return global_mean_over_positives(
        sigmoid_focal_loss_with_integer_labels(logits, labels, gamma=gamma), labels >= 0, labels == IGNORED
    )


def normalised_per_image(logits, labels, gamma):
    per_anchor = jax.vmap(jax.vmap(functools.partial(sigmoid_focal_loss_with_integer_labels, gamma=gamma)))
    return jax.vmap(mean_over_positives)(per_anchor(logits, labels), labels >= 0, labels == IGNORED).mean()


def temporaries(function, gamma, dtype):
    """Bytes beside arguments and results, in sizes of the losses, which are float32."""
    logits = jax.ShapeDtypeStruct((2, 20000, 80), dtype)
    labels = jax.ShapeDtypeStruct((2, 20000), jnp.int32)
    compiled = jit_as_users(functools.partial(function, gamma=gamma)).lower(logits, labels).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (2 * 20000 * 80 * 4)


@pytest.mark.parametrize("total", [normalised_over_the_batch, normalised_per_image])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0, 3.0])
def test_temporaries_are_no_larger_than_the_logits(total, gamma):
    # With the gradient, its own memory serves for the losses; the value alone has them as its one temporary. Besides,
    # there are numbers for each anchor: 1/80 of the logits for each kind.
    assert temporaries(total, gamma, jnp.float32) < 1.06
    assert temporaries(jax.value_and_grad(total), gamma, jnp.float32) < 0.06


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_temporaries_of_half_precision_are_the_losses(gamma):
    # The gradient, of half the size, has no room for them.
    for function in (normalised_over_the_batch, jax.value_and_grad(normalised_over_the_batch)):
        assert temporaries(function, gamma, jnp.bfloat16) < 1.06


# Errors


def test_integer_labels_of_a_wrong_type_shape_or_value_are_refused():
    loss = sigmoid_focal_loss_with_integer_labels
    with pytest.raises(TypeError, match=r"labels must be integers \(class ids, BACKGROUND, IGNORED\), got float32"):
        loss(np.zeros((4, 3)), np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"labels has shape \(4, 3\), logits \(4, 3\): .*shape \(4,\)"):
        loss(np.zeros((4, 3)), np.zeros((4, 3), jnp.int32))
    with pytest.raises(ValueError, match=r"labels has 3, logits are of 3 classes: expected 0..2, or BACKGROUND \(-1\)"):
        loss(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(ValueError, match=r"labels has -3.*IGNORED \(-2\)"):
        loss(np.zeros((2, 3)), jnp.array([0, -3]))
    with pytest.raises(TypeError, match="logits must be floating point, got int32"):
        loss(jnp.array([[1, 2]]), jnp.array([1]))


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"gamma": -1}, "gamma must be at least 0"),
        ({"alpha": 2.0}, "alpha must be in"),
        ({"alpha": np.ones(2)}, r"expected a number or one per class, \(3,\)"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and less than 1, got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0"),
    ],
)
def test_impossible_hyperparameters_are_refused(hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_focal_loss_with_integer_labels(np.zeros((2, 3)), np.array([0, 1]), **hyperparameters)

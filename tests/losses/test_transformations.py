"""What JAX's transformations make of each public loss: the same numbers."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from focaljax import losses
from tests.losses import exact

NUM_ANCHORS, NUM_CLASSES = 16, 3
# Reductions, masks and counts look at many anchors at once: test_reductions, test_mining and test_ghm have theirs.
NOT_A_LOSS = {
    "ema_normalizer", "ghm_counts", "global_mean_over_positives", "hard_negative_mask", "mean_over_positives",
    "ohem_mask",
}  # fmt: skip


def cases():
    """For each loss: the function of predictions and targets, its predictions and its targets, anchors first."""
    random = np.random.default_rng(7)
    logits = random.normal(size=(NUM_ANCHORS, NUM_CLASSES), scale=6).astype(np.float32)
    hard = (random.random(logits.shape) < 0.4).astype(np.float32)
    soft = np.where(random.random(logits.shape) < 0.5, hard, random.random(logits.shape)).astype(np.float32)
    ids = np.tile(np.int32([losses.IGNORED, losses.BACKGROUND, 0, 1, 2]), 4)[:NUM_ANCHORS]
    classes = np.tile(np.int32([0, 1, 2, losses.IGNORED]), 4)
    shares = np.abs(logits) / np.abs(logits).sum(axis=-1, keepdims=True)
    probabilities = random.uniform(0.02, 0.98, logits.shape).astype(np.float32)
    corners = random.uniform(0, 9, (2, NUM_ANCHORS, 2))
    boxes, targets = np.concatenate([corners, corners + random.uniform(1, 6, corners.shape)], -1).astype(np.float32)
    per_class = np.float32([0.1, 0.5, 0.9])
    counts = np.float32([5, 3, 2, 1, 1, 1, 2, 4, 6, 9])

    def with_settings(name, **settings):
        return functools.partial(getattr(losses, name), **settings)

    return {
        "sigmoid_focal_loss": (with_settings("sigmoid_focal_loss", alpha=0.25), logits, soft),
        "sigmoid_focal_loss_gradient": (with_settings("sigmoid_focal_loss_gradient", alpha=0.25), logits, soft),
        "sigmoid_focal_loss_with_integer_labels": (
            with_settings("sigmoid_focal_loss_with_integer_labels", alpha=per_class), logits, ids,
        ),
        "sigmoid_cross_entropy": (losses.sigmoid_cross_entropy, logits, soft),
        "balanced_cross_entropy": (with_settings("balanced_cross_entropy", alpha=0.75), logits, soft),
        "binary_focal_loss": (with_settings("binary_focal_loss", alpha=0.25), probabilities, 2 * hard - 1),
        "softmax_focal_loss": (with_settings("softmax_focal_loss", alpha=per_class), logits, shares),
        "softmax_focal_loss_with_integer_labels": (
            with_settings("softmax_focal_loss_with_integer_labels", alpha=per_class), logits, classes,
        ),
        "softmax_cross_entropy": (losses.softmax_cross_entropy, logits, shares),
        "focal_loss_star": (losses.focal_loss_star, logits, hard),
        "quality_focal_loss": (losses.quality_focal_loss, logits, soft),
        "varifocal_loss": (losses.varifocal_loss, logits, soft),
        "gaussian_focal_loss": (losses.gaussian_focal_loss, logits, soft),
        "asymmetric_focal_loss": (losses.asymmetric_focal_loss, logits, soft),
        "poly1_focal_loss": (losses.poly1_focal_loss, logits, hard),
        "ghm_classification_loss": (with_settings("ghm_classification_loss", counts=counts), logits, hard),
        "l1": (losses.l1, boxes, targets),
        "smooth_l1": (with_settings("smooth_l1", beta=0.7), boxes, targets),
        "iou_loss": (losses.iou_loss, boxes, targets),
        "giou_loss": (losses.giou_loss, boxes, targets),
        "diou_loss": (losses.diou_loss, boxes, targets),
        "ciou_loss": (losses.ciou_loss, boxes, targets),
    }  # fmt: skip


CASES = cases()
each_loss = pytest.mark.parametrize("name", CASES)


def value_and_gradient(loss):
    """Of predictions and targets, the loss of each anchor and the gradient of its sum by the predictions."""

    def both(predictions, targets):
        value = loss(predictions, targets)
        return value, jax.grad(lambda x: loss(x, targets).sum())(predictions)

    return both


@functools.cache
def compiled(name):
    return jax.jit(value_and_gradient(CASES[name][0]))


def assert_same(actual, expected):
    # Fused and unfused code may round the last bits differently, and by the larger of what they add.
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=4e-6, atol=1e-7 * np.abs(theirs).max())


def test_each_public_loss_is_here():
    public = {name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))}
    assert public - NOT_A_LOSS == set(CASES)


@each_loss
def test_jit_vmap_and_checkpoint_equal_the_batched_call(name):
    loss, predictions, targets = CASES[name]
    batched = value_and_gradient(loss)(predictions, targets)
    assert batched[1].shape == predictions.shape
    assert_same(compiled(name)(predictions, targets), batched)
    # One anchor's function, also one element's where the loss is of elements.
    one_anchor = jax.vmap(value_and_gradient(loss))
    assert_same(one_anchor(predictions, targets), batched)
    assert_same(jax.jit(one_anchor)(predictions, targets), batched)
    assert_same(jax.jit(value_and_gradient(jax.checkpoint(loss)))(predictions, targets), batched)


@each_loss
def test_derivatives_of_both_orders_agree_and_equal_differences(name):
    loss, predictions, targets = CASES[name]
    direction = np.random.default_rng(1).normal(size=predictions.shape)
    h = 1e-5

    def gradient(x):
        return jax.grad(lambda x: loss(x, targets).sum())(x)

    @jax.jit
    def derivatives(x):
        value, tangent = jax.jvp(lambda x: loss(x, targets), (x,), (direction,))
        slope, forward_over_reverse = jax.jvp(gradient, (x,), (direction,))
        reverse_over_reverse = jax.grad(lambda x: (gradient(x) * direction).sum())(x)
        return value, tangent, slope, forward_over_reverse, reverse_over_reverse

    with jax.enable_x64(True):
        x = predictions.astype(np.float64)
        _, tangent, slope, forward_over_reverse, reverse_over_reverse = derivatives(x)
        np.testing.assert_allclose((slope * direction).sum(), tangent.sum(), rtol=1e-10)
        np.testing.assert_allclose(reverse_over_reverse, forward_over_reverse, rtol=1e-9, atol=1e-12)
        if name != "ciou_loss":  # its weight of the aspect ratio counts as constant: see test_box for its derivatives
            above, below = derivatives(x + h * direction), derivatives(x - h * direction)
            np.testing.assert_allclose(tangent, (above[0] - below[0]) / (2 * h), rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(forward_over_reverse, (above[2] - below[2]) / (2 * h), rtol=1e-6, atol=1e-7)

        # Anchors do not mix: the Hessian has one block for each.
        few = jax.jit(jax.hessian(lambda x, y: loss(x, y).sum()))(x[:3], targets[:3])
        for i, j in np.ndindex(3, 3):
            if i != j:
                np.testing.assert_array_equal(few[i, ..., j, :], 0.0)
        product = np.einsum("iaib,ib->ia", few, direction[:3])
        np.testing.assert_allclose(product, forward_over_reverse[:3], rtol=1e-9, atol=1e-12)


@each_loss
def test_shard_map_over_eight_devices_equals_one_device(name, mesh_of_eight):
    loss, predictions, targets = CASES[name]
    split = PartitionSpec("data")
    over_devices = jax.shard_map(
        value_and_gradient(loss), mesh=mesh_of_eight, in_specs=(split, split), out_specs=(split, split)
    )
    actual = jax.jit(over_devices)(predictions, targets)
    assert actual[0].sharding.spec == split
    assert_same(actual, compiled(name)(predictions, targets))


@each_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_gives_the_float32_loss_of_the_same_numbers_and_its_gradient(name, dtype):
    _, predictions, targets = CASES[name]
    half = jnp.asarray(predictions, dtype)
    value, gradient = compiled(name)(half, targets)
    expected_value, expected_gradient = compiled(name)(half.astype(jnp.float32), targets)
    assert (value.dtype, gradient.dtype) == (jnp.float32, dtype)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6, atol=1e-30)
    # Not from a loss rounded on the way: the float32 gradient, rounded once.
    one_rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.float32(gradient), np.float32(expected_gradient.astype(dtype)), rtol=one_rounding, atol=1e-30
    )


# The focal loss on logits, at its edges


def test_transformations_of_the_focal_loss_at_every_logit():
    labels = np.tile(np.float32(exact.LABELS), 13)[: exact.LOGITS.size]
    loss = functools.partial(losses.sigmoid_focal_loss, alpha=0.25)
    smallest = float(np.finfo(np.float32).tiny)
    direct, slope = value_and_gradient(loss)(exact.LOGITS, labels)
    for other in (jax.jit(loss), jax.vmap(loss), jax.jit(jax.vmap(loss)), jax.checkpoint(loss)):
        value, other_slope = value_and_gradient(other)(exact.LOGITS, labels)
        np.testing.assert_allclose(value, direct, rtol=1e-6, atol=smallest)
        np.testing.assert_allclose(other_slope, slope, rtol=2e-6, atol=smallest)


def test_the_hessian_of_the_focal_loss_is_diagonal_and_exact():
    logits, labels = np.float32([-3.0, 0.0, 0.5, 20.0]), np.float32([1, 0, 0.3, 1])

    def total(x):
        return losses.sigmoid_focal_loss(x, labels, alpha=0.25).sum()

    hessian = jax.jit(jax.hessian(total))(logits)
    np.testing.assert_array_equal(hessian, np.diag(np.diag(hessian)))
    expected = [
        exact.weight(y, 0.25) * exact.focal(x, y, 2.0)[2] for x, y in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    np.testing.assert_allclose(np.diag(hessian), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacrev(jax.grad(total)))(logits), hessian, rtol=1e-5, atol=1e-8)


def test_a_third_derivative_of_the_focal_loss_is_finite_and_right():
    third = jax.jit(jax.vmap(jax.grad(jax.grad(jax.grad(lambda x, y: losses.sigmoid_focal_loss(x, y))))))
    logits = np.float32([-1e4, -100.0, 0.5, 100.0, 1e4] * 2)
    derivative = third(logits, np.repeat(np.float32([0.0, 1.0]), 5))
    assert np.isfinite(derivative).all()
    quotient = (exact.focal(0.51, 0.0, 2.0)[2] - exact.focal(0.49, 0.0, 2.0)[2]) / 0.02
    np.testing.assert_allclose(derivative[2], quotient, rtol=1e-3)

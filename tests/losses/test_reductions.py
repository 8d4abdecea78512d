import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from focaljax.losses import (
    BACKGROUND,
    IGNORED,
    global_mean_over_positives,
    mean_over_positives,
    sigmoid_focal_loss_with_integer_labels,
)
from focaljax.losses.reductions import INITIAL_EMA_NORMALIZER, ema_normalizer

LOSS = np.float32([[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, 64.0, 128.0]])
POSITIVE = np.array([[True, True, False, False], [False, False, True, False]])
IGNORE = np.array([[False, False, True, False], [True, False, False, False]])
NOTHING = np.zeros((2, 4), bool)

per_image = jax.jit(jax.vmap(mean_over_positives))


def test_each_image_is_divided_by_its_own_positives():
    # (1 + 2 + 8) / 2 and (32 + 64 + 128) / 1
    np.testing.assert_allclose(per_image(LOSS, POSITIVE, IGNORE), [5.5, 224.0])
    np.testing.assert_allclose(mean_over_positives(LOSS[0], POSITIVE[0]), 15 / 2)


def test_the_batch_is_divided_by_all_its_positives():
    # (1 + 2 + 8 + 32 + 64 + 128) / 3, which is not the mean of 5.5 and 224
    np.testing.assert_allclose(global_mean_over_positives(LOSS, POSITIVE, IGNORE), 235 / 3, rtol=1e-6)
    np.testing.assert_allclose(per_image(LOSS, POSITIVE, IGNORE).mean(), 114.75)


def test_the_two_normalisers_agree_where_every_image_has_as_many_positives():
    is_positive = jnp.array([[True, False, False, False], [False, True, False, False]])
    np.testing.assert_allclose(
        global_mean_over_positives(LOSS, is_positive), per_image(LOSS, is_positive, NOTHING).mean(), rtol=1e-6
    )


def test_without_objects_the_divisor_is_one():
    np.testing.assert_array_equal(per_image(LOSS, NOTHING, NOTHING), [15.0, 240.0])
    np.testing.assert_array_equal(global_mean_over_positives(LOSS, NOTHING), 255.0)


def test_image_without_objects_has_finite_value_and_gradient():
    @jax.jit
    @jax.value_and_grad
    def value_and_grad(logits, labels):
        per_anchor = sigmoid_focal_loss_with_integer_labels(logits, labels)
        return mean_over_positives(per_anchor, labels >= 0, labels == IGNORED)

    value, gradient = value_and_grad(np.zeros((4, 2)), np.full(4, BACKGROUND))
    assert np.isfinite(value)
    assert value > 0
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient) > 0).all()
    value, gradient = value_and_grad(np.zeros((4, 2)), np.full(4, IGNORED))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((4, 2)))


@pytest.mark.parametrize("garbage", [1e30, jnp.inf, jnp.nan])
def test_ignored_anchors_are_neither_in_the_sum_nor_in_the_count(garbage):
    loss = jnp.array([1.0, 2.0, garbage, garbage])
    is_positive = jnp.array([True, False, True, False])  # one of the ignored anchors is called positive too
    is_ignored = jnp.array([False, False, True, True])
    for reduction in (mean_over_positives, global_mean_over_positives):
        value, gradient = jax.jit(jax.value_and_grad(reduction))(loss, is_positive, is_ignored)
        np.testing.assert_array_equal(value, 3.0)
        np.testing.assert_array_equal(reduction(loss, is_positive, is_ignored), 3.0)
        np.testing.assert_array_equal(gradient, [1, 1, 0, 0])


def test_trailing_axes_are_summed():
    boxes = np.stack([LOSS, 2 * LOSS], axis=-1)
    np.testing.assert_allclose(per_image(boxes, POSITIVE, IGNORE), 3 * per_image(LOSS, POSITIVE, IGNORE))
    np.testing.assert_allclose(
        global_mean_over_positives(boxes, POSITIVE, IGNORE), 3 * global_mean_over_positives(LOSS, POSITIVE, IGNORE)
    )


def test_no_anchors_give_zero():
    assert mean_over_positives(np.zeros(0), np.zeros(0, bool)) == 0


def test_result_is_float32_or_float64_and_the_gradient_in_the_dtype_of_the_loss():
    for reduction in (mean_over_positives, global_mean_over_positives):
        for dtype in ("bfloat16", "float16", "float32"):
            value, gradient = jax.value_and_grad(reduction)(jnp.asarray(LOSS[0], dtype), POSITIVE[0])
            assert value.dtype == jnp.float32
            assert gradient.dtype == dtype
        with jax.enable_x64(True):
            assert reduction(np.float64(LOSS[0]), POSITIVE[0]).dtype == jnp.float64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sum_and_count_of_half_precision_losses_are_exact(dtype):
    # Neither type holds 70,000 (float16 ends at 65,504), and bfloat16 does not hold 257.
    loss, is_positive = jnp.ones(70_000, dtype), np.arange(70_000) < 257
    for reduction in (mean_over_positives, global_mean_over_positives):
        np.testing.assert_allclose(jax.jit(reduction)(loss, is_positive), 70_000 / 257, rtol=1e-6)


@pytest.fixture(scope="module")
def batch_with_uneven_devices():
    """Eight images: the first has most positives, the last two have none."""
    random = np.random.default_rng(0)
    is_positive = np.arange(16)[None, :] < np.array([9, 4, 1, 1, 2, 3, 0, 0])[:, None]
    return random.random((8, 16), np.float32), is_positive, random.random((8, 16)) < 0.2


def test_shard_map_over_eight_devices_equals_one_device(mesh_of_eight, batch_with_uneven_devices):
    split = PartitionSpec("data")
    over_devices = jax.shard_map(
        functools.partial(global_mean_over_positives, axis_name="data"),
        mesh=mesh_of_eight,
        in_specs=(split, split, split),
        out_specs=PartitionSpec(),
    )
    expected = global_mean_over_positives(*batch_with_uneven_devices)
    # Only the order of the sum differs.
    np.testing.assert_allclose(jax.jit(over_devices)(*batch_with_uneven_devices), expected, rtol=1e-6)


def test_sharded_jit_equals_one_device_without_an_axis_name(mesh_of_eight, batch_with_uneven_devices):
    sharding = jax.NamedSharding(mesh_of_eight, PartitionSpec("data"))
    value_and_grad = jax.jit(jax.value_and_grad(global_mean_over_positives))
    expected = value_and_grad(*batch_with_uneven_devices)
    actual = value_and_grad(*jax.device_put(batch_with_uneven_devices, sharding))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6)


def test_gradient_through_shard_map_equals_one_device(mesh_of_eight, batch_with_uneven_devices):
    split = PartitionSpec("data")
    over_devices = jax.shard_map(
        functools.partial(global_mean_over_positives, axis_name="data"),
        mesh=mesh_of_eight,
        in_specs=(split, split, split),
        out_specs=PartitionSpec(),
    )
    expected = jax.grad(global_mean_over_positives)(*batch_with_uneven_devices)
    np.testing.assert_allclose(jax.jit(jax.grad(over_devices))(*batch_with_uneven_devices), expected, rtol=1e-6)


def test_batch_that_is_ignored_altogether_has_no_loss():
    everything = np.ones((2, 4), bool)
    np.testing.assert_array_equal(per_image(LOSS, everything, everything), [0.0, 0.0])
    value, gradient = jax.value_and_grad(global_mean_over_positives)(LOSS, everything, everything)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 4)))


def test_ema_normalizer_by_hand():
    # 0.9 * 100 + 0.1 * 20 = 92, 0.9 * 92 + 0.1 * 50 = 87.8
    first = ema_normalizer(INITIAL_EMA_NORMALIZER, 20)
    np.testing.assert_allclose(first, 92.0, rtol=1e-6)
    np.testing.assert_allclose(ema_normalizer(first, 50), 87.8, rtol=1e-6)
    np.testing.assert_allclose(ema_normalizer(100.0, 20, momentum=0.0), 20.0, rtol=1e-6)
    np.testing.assert_allclose(ema_normalizer(100.0, 20, momentum=0.5), 60.0, rtol=1e-6)


def test_ema_normalizer_of_batches_without_objects_tends_to_one_and_not_to_zero():
    # After n steps 1 + 99 * 0.9 ** n; 0.9 ** 200 is 7e-10.
    normalizer, _ = jax.lax.scan(
        lambda state, count: (ema_normalizer(state, count), None), 100.0, jnp.zeros(200, jnp.int32)
    )
    np.testing.assert_allclose(normalizer, 1.0, rtol=1e-6)


def test_ema_normalizer_is_a_constant_to_the_gradient():
    def loss(logits, normalizer):
        # A count that depends on the logits, as it does where targets are assigned by the predictions.
        return jnp.sum(logits) / ema_normalizer(normalizer, jnp.sum(jax.nn.relu(logits)))

    by_logits, by_normalizer = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.full(4, 5.0), 100.0)
    np.testing.assert_allclose(by_logits, np.full(4, 1 / 92), rtol=1e-6)
    assert by_normalizer == 0


def test_ema_normalizer_counts_all_devices(mesh_of_eight, batch_with_uneven_devices):
    loss, is_positive, _ = batch_with_uneven_devices

    def step(loss, is_positive, normalizer):
        normalizer = ema_normalizer(normalizer, jnp.sum(is_positive), axis_name="data")
        return jax.lax.psum(jnp.sum(loss), "data") / normalizer, normalizer

    split, whole = PartitionSpec("data"), PartitionSpec()
    over_devices = jax.jit(
        jax.shard_map(step, mesh=mesh_of_eight, in_specs=(split, split, whole), out_specs=(whole, whole))
    )
    value, normalizer = over_devices(loss, is_positive, 100.0)
    # 20 positives in the batch: 9 + 4 + 1 + 1 + 2 + 3
    np.testing.assert_allclose(normalizer, 92.0, rtol=1e-6)
    np.testing.assert_allclose(value, loss.sum() / 92.0, rtol=1e-6)
    np.testing.assert_allclose(over_devices(loss, is_positive, normalizer)[1], 0.9 * 92.0 + 2.0, rtol=1e-6)


def test_ema_normalizer_is_float32_or_float64():
    assert ema_normalizer(jnp.bfloat16(100.0), jnp.bfloat16(20.0)).dtype == jnp.float32
    # The count does not decide: a carried state must not change its type.
    assert ema_normalizer(jnp.float32(100.0), jnp.int32(20)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert ema_normalizer(jnp.float32(100.0), jnp.sum(POSITIVE)).dtype == jnp.float32
        np.testing.assert_allclose(ema_normalizer(jnp.float64(1.0), 2**40), 0.9 + 0.1 * 2**40, rtol=1e-15)


def test_misuse_of_the_ema_normalizer_is_told():
    for momentum in (1.0, -0.1, 1.5):
        with pytest.raises(ValueError, match=rf"momentum must be in \[0, 1\), got {momentum}"):
            ema_normalizer(100.0, 20, momentum=momentum)
    with pytest.raises(ValueError, match=r"num_positives has shape \(2, 4\), expected a scalar, such as jnp.sum"):
        ema_normalizer(100.0, POSITIVE)
    with pytest.raises(ValueError, match=r"normalizer has shape \(2,\)"):
        ema_normalizer(np.ones(2), 20)


def test_masks_must_be_bool():
    # ~1 is -2, which is true: an integer mask would silently count every anchor.
    for reduction in (mean_over_positives, global_mean_over_positives):
        with pytest.raises(TypeError, match="is_ignored must be bool, got int32"):
            reduction(LOSS[0], POSITIVE[0], jnp.array([0, 0, 1, 0]))
        with pytest.raises(TypeError, match="is_positive must be bool, got float32"):
            reduction(LOSS[0], np.ones(4))


def test_masks_of_another_shape_are_refused():
    for reduction in (mean_over_positives, global_mean_over_positives):
        with pytest.raises(ValueError, match=r"loss has shape \(3,\), is_positive \(4,\)"):
            reduction(np.ones(3), POSITIVE[0])
        with pytest.raises(ValueError, match=r"is_ignored \(1,\)"):
            reduction(LOSS[0], POSITIVE[0], np.zeros(1, bool))


def test_a_batch_given_to_the_reduction_of_one_image_is_refused():
    with pytest.raises(ValueError, match=r"is_positive has shape \(2, 4\).*jax.vmap, or global_mean_over_positives"):
        mean_over_positives(LOSS, POSITIVE)

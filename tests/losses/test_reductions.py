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


def test_dtype_of_the_loss_is_kept():
    assert mean_over_positives(LOSS[0].astype(jnp.bfloat16), POSITIVE[0]).dtype == jnp.bfloat16
    assert global_mean_over_positives(LOSS, POSITIVE).dtype == jnp.float32


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

"""The GHM-C loss: equal to its definition, over one device and several."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from focaljax.losses.ghm import ghm_classification_loss, ghm_counts
from focaljax.losses.sigmoid import sigmoid_cross_entropy


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    labels = (random.random((8, 30)) < 0.2).astype(np.float32)
    return random.normal(size=(8, 30), scale=3).astype(np.float32), labels, random.random((8, 30)) < 0.3


def ghm_by_loops(logits, labels, is_ignored, bins):
    """The paper's definition, one element after the other: counts, and N times BCE / GD."""
    counts, losses = np.zeros(bins), np.zeros(logits.shape)
    p = 1 / (1 + np.exp(-np.float64(logits)))
    region = np.minimum(np.floor(np.abs(p - labels) * bins), bins - 1).astype(int)
    for i in np.ndindex(logits.shape):
        counts[region[i]] += not is_ignored[i]
    for i in np.ndindex(logits.shape):
        if not is_ignored[i]:
            density = counts[region[i]] * bins
            losses[i] = counts.sum() / density * -np.log(p[i] if labels[i] else 1 - p[i])
    return counts, losses


@pytest.mark.parametrize("bins", [1, 10, 30])
def test_ghm_equals_the_definition_by_loops(batch, bins):
    counts, losses = ghm_by_loops(*batch, bins)
    logits, labels, is_ignored = batch
    np.testing.assert_array_equal(ghm_counts(logits, labels, bins=bins, is_ignored=is_ignored), counts)
    ours = ghm_classification_loss(logits, labels, bins=bins, is_ignored=is_ignored)
    np.testing.assert_allclose(ours, losses, rtol=4e-6)


def test_ghm_of_evenly_spread_gradients_is_the_cross_entropy_and_weights_have_no_gradient():
    p = (np.arange(40) + 0.5) / 40
    logits = np.log(p / (1 - p)).astype(np.float32)
    value, slope = jax.jit(jax.value_and_grad(lambda x: ghm_classification_loss(x, np.zeros(40)).sum()))(logits)
    np.testing.assert_allclose(value, sigmoid_cross_entropy(logits, np.zeros(40)).sum(), rtol=1e-6)
    np.testing.assert_allclose(slope, p, rtol=1e-5)


def test_ghm_edges_of_the_parts():
    # g = 1 is in the last part, g = 1/2 in the upper of two, g = 0 in the first.
    np.testing.assert_array_equal(ghm_counts(np.array([math.inf, 0.0, -math.inf]), np.zeros(3), bins=2), [1, 2])


@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_ghm_of_ignored_elements_is_zero_without_gradient_or_count(garbage):
    logits = np.array([[garbage, garbage], [0.5, -1.0]], np.float32)
    labels, is_ignored = np.zeros((2, 2), np.float32), np.array([True, False])  # one for the row of two
    loss, back = jax.vjp(lambda x: ghm_classification_loss(x, labels, bins=2, is_ignored=is_ignored), logits)
    np.testing.assert_array_equal(loss[0], [0, 0])
    np.testing.assert_allclose(loss[1], ghm_classification_loss(logits[1], labels[1], bins=2), rtol=1e-6)
    gradient = back(jnp.ones_like(loss))[0]
    np.testing.assert_array_equal(gradient[0], [0, 0])
    assert (gradient[1] > 0).all()
    nothing = ghm_classification_loss(logits, labels, is_ignored=np.ones((2, 2), bool))
    np.testing.assert_array_equal(nothing, np.zeros((2, 2)))


def test_ghm_with_given_counts(batch):
    logits, labels, _ = batch
    counts = ghm_counts(logits, labels)
    expected = ghm_classification_loss(logits, labels)
    # An average that began with zeros is smaller than the counts by a factor, which cancels.
    given = ghm_classification_loss(logits, labels, counts=0.25 * counts)
    np.testing.assert_allclose(given, expected, rtol=1e-6)
    # A part twice as full makes its elements half as heavy, up to the total.
    fuller = counts.at[0].mul(2.0)
    in_first = np.abs(1 / (1 + np.exp(-logits)) - labels) < 0.1
    ratio = np.where(in_first, 0.5, 1.0) * fuller.sum() / counts.sum()
    np.testing.assert_allclose(ghm_classification_loss(logits, labels, counts=fuller), expected * ratio, rtol=1e-5)
    assert np.isfinite(ghm_classification_loss(logits, labels, counts=np.zeros(10))).all()
    slope = jax.grad(lambda counts: ghm_classification_loss(logits, labels, counts=counts).sum())(counts)
    np.testing.assert_array_equal(slope, np.zeros(10))


def test_ghm_over_eight_devices_equals_one(mesh_of_eight, batch):
    expected = ghm_classification_loss(*batch[:2], is_ignored=batch[2])
    split = PartitionSpec("data")

    def of_shard(x, y, i):
        return ghm_classification_loss(x, y, is_ignored=i, axis_name="data")

    over_devices = jax.shard_map(of_shard, mesh=mesh_of_eight, in_specs=(split, split, split), out_specs=split)
    np.testing.assert_allclose(jax.jit(over_devices)(*batch), expected, rtol=1e-6)
    sharded = jax.device_put(batch, jax.NamedSharding(mesh_of_eight, split))
    actual = jax.jit(lambda x, y, i: ghm_classification_loss(x, y, is_ignored=i))(*sharded)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    per_image = jax.jit(jax.vmap(ghm_classification_loss))(*batch[:2])[3]
    np.testing.assert_allclose(per_image, ghm_classification_loss(batch[0][3], batch[1][3]), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (ghm_counts, {"bins": 0}, "bins must be at least 1, got 0"),
        (ghm_counts, {"bins": 2.0}, "bins must be a whole number, known when tracing, got 2.0"),
        (ghm_counts, {"is_ignored": np.zeros(3)}, "is_ignored must be bool, got float32"),
        (ghm_counts, {"is_ignored": np.zeros(2, bool)}, r"is_ignored has shape \(2,\), logits \(3,\)"),
        (ghm_classification_loss, {"counts": np.ones(30)}, r"counts has shape \(30,\), expected .* \(10,\)"),
    ],
)
def test_misuse_is_explained(loss, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        loss(**{"logits": np.zeros(3), "labels": np.zeros(3), **arguments})

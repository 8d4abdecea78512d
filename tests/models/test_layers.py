import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.models.layers import BatchNorm, FrozenBatchNorm, conv, norm


def batch_norm_variables(channels, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    return {
        "params": {
            "scale": random.uniform(0.5, 1.5, channels).astype(dtype),
            "bias": random.normal(size=channels).astype(dtype),
        },
        "batch_stats": {
            "mean": random.normal(size=channels).astype(dtype),
            "var": random.uniform(0.5, 2, channels).astype(dtype),
        },
    }


@functools.partial(jax.jit, static_argnames="dtype")
def train(variables, x, dtype=jnp.float32):
    return BatchNorm(use_running_average=False, dtype=dtype).apply(variables, x, mutable=["batch_stats"])


# Batch normalisation


def test_running_statistics_move_a_tenth_of_the_way_to_the_mean_and_the_unbiased_variance():
    x = np.random.default_rng(0).normal(3, 2, size=(1, 2, 3, 8)).astype(np.float32)
    variables = batch_norm_variables(8)
    y, updated = train(variables, x)
    before, after = variables["batch_stats"], updated["batch_stats"]
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * x.mean(axis=(0, 1, 2)), rtol=1e-5)
    # numpy's ddof=1 divides by n - 1; with six values a channel it is a fifth larger.
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * x.var(axis=(0, 1, 2), ddof=1), rtol=1e-5)
    normalized = (np.asarray(y) - variables["params"]["bias"]) / variables["params"]["scale"]
    np.testing.assert_allclose(normalized.mean(axis=(0, 1, 2)), np.zeros(8), atol=1e-6)
    np.testing.assert_allclose(normalized.std(axis=(0, 1, 2)), np.ones(8), rtol=1e-5)  # the biased one


def test_values_of_two_examples_are_those_worked_by_hand():
    # Channel 0: 1 and 5, mean 3, variance 4 (8 / 1 unbiased); normalised to -1 and 1. Channel 1 is constant.
    variables = {
        "params": {"scale": np.array([10.0, 10]), "bias": np.array([2.0, 2])},
        "batch_stats": {"mean": np.array([0.0, 0]), "var": np.array([1.0, 1])},
    }
    y, updated = train(variables, np.array([[1.0, 7], [5, 7]]))
    np.testing.assert_allclose(y, [[-8, 2], [12, 2]], rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.3, 0.7], rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], [0.9 + 0.8, 0.9], rtol=1e-6)


def test_gradient_in_float64_is_that_of_the_definition():
    # Through the normalised value z: d loss / dx = scale / std (g - mean(g) - z mean(g z)).
    random = np.random.default_rng(1)
    x, g = random.normal(3, 2, size=(2, 4, 5, 6, 8))
    variables = batch_norm_variables(8, dtype=np.float64)
    with jax.enable_x64(True):
        loss = lambda params, x: (g * train({**variables, "params": params}, x, dtype=jnp.float64)[0]).sum()  # noqa: E731
        gradients, input_gradient = jax.grad(loss, argnums=(0, 1))(variables["params"], x)
    axes = (0, 1, 2)
    std = np.sqrt(x.var(axis=axes) + 1e-5)
    z = (x - x.mean(axis=axes)) / std
    expected = variables["params"]["scale"] / std * (g - g.mean(axis=axes) - z * (g * z).mean(axis=axes))
    np.testing.assert_allclose(input_gradient, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradients["scale"], (g * z).sum(axis=axes), rtol=1e-12)
    np.testing.assert_allclose(gradients["bias"], g.sum(axis=axes), rtol=1e-12)


def test_a_large_mean_leaves_the_variance_exact():
    # E[x^2] - E[x]^2 is wrong by 24 times here, and the output by 1000.
    x = np.random.default_rng(0).normal(1e4, 1, size=(4, 20, 20, 8)).astype(np.float32)
    variables = {
        "params": {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)},
        "batch_stats": {"mean": np.zeros(8, np.float32), "var": np.zeros(8, np.float32)},
    }
    y, updated = train(variables, x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(10 * updated["batch_stats"]["var"], exact.var(axis=(0, 1, 2), ddof=1), rtol=1e-5)
    standard = (exact - exact.mean(axis=(0, 1, 2))) / np.sqrt(exact.var(axis=(0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, standard, atol=5e-3)  # a float32 of 1e4 has steps of 1e-3


def test_one_value_a_channel_is_normalised_to_the_bias():
    variables = batch_norm_variables(3)
    y, updated = train(variables, np.full((1, 1, 1, 3), 7, np.float32))
    np.testing.assert_allclose(y[0, 0, 0], variables["params"]["bias"], rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 * variables["batch_stats"]["var"], rtol=1e-6)


def test_evaluation_normalises_by_the_running_statistics_and_leaves_them():
    variables = batch_norm_variables(4)
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
    layer = BatchNorm(use_running_average=True, epsilon=0.5)
    y, updated = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]))(variables, x)
    params, stats = variables["params"], variables["batch_stats"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 0.5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], stats)


def test_variables_are_those_of_flax():
    x = jnp.zeros((2, 4, 4, 6))
    ours = jax.eval_shape(BatchNorm(use_running_average=False).init, jax.random.key(0), x)
    theirs = jax.eval_shape(nn.BatchNorm(use_running_average=False).init, jax.random.key(0), x)
    assert ours == theirs


def test_initialisation_does_not_move_the_statistics():
    x = np.full((2, 1, 1, 3), [5, 6, 7], np.float32)
    variables = jax.jit(BatchNorm(use_running_average=False).init)(jax.random.key(0, impl="rbg"), x)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)


def test_statistics_of_a_sharded_batch_are_those_of_the_whole(mesh_of_eight):
    x = np.random.default_rng(0).normal(np.arange(8)[:, None, None, None], 1, size=(8, 2, 2, 4)).astype(np.float32)
    variables = batch_norm_variables(4)
    batch = jax.sharding.NamedSharding(mesh_of_eight, jax.sharding.PartitionSpec("data"))
    y, updated = train(variables, jax.device_put(x, batch))
    y_one, updated_one = train(variables, x)
    np.testing.assert_allclose(y, y_one, rtol=1e-5, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), updated, updated_one)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_statistics_keep_their_type_whatever_the_activations(dtype):
    with jax.enable_x64(dtype == "float64"):
        y, updated = train(batch_norm_variables(4), jnp.ones((2, 4, 4, 4), dtype), dtype=jnp.dtype(dtype))
    assert y.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}


def test_statistics_of_bfloat16_activations_are_computed_in_float32():
    # In bfloat16 1024 + 1 is 1024: a sum of 4096 ones would stop early.
    _, updated = train(batch_norm_variables(1), jnp.ones((1, 64, 64, 1), jnp.bfloat16), dtype=jnp.bfloat16)
    before = batch_norm_variables(1)["batch_stats"]
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.9 * before["mean"] + 0.1, rtol=1e-6)


# The other norms


def test_frozen_batch_norm_is_an_affine_map_of_constants():
    stats = {"mean": np.full(2, 3.0), "var": np.full(2, 4.0 - 1e-5), "scale": np.array([1.0, 10.0]), "bias": np.ones(2)}
    y, updated = FrozenBatchNorm().apply({"batch_stats": stats}, np.array([[7.0, 7.0]]), mutable=["batch_stats"])
    np.testing.assert_allclose(y, [[(7 - 3) / 2 + 1, 10 * (7 - 3) / 2 + 1]], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], stats)
    variables = jax.eval_shape(FrozenBatchNorm().init, jax.random.key(0), jnp.zeros((1, 2)))
    assert set(variables) == {"batch_stats"}


@pytest.mark.parametrize(("channels", "groups"), [(24, 6), (128, 32), (256, 32)])
def test_group_norm_has_32_groups_or_groups_of_four_channels(channels, groups):
    x = np.random.default_rng(0).normal(2, 3, size=(2, 4, 4, channels)).astype(np.float32)
    layer = norm("group_norm", train=True, name="gn")
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert set(variables) == {"params"}
    params = {"group_norm": {"scale": np.ones(channels), "bias": np.zeros(channels)}}
    y = jax.jit(layer.apply)({"params": params}, x)
    grouped = np.reshape(y, (2, 16, groups, -1))
    np.testing.assert_allclose(grouped.mean(axis=(1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(grouped.var(axis=(1, 3)), 1, rtol=1e-3)


def test_group_norm_is_exact_at_a_large_mean():
    x = np.random.default_rng(0).normal(1000, 1, size=(1, 8, 8, 128)).astype(np.float32)
    params = {"group_norm": {"scale": np.ones(128, np.float32), "bias": np.zeros(128, np.float32)}}
    y = jax.jit(norm("group_norm", train=True, name="gn").apply)({"params": params}, x)
    grouped = x.astype(np.float64).reshape(1, 64, 32, 4)
    centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(axis=(1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-3)


@pytest.mark.parametrize("kind", ["batch_norm", "frozen_batch_norm", "group_norm"])
def test_epsilon_is_added_to_the_variance(kind):
    # Values -1 and 1 in each channel and group: variance 1, with epsilon 3 half of the value is left.
    x = np.array([-1.0, 1.0], np.float32).reshape(2, 1, 1, 1) * np.ones((2, 1, 1, 4), np.float32)
    x = np.concatenate([x, -x], axis=1)
    layer = norm(kind, train=True, epsilon=3.0, name="norm")
    variables = layer.init(jax.random.key(0), x)
    y, _ = layer.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, x / 2, rtol=1e-6)


def test_unknown_norm_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="norm must be one of batch_norm, frozen_batch_norm, group_norm, got 'layer'"):
        norm("layer", train=True, name="bn")
    with pytest.raises(ValueError, match="epsilon of a norm must be at least 0, got -1"):
        norm("batch_norm", train=True, epsilon=-1, name="bn")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("use_bias", [False, True])
def test_a_1x1_convolution_as_a_matrix_product_is_that_convolution(stride, use_bias):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 7, 9, 5))
    with jax.enable_x64(True):
        layer = conv(6, 1, stride=stride, use_bias=use_bias, dtype=jnp.float64, name="conv")
        kernel, bias = random.normal(size=(1, 1, 5, 6)), random.normal(size=6)
        params = {"kernel": kernel, "bias": bias} if use_bias else {"kernel": kernel}

        def convolution(x, params):
            y = jax.lax.conv_general_dilated(
                x, params["kernel"], (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return y + params.get("bias", 0.0)

        actual, pull = jax.vjp(lambda x, params: layer.apply({"params": params}, x), x, params)
        expected, pull_expected = jax.vjp(convolution, x, params)
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
        cotangent = random.normal(size=actual.shape)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12),
            pull(cotangent),
            pull_expected(cotangent),
        )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("platform", "is_product"), [("cpu", True), ("tpu", True), ("cuda", False), ("rocm", False)])
def test_a_1x1_convolution_is_a_product_but_on_gpus(platform, is_product, stride):
    # XLA's GPU compiler aborts the process at the product of a strided one.
    layer = conv(6, 1, stride=stride, name="conv")
    params, x = {"kernel": jnp.ones((1, 1, 5, 6))}, jnp.ones((2, 8, 8, 5))
    step = jax.jit(jax.grad(lambda params, x: jnp.sum(layer.apply({"params": params}, x) ** 2), argnums=(0, 1)))
    program = step.trace(params, x).lower(lowering_platforms=(platform,)).as_text()
    products, convolutions = program.count("stablehlo.dot_general"), program.count("stablehlo.convolution")
    assert (products, convolutions) == ((3, 0) if is_product else (0, 3))  # forward, and two gradients

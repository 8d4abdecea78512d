import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.models.layers import FrozenBatchNorm, norm
from focaljax.models.resnet import RESNETS, ResNet


def shapes_of(model, size, *, train=False):
    """Shapes of the variables and of the features for one image; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=train), jax.random.key(0), images)
    return variables, jax.eval_shape(functools.partial(model.apply, train=False), variables, images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "parameters"),
    # torchvision's published numbers less those of the classifier, 1000 x channels + 1000.
    [
        ("resnet18", 11_176_512),
        ("resnet34", 21_284_672),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("resnet152", 58_143_808),
    ],
)
def test_backbones_have_the_published_number_of_parameters(name, parameters):
    model = ResNet(RESNETS[name])
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    assert count(variables["params"]) == parameters


@pytest.mark.parametrize("name", ["resnet_tiny", "resnet18", "resnet50"])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 1)])
def test_features_have_strides_4_to_32_rounded_up(name, size):
    _, features = shapes_of(ResNet(RESNETS[name]), size)
    assert {level: feature.shape[1:3] for level, feature in features.items()} == {
        level: (-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in (2, 3, 4, 5)
    }
    widths = {"resnet_tiny": (32, 48, 96, 128), "resnet18": (64, 128, 256, 512), "resnet50": (256, 512, 1024, 2048)}
    assert tuple(feature.shape[-1] for feature in features.values()) == widths[name]


def test_bottleneck_halves_the_image_in_its_3x3_convolution():
    model = ResNet(RESNETS["resnet50"])
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    apply = functools.partial(model.apply, train=False, capture_intermediates=True, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, variables, images)
    block = state["intermediates"]["layer2_0"]
    sides = [block[f"conv{i}"]["__call__"][0].shape[1] for i in (1, 2, 3)]
    assert sides == [16, 8, 8]


@pytest.fixture(scope="module")
def tiny(fill):
    model = ResNet(RESNETS["resnet_tiny"])
    variables, _ = shapes_of(model, (64, 64), train=True)
    apply = jax.jit(functools.partial(model.apply, train=False))
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    return model, fill(variables), apply, train


def test_every_position_sees_the_image_symmetrically_around_its_pixel(tiny, fill_evenly):
    # All weights positive and equal, one bright pixel at a multiple of 32: each level must answer symmetrically around
    # the position whose pixel it is. 'SAME' padding of strided convolutions answers half a stride off.
    _, variables, apply, _ = tiny
    image = np.zeros((1, 256, 256, 3), np.float32)
    image[0, 128, 128] = 100
    for level, feature in apply(fill_evenly(variables), image).items():
        feature = np.asarray(feature[0]).mean(axis=-1)
        position = 128 // 2**level
        around = feature[position - 3 : position + 4, position - 3 : position + 4]
        assert around[3, 3] > 0
        np.testing.assert_allclose(around, around[::-1], rtol=1e-5, err_msg=f"C{level}")
        np.testing.assert_allclose(around, around[:, ::-1], rtol=1e-5, err_msg=f"C{level}")


def test_normalisation_of_a_batch_in_training_and_of_an_image_in_evaluation(tiny):
    _, variables, apply, train = tiny
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    other = images.copy()
    other[1] *= 3
    # Evaluation: an image's features do not depend on its neighbour. Training: they do.
    np.testing.assert_allclose(apply(variables, images)[3][0], apply(variables, other)[3][0], rtol=1e-5, atol=1e-5)
    (features, updated), (changed, _) = train(variables, images), train(variables, other)
    assert np.abs(features[3][0] - changed[3][0]).max() > 0.1
    # Every running statistic moves, and only in training; the parameters are not touched.
    assert set(updated) == {"batch_stats"}
    moved = jax.tree.map(lambda old, new: bool((old != new).all()), variables["batch_stats"], updated["batch_stats"])
    assert all(jax.tree.leaves(moved))
    with pytest.raises(Exception, match="batch_stats"):
        tiny[0].apply(variables, images, train=True)


def test_running_statistics_move_a_tenth_of_the_way():
    layer = norm("batch_norm", train=True, name="bn")
    x = np.random.default_rng(0).normal(3, 2, size=(4, 5, 5, 8)).astype(np.float32)
    variables = {"params": {"scale": np.ones(8), "bias": np.zeros(8)}}
    variables["batch_stats"] = {"mean": np.ones(8), "var": np.ones(8)}
    y, updated = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]))(variables, x)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.9 + 0.1 * x.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * x.var(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(np.mean(y, axis=(0, 1, 2)), np.zeros(8), atol=1e-5)
    np.testing.assert_allclose(np.std(y, axis=(0, 1, 2)), np.ones(8), rtol=1e-4)


def test_frozen_batch_norm_is_an_affine_map_of_constants():
    stats = {"mean": np.full(2, 3.0), "var": np.full(2, 4.0 - 1e-5), "scale": np.array([1.0, 10.0]), "bias": np.ones(2)}
    y, updated = FrozenBatchNorm().apply({"batch_stats": stats}, np.array([[7.0, 7.0]]), mutable=["batch_stats"])
    np.testing.assert_allclose(y, [[(7 - 3) / 2 + 1, 10 * (7 - 3) / 2 + 1]], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], stats)
    variables = jax.eval_shape(FrozenBatchNorm().init, jax.random.key(0), jnp.zeros((1, 2)))
    assert set(variables) == {"batch_stats"}


def test_frozen_network_has_only_kernels_as_parameters_and_does_not_change_in_training(fill):
    model = ResNet(RESNETS["resnet_tiny"], norm="frozen_batch_norm")
    variables, _ = shapes_of(model, (64, 64))
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    assert names == {"kernel"}
    variables = fill(variables)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    evaluated = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    trained, updated = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_array_equal(evaluated[5], trained[5])
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_new_residual_blocks_start_as_the_identity():
    @jax.jit
    def initial_scales(key):
        params = ResNet(RESNETS["resnet18"]).init(key, jnp.zeros((1, 32, 32, 3)), train=False)["params"]
        return {
            f"{block}/{layer}": leaves["scale"]
            for block, layers in params.items()
            for layer, leaves in (layers.items() if block.startswith("layer") else ())
            if "scale" in leaves
        }

    scales = initial_scales(jax.random.key(0))
    assert len(scales) == 2 * 8 + 3
    for name, scale in scales.items():
        np.testing.assert_array_equal(scale, 0 if name.endswith("/bn2") else 1, err_msg=name)


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


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    variables, features = shapes_of(ResNet(RESNETS["resnet_tiny"], dtype=jnp.bfloat16), (64, 64))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {feature.dtype for feature in features.values()} == {jnp.dtype("bfloat16")}
    frozen = FrozenBatchNorm(dtype=jnp.bfloat16)
    y = frozen.apply(frozen.init(jax.random.key(0), jnp.ones(3)), jnp.ones(3, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


def test_unknown_norm_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="norm must be one of batch_norm, frozen_batch_norm, group_norm, got 'layer'"):
        norm("layer", train=True, name="bn")
    assert isinstance(norm("batch_norm", train=True, name="bn"), nn.Module)

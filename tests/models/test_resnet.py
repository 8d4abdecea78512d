import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.models.layers import FrozenBatchNorm
from focaljax.models.resnet import RESNETS, ResNet, frozen_parameters


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
        ("resnext50_32x4d", 22_979_904),
        ("resnext101_64x4d", 81_406_272),
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


def sides_in_a_block(model, block):
    """The side of what each of the block's convolutions gives, for an image of 64 pixels."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    apply = functools.partial(model.apply, train=False, capture_intermediates=True, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, variables, images)
    outputs = state["intermediates"][block]
    return {name: out["__call__"][0].shape[1] for name, out in outputs.items() if name.startswith(("conv", "down"))}


def test_bottleneck_halves_the_image_in_its_3x3_convolution():
    sides = sides_in_a_block(ResNet(RESNETS["resnet50"]), "layer2_0")
    assert (sides["conv1"], sides["conv2"], sides["conv3"], sides["downsample_conv"]) == (16, 8, 8, 8)


def test_bottleneck_of_caffe_halves_the_image_in_its_first_convolution():
    model = ResNet(RESNETS["resnet50"], stride_in_1x1=True)
    sides = sides_in_a_block(model, "layer2_0")
    assert (sides["conv1"], sides["conv2"], sides["conv3"], sides["downsample_conv"]) == (8, 8, 8, 8)
    assert sides_in_a_block(model, "layer1_0")["conv1"] == 16
    assert shapes_of(model, (64, 64)) == shapes_of(ResNet(RESNETS["resnet50"]), (64, 64))


def test_basic_blocks_have_no_1x1_to_stride_in():
    with pytest.raises(ValueError, match="stride_in_1x1 is for bottlenecks"):
        shapes_of(ResNet(RESNETS["resnet18"], stride_in_1x1=True), (64, 64))


def test_resnext_has_groups_in_its_3x3_convolutions_and_nowhere_else():
    # ResNeXt50-32x4d, table 1 of the paper: 32 groups of 4 channels in C2, of 8 in C3, 16 in C4, 32 in C5.
    variables, features = shapes_of(ResNet(RESNETS["resnext50_32x4d"]), (64, 64))
    for stage, width in enumerate((128, 256, 512, 1024), start=1):
        block = variables["params"][f"layer{stage}_1"]
        assert block["conv1"]["kernel"].shape == (1, 1, 2 * width, width)
        assert block["conv2"]["kernel"].shape == (3, 3, width // 32, width)
        assert block["conv3"]["kernel"].shape == (1, 1, width, 2 * width)
        assert features[stage + 1].shape[-1] == 2 * width
    wide = shapes_of(ResNet(RESNETS["resnext101_64x4d"]), (64, 64))[0]["params"]["layer3_22"]["conv2"]["kernel"]
    assert wide.shape == (3, 3, 16, 1024)


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


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    variables, features = shapes_of(ResNet(RESNETS["resnet_tiny"], dtype=jnp.bfloat16), (64, 64))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {feature.dtype for feature in features.values()} == {jnp.dtype("bfloat16")}
    frozen = FrozenBatchNorm(dtype=jnp.bfloat16)
    y = frozen.apply(frozen.init(jax.random.key(0), jnp.ones(3)), jnp.ones(3, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


# Frozen parts

PARTS = (("conv1", "bn1"), ("layer1_0",), ("layer2_0",), ("layer3_0",), ("layer4_0",))


@pytest.mark.parametrize("freeze_at", [1, 3])
def test_frozen_parts_have_no_gradient_and_keep_their_statistics(tiny, freeze_at):
    _, variables, _, _ = tiny
    model = ResNet(RESNETS["resnet_tiny"], freeze_at=freeze_at)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)

    @jax.jit
    def gradients(params):
        def loss(params):
            apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
            features, updated = apply({**variables, "params": params}, images)
            return sum(jnp.square(feature).sum() for feature in features.values()), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    gradient, updated = gradients(variables["params"])
    frozen = {name for part in PARTS[:freeze_at] for name in part}
    for name, leaves in gradient.items():
        has_gradient = any(np.any(leaf != 0) for leaf in jax.tree.leaves(leaves))
        assert has_gradient == (name not in frozen), name
    for name, leaves in updated.items():
        moved = jax.tree.map(lambda old, new: bool((old != new).any()), variables["batch_stats"][name], leaves)
        assert set(jax.tree.leaves(moved)) == {name not in frozen}, name


def test_frozen_parts_are_normalised_by_their_running_statistics(tiny):
    _, variables, apply, _ = tiny
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    model = ResNet(RESNETS["resnet_tiny"], freeze_at=3)
    features, _ = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(variables, images)
    evaluated = apply(variables, images)
    for level in (2, 3):
        np.testing.assert_allclose(features[level], evaluated[level], rtol=1e-5, atol=1e-5)
    assert np.abs(features[4] - evaluated[4]).max() > 0.1


def test_no_backward_pass_is_computed_for_frozen_parts(tiny):
    # resnet_tiny has the stem and 3, 3, 3, 3 convolutions (C2 changes no size, but the width). Each has a forward pass
    # and, where trained, two gradients, but only one where nothing before it is trained.
    _, variables, _, _ = tiny
    images = jnp.zeros((1, 64, 64, 3))

    def convolutions(freeze_at):
        model = ResNet(RESNETS["resnet_tiny"], freeze_at=freeze_at)

        def loss(params):
            features, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return features[5].sum()

        program = jax.jit(jax.value_and_grad(loss)).lower(variables["params"]).as_text()
        return program.count("stablehlo.convolution") + program.count("stablehlo.dot_general")  # products: those of 1x1

    blocks = [sum("conv" in name for name in variables["params"][f"layer{stage}_0"]) for stage in (1, 2, 3, 4)]
    total = 1 + sum(blocks)
    assert convolutions(0) == 3 * total - 1
    for freeze_at in (1, 3):
        trained = sum(blocks[freeze_at - 1 :])
        first = 2 if "downsample_conv" in variables["params"][f"layer{freeze_at}_0"] else 1
        assert convolutions(freeze_at) == total + 2 * trained - first
    assert convolutions(5) == total


def test_frozen_parameters_are_those_of_the_frozen_parts(tiny):
    params = {"backbone": tiny[1]["params"], "fpn": {"p6": {"kernel": 0.0}}, "class_head": {"conv1": {"kernel": 0.0}}}
    for freeze_at in range(6):
        is_frozen = frozen_parameters(params, freeze_at)
        assert jax.tree.structure(is_frozen) == jax.tree.structure(params)
        frozen = {name for part in PARTS[:freeze_at] for name in part}
        for name, leaves in is_frozen["backbone"].items():
            assert set(jax.tree.leaves(leaves)) == {name in frozen}
        assert not any(jax.tree.leaves((is_frozen["fpn"], is_frozen["class_head"])))


@pytest.mark.parametrize("freeze_at", [-1, 6, 1.5])
def test_impossible_number_of_frozen_parts_is_refused(freeze_at):
    message = f"freeze_at must be the number of frozen parts in 0..5 .*, got {freeze_at}"
    with pytest.raises(ValueError, match=message):
        shapes_of(ResNet(RESNETS["resnet_tiny"], freeze_at=freeze_at), (64, 64))
    with pytest.raises(ValueError, match=message):
        frozen_parameters({"backbone": {}}, freeze_at)
    with pytest.raises(ValueError, match="params must be a detector's, with a 'backbone'; got conv1"):
        frozen_parameters({"conv1": 0.0}, 1)

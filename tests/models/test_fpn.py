import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.detection import feature_shape
from focaljax.models.fpn import FeaturePyramid
from focaljax.models.resnet import RESNETS, ResNet

CHANNELS = {2: 4, 3: 5, 4: 6, 5: 7}


def feature_maps(size, make=np.zeros):
    return {level: make((1, *feature_shape(size, level), channels)) for level, channels in CHANNELS.items()}


def pyramid_shapes(pyramid, size):
    maps = feature_maps(size, lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32))
    variables = jax.eval_shape(pyramid.init, jax.random.key(0), maps)
    return variables, jax.eval_shape(pyramid.apply, variables, maps)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (100, 33), (127, 1)])
@pytest.mark.parametrize("levels", [(3, 4, 5, 6, 7), (2, 3, 4, 5), (3, 4, 5, 6), (5, 6)])
def test_levels_have_the_shapes_that_the_anchors_expect(size, levels):
    _, pyramid = pyramid_shapes(FeaturePyramid(8, levels=levels), size)
    assert [level.shape for level in pyramid] == [(1, *feature_shape(size, level), 8) for level in levels]


@pytest.mark.parametrize(("p6_from", "inputs"), [("c5", 7), ("p5", 8)])
def test_p6_reads_c5_or_p5(p6_from, inputs):
    variables, _ = pyramid_shapes(FeaturePyramid(8, p6_from=p6_from), (64, 64))
    assert variables["params"]["p6"]["kernel"].shape == (3, 3, inputs, 8)


def test_paper_pyramid_on_resnet50_has_the_parameters_counted_by_hand():
    # Lateral 1x1: (512 + 1024 + 2048) x 256 + 3 x 256. Output 3x3: 3 x (9 x 256 x 256 + 256).
    # P6 on C5: 9 x 2048 x 256 + 256. P7: 9 x 256 x 256 + 256.
    maps = {level: jax.ShapeDtypeStruct((1, 64 >> level, 64 >> level, 64 * 2**level), jnp.float32)
            for level in (2, 3, 4, 5)}  # fmt: skip
    variables = jax.eval_shape(FeaturePyramid().init, jax.random.key(0), maps)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 918_272 + 1_770_240 + 4_718_848 + 590_080


def test_coarse_features_are_added_to_the_finer_ones_by_nearest_neighbour():
    # Laterals pick out the first channel; output convolutions pass it on. Odd sizes: 5 rows above 3 above 2.
    model = FeaturePyramid(1, levels=(3, 4, 5))
    variables, _ = pyramid_shapes(model, (40, 40))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables["params"])
    for leaves in params.values():
        side = leaves["kernel"].shape[0]
        leaves["kernel"][side // 2, side // 2, 0, 0] = 1
    maps = feature_maps((40, 40))
    maps[5][0, :, :, 0] = [[1, 2], [3, 4]]
    maps[4][0, 2, 0, 0] = 10
    maps[3][0, 0, 4, 0] = 100
    p3, p4, p5 = (np.asarray(level)[0, :, :, 0] for level in jax.jit(model.apply)({"params": params}, maps))
    np.testing.assert_array_equal(p5, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(p4, [[1, 1, 2], [1, 1, 2], [13, 3, 4]])
    expected = np.repeat(np.repeat(p4, 2, axis=0), 2, axis=1)[:5, :5]
    expected[0, 4] += 100
    np.testing.assert_array_equal(p3, expected)


def test_p7_is_made_of_the_positive_part_of_p6():
    model = FeaturePyramid(1, levels=(5, 6, 7))
    variables, _ = pyramid_shapes(model, (128, 128))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables["params"])
    params["p6"]["kernel"][1, 1, 0, 0] = params["p7"]["kernel"][1, 1, 0, 0] = 1
    maps = feature_maps((128, 128))
    maps[5][0, 0, 0, 0] = -3
    _, p6, p7 = jax.jit(model.apply)({"params": params}, maps)
    assert p6[0, 0, 0, 0] == -3
    assert p7[0, 0, 0, 0] == 0


class _Backbone:
    """The small backbone and a pyramid as one function of the images."""

    def __init__(self, fill):
        self.backbone, self.pyramid = ResNet(RESNETS["resnet_tiny"]), FeaturePyramid(8, levels=(3, 4, 5))
        images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
        shapes = jax.eval_shape(functools.partial(self.backbone.init, train=False), jax.random.key(0), images)
        features = jax.eval_shape(functools.partial(self.backbone.apply, train=False), shapes, images)
        pyramid_shapes = jax.eval_shape(self.pyramid.init, jax.random.key(0), features)
        # Without biases an empty image has empty features, and its border cannot be seen.
        self.variables = fill(shapes, biases=0), fill(pyramid_shapes, biases=0)

    def __call__(self, images):
        features = self.backbone.apply(self.variables[0], images, train=False)
        return self.pyramid.apply(self.variables[1], features)


def test_moving_an_object_by_32_pixels_moves_its_features_by_whole_cells(fill):
    patch = np.random.default_rng(0).uniform(-1, 1, size=(24, 24, 3))
    images = np.zeros((3, 256, 256, 3), np.float32)
    images[0, 100:124, 100:124] = patch
    images[1, 132:156, 100:124] = patch  # 32 px down
    images[2, 100:124, 132:156] = patch  # 32 px to the right
    for level, feature in zip((3, 4, 5), jax.jit(_Backbone(fill))(images), strict=True):
        cells = 32 // 2**level
        here, below, right = np.asarray(feature)
        assert np.abs(here).max() > 0.1
        assert np.abs(here - below).max() > 0.1
        np.testing.assert_allclose(below[cells:], here[:-cells], atol=1e-4, err_msg=f"P{level}")
        np.testing.assert_allclose(right[:, cells:], here[:, :-cells], atol=1e-4, err_msg=f"P{level}")


def test_unknown_source_of_p6_is_refused():
    with pytest.raises(ValueError, match="p6_from must be one of c5, p5, got 'p6'"):
        pyramid_shapes(FeaturePyramid(8, p6_from="p6"), (64, 64))


@pytest.mark.parametrize("levels", [(), (3, 5), (5, 4, 3), (1, 2, 3), (6, 7), (3, 4, 5, 6, 7, 8), (3, 4, 5, 7)])
def test_levels_that_cannot_be_built_are_refused(levels):
    with pytest.raises(ValueError, match="levels must be consecutive, the finest in 2..5"):
        pyramid_shapes(FeaturePyramid(8, levels=levels), (64, 64))

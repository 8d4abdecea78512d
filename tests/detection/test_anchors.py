import functools
import math

import jax
import numpy as np
import pytest

from focaljax.detection import feature_shape, pyramid_anchors


def anchors_one_by_one(image_size, levels, sizes, scales, ratios):
    """Each anchor from its definition: centre (j s, i s), area (size scale)^2, height / width = ratio."""
    result = []
    for level, size in zip(levels, sizes, strict=True):
        stride, rows = 2**level, []
        for i in range(math.ceil(image_size[0] / stride)):
            for j in range(math.ceil(image_size[1] / stride)):
                for scale in scales:
                    for ratio in ratios:
                        width = size * scale / math.sqrt(ratio)
                        height = width * ratio
                        x, y = j * stride, i * stride
                        rows.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        result.append(np.array(rows))
    return result


@pytest.mark.parametrize("image_size", [(64, 96), (37, 101)])
def test_anchors_are_row_by_row_then_scale_then_ratio(image_size):
    levels, sizes = (3, 4, 5), (20.0, 48.0, 100.0)
    anchors = jax.jit(functools.partial(pyramid_anchors, image_size, levels=levels, sizes=sizes))()
    expected = anchors_one_by_one(image_size, levels, sizes, (1, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1, 2))
    assert len(anchors) == 3
    for ours, theirs in zip(anchors, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-4)


def test_defaults_are_the_papers():
    anchors = jax.eval_shape(lambda: pyramid_anchors((800, 1024)))
    assert [level.shape for level in anchors] == [(9 * h * w, 4) for h, w in
                                                  ((100, 128), (50, 64), (25, 32), (13, 16), (7, 8))]  # fmt: skip
    first = np.concatenate([level[:9] for level in jax.jit(lambda: pyramid_anchors((32, 32)))()])
    sides = first[:, 2:] - first[:, :2]
    octaves = np.repeat([32, 64, 128, 256, 512], 9) * np.tile(np.repeat(2.0 ** np.array([0, 1 / 3, 2 / 3]), 3), 5)
    np.testing.assert_allclose(sides.prod(axis=1), octaves**2, rtol=1e-5)
    np.testing.assert_allclose(sides[:, 1] / sides[:, 0], np.tile([0.5, 1, 2], 15), rtol=1e-5)
    np.testing.assert_allclose(first[:, 2:] + first[:, :2], 0, atol=1e-4)


@pytest.mark.parametrize("side", [1, 2, 63, 64, 65, 100, 127])
def test_feature_shape_is_that_of_repeated_halving_upwards(side):
    halved = side
    for level in range(1, 8):
        halved = (halved + 1) // 2
        assert feature_shape((side, 2 * side), level)[0] == halved
        assert feature_shape((2 * side, side), level)[1] == halved


def test_eager_and_compiled_anchors_are_equal():
    def make():
        return pyramid_anchors((50, 70), levels=(4,), sizes=(64.0,))

    for eager, compiled in zip(make(), jax.jit(make)(), strict=True):
        np.testing.assert_array_equal(eager, compiled)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="sizes has 5 entries, levels 2: one size a level is needed"):
        pyramid_anchors((64, 64), levels=(3, 4))
    for name in ("scales", "ratios"):
        for values in ((), (1.0, 0.0), (-1.0,)):
            with pytest.raises(ValueError, match=f"{name} must be positive"):
                pyramid_anchors((64, 64), **{name: values})
    with pytest.raises(ValueError, match="sizes must be positive"):
        pyramid_anchors((64, 64), levels=(3,), sizes=(-8.0,))

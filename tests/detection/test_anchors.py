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
    with pytest.raises(ValueError, match="layout must be one of centered, torchvision, got 'corner'"):
        pyramid_anchors((64, 64), layout="corner")
    with pytest.raises(ValueError, match="does not round to nothing, got size 1.0"):
        pyramid_anchors((64, 64), levels=(3,), sizes=(1.0,), layout="torchvision")


# torchvision's layout


def test_torchvisions_first_anchors_are_those_worked_by_hand():
    # Sides int(32 x 2^(k/3)): 32, 40, 50. Ratio 1:2: width = side sqrt(2), height = side / sqrt(2); halves of
    # 45.25 x 22.63, 56.57 x 28.28 and 70.71 x 35.36, rounded. Then squares, then 2:1. Halves of a pixel are never met.
    (p3,) = pyramid_anchors((8, 8), levels=(3,), sizes=(32.0,), layout="torchvision")
    assert p3.dtype == np.float32
    widths_heights = [(23, 11), (28, 14), (35, 18), (16, 16), (20, 20), (25, 25), (11, 23), (14, 28), (18, 35)]
    np.testing.assert_array_equal(p3, [[-w, -h, w, h] for w, h in widths_heights])


def test_torchvision_rounds_halves_to_even():
    # Half sides 2.5 and 3.5.
    (p3,) = pyramid_anchors((8, 8), levels=(3,), sizes=(5.0,), scales=(1.0, 1.5), ratios=(1.0,), layout="torchvision")
    np.testing.assert_array_equal(p3[:, 2:], [[2, 2], [4, 4]])


@pytest.mark.parametrize("image_size", [(800, 1344), (97, 131), (33, 1)])
def test_torchvisions_strides_are_the_image_over_the_grid(image_size):
    # (800, 1344): P6 is 13 x 21 with strides 800 // 13 = 61 and 64, P7 7 x 11 with 114 and 122.
    make = functools.partial(pyramid_anchors, image_size, layout="torchvision")
    for level, anchors in zip((3, 4, 5, 6, 7), jax.jit(make)(), strict=True):
        rows, columns = math.ceil(image_size[0] / 2**level), math.ceil(image_size[1] / 2**level)
        centres = np.asarray(anchors[:, :2] + anchors[:, 2:]).reshape(rows, columns, 9, 2) / 2
        for i, j in {(0, 0), (rows - 1, columns - 1), (rows // 2, columns - 1)}:
            x, y = j * (image_size[1] // columns), i * (image_size[0] // rows)
            np.testing.assert_array_equal(centres[i, j], np.broadcast_to([x, y], (9, 2)))


def test_torchvision_agrees_with_the_exact_anchors_to_a_pixel_where_strides_are_whole():
    exact, rounded = (
        jax.jit(functools.partial(pyramid_anchors, (256, 384), layout=layout))()
        for layout in ("centered", "torchvision")
    )
    for ours, theirs in zip(exact, rounded, strict=True):
        reordered = np.asarray(theirs).reshape(-1, 3, 3, 4).swapaxes(1, 2).reshape(-1, 4)
        # A side is cut by less than a pixel, its half stretched by sqrt(2) at most, and rounded by half a pixel.
        np.testing.assert_allclose(reordered, ours, atol=0.5 * math.sqrt(2) + 0.5)

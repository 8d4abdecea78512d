"""Colour jitter of one image, worked by hand."""

import numpy as np
import pytest

from focaljax.data.colors import color_jitter


class FixedJitter:
    """Stands in for a generator whose uniform draws are all 1: every factor is 1 + its range, the turn its range."""

    def uniform(self, low, high, count):
        return np.full(count, high)


def jitter(rgb, **ranges):
    return color_jitter(FixedJitter(), np.array(rgb, np.uint8).reshape(1, -1, 3), **ranges)[0].tolist()


def test_brightness_multiplies_and_saturates():
    assert jitter([[10, 100, 200]], brightness=0.5) == [[15, 150, 255]]


def test_contrast_moves_away_from_the_mean_luma():
    # Greys 80 and 120, mean 100, factor 1.5: 100 - 30 and 100 + 30.
    assert jitter([[80, 80, 80], [120, 120, 120]], contrast=0.5) == [[70, 70, 70], [130, 130, 130]]


def test_saturation_moves_away_from_the_pixels_luma():
    # Luma of (100, 50, 50) is 50 + 0.299 * 50 = 64.95; with factor 2: 135.05, 35.05, 35.05.
    assert jitter([[100, 50, 50]], saturation=1.0) == [[135, 35, 35]]


def test_hue_of_half_a_turn_mirrors_the_colour_about_its_luma():
    # Luma of (100, 60, 60) is 71.96; half a turn negates the difference from it: 43.92, 83.92, 83.92.
    assert jitter([[100, 60, 60]], hue=0.5) == [[44, 84, 84]]


def test_grey_images_are_left_alone_by_saturation_and_hue():
    assert jitter([[77, 77, 77], [200, 200, 200]], saturation=1.0, hue=0.3) == [[77] * 3, [200] * 3]


def test_no_jitter_is_the_same_image():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(color_jitter(np.random.default_rng(0), image), image)


def test_the_same_numbers_are_drawn_with_and_without_jitter():
    image = np.zeros((2, 2, 3), np.uint8)
    following = []
    for hue in (0.0, 0.5):
        rng = np.random.default_rng(3)
        color_jitter(rng, image, hue=hue)
        following.append(rng.random())
    assert following[0] == following[1]


@pytest.mark.parametrize(
    "ranges", [{"brightness": 1.1}, {"contrast": -0.1}, {"hue": 0.6}, {"saturation": float("nan")}]
)
def test_range_outside_its_limits_is_refused(ranges):
    with pytest.raises(ValueError, match="must be in 0..1 and hue in 0..0.5"):
        jitter([[1, 2, 3]], **ranges)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focaljax.data.resize import padded_size, resize_bilinear, restore_boxes, shortest_edge_size


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500), st.integers(0, 1500))
def test_one_of_the_two_limits_is_met_and_the_aspect_kept_to_a_pixel(height, width, min_size, further):
    max_size = min_size + further
    new_height, new_width = shortest_edge_size(height, width, min_size=min_size, max_size=max_size)
    shorter, longer = sorted((new_height, new_width))
    assert 1 <= shorter <= min_size
    assert longer <= max_size
    # A product may fall short of a whole number by rounding.
    assert shorter >= min_size - 1 or longer >= max_size - 1
    scale = min(min_size / min(height, width), max_size / max(height, width))
    for old, new in ((height, new_height), (width, new_width)):
        assert max(1, old * scale - 1.001) <= new <= max(1, old * scale)
    assert shortest_edge_size(width, height, min_size=min_size, max_size=max_size) == (new_width, new_height)


def test_image_of_the_right_size_stays():
    assert shortest_edge_size(800, 1200) == (800, 1200)
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resize_bilinear(image, 5, 7), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_plane_stays_a_plane_away_from_the_edges(dtype):
    # Interpolation is exact on a linear image, sampled at (i + 1/2) old / new - 1/2.
    y, x = np.mgrid[0:10, 0:20]
    image = np.stack([4 * y, 10 * x, 2 * x + 3 * y], axis=-1).astype(dtype)
    resized = resize_bilinear(image, 25, 30)
    assert resized.dtype == (np.float64 if dtype == np.float64 else np.float32)
    new_y, new_x = ((np.arange(25) + 0.5) * 0.4 - 0.5)[:, None], ((np.arange(30) + 0.5) / 1.5 - 0.5)[None, :]
    expected = np.stack(np.broadcast_arrays(4 * new_y, 10 * new_x, 2 * new_x + 3 * new_y), axis=-1)
    np.testing.assert_allclose(resized[2:-2, 2:-2], expected[2:-2, 2:-2], rtol=1e-5, atol=1e-4)
    # Beyond the centres of the outermost pixels the image is level.
    np.testing.assert_allclose(resized[0, 2:-2, 0], 0, atol=1e-6)
    np.testing.assert_allclose(resized[-1, 2:-2, 0], 36, rtol=1e-6)


def test_padding_holds_every_image_and_no_more():
    assert padded_size([(33, 64), (10, 65)]) == (64, 96)
    assert padded_size([(33, 64), (10, 65)], multiple=1) == (33, 65)


def test_box_around_the_resized_image_is_one_around_the_original():
    size, original = shortest_edge_size(427, 641), (427, 641)
    whole = np.array([[0.0, 0.0, size[1], size[0]]])
    np.testing.assert_allclose(restore_boxes(whole, size, original), [[0, 0, 641, 427]], rtol=2**-24)
    assert restore_boxes(whole.astype(np.float32), size, original).dtype == np.float32


def test_impossible_arguments_are_refused():
    image = np.zeros((4, 4, 3), np.uint8)
    for error, match, call in (
        (ValueError, "at least 1 pixel, got 0 and 5", lambda: shortest_edge_size(0, 5)),
        (ValueError, "got min_size 9, max_size 8", lambda: shortest_edge_size(5, 5, min_size=9, max_size=8)),
        (
            TypeError,
            "image must be uint8, float32 or float64, got int64",
            lambda: resize_bilinear(np.zeros((4, 4, 3), int), 2, 2),
        ),
        (ValueError, r"\[H, W, 3\], got \(4, 4\)", lambda: resize_bilinear(image[..., 0], 2, 2)),
        (ValueError, "at least 1 pixel, got 2 and 0", lambda: resize_bilinear(image, 2, 0)),
        (ValueError, "sizes is empty", lambda: padded_size([])),
        (ValueError, "multiple must be at least 1, got 0", lambda: padded_size([(4, 4)], multiple=0)),
    ):
        with pytest.raises(error, match=match):
            call()

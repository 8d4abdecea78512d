"""Views of images and their batches: sizes, padding, stretching, and that no image is lost or comes twice."""

import functools

import numpy as np
import pytest

from focaljax.data.views import fixed_size_view, shortest_edge_view, view_batches
from tests.small_detectors import images

SMALL = functools.partial(shortest_edge_view, min_size=32, max_size=64)


def test_stretching_fills_the_shape_with_a_scale_for_each_side():
    (image,) = images((20, 50))
    view = shortest_edge_view(image, min_size=64, max_size=64, keeps_aspect_ratio=False)
    assert view.image.shape == (64, 64, 3)
    np.testing.assert_array_equal(view.size, [64, 64])
    np.testing.assert_allclose(view.scale, [64 / 20, 64 / 50], rtol=1e-6)
    assert view.image[-1, -1].sum() > 0


def test_content_is_top_left_not_rounded_and_zeros_fill_the_rest():
    (image,) = images((21, 45))
    view = SMALL(image, 1.5)
    height, width = view.size
    assert (height, width) == (44, 96)  # at 96 px the longer side stops: 21 x 96 / 45 is 44.8
    assert view.image.shape == (64, 96, 3)
    assert not view.image[height:].any()
    assert np.any(view.image[:height] % 1)
    np.testing.assert_allclose(view.image[0, 0], image[0, 0], atol=1e-3)


def test_fixed_size_is_uint8_in_a_shape_that_the_factor_scales():
    (image,) = images((40, 80))
    view = fixed_size_view(image, 2.0, height=32, width=48)
    assert (view.image.dtype, view.image.shape) == (np.uint8, (64, 96, 3))
    np.testing.assert_array_equal(view.size, [48, 96])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_every_image_is_in_one_batch_of_its_shape_once(batch_size):
    sizes = [(32, 40), (40, 32), (32, 41), (32, 64), (64, 32), (33, 32), (32, 64)]
    given = {10 + index: image for index, image in enumerate(images(*sizes))}
    seen = []
    for batch in view_batches(iter(given.items()), SMALL, scales=(1.0, 2.0), batch_size=batch_size):
        (larger,) = batch["more_views"]
        assert len(batch["image"]) == len(larger["image"]) == batch_size
        assert np.all(batch["size"] <= batch["image"].shape[1:3])
        for row in np.flatnonzero(batch["is_valid"]):
            image = given[int(batch["image_id"][row])]
            np.testing.assert_array_equal(batch["image"][row], SMALL(image).image)
            np.testing.assert_array_equal(larger["image"][row], SMALL(image, 2.0).image)
            np.testing.assert_array_equal(larger["size"][row], SMALL(image, 2.0).size)
            np.testing.assert_array_equal(batch["original_size"][row], image.shape[:2])
            seen.append(int(batch["image_id"][row]))
    assert sorted(seen) == list(given)


def test_full_batches_do_not_wait_for_the_other_images():
    def endless():
        yield from enumerate(images((32, 40), (40, 32), (32, 40)))
        raise AssertionError("read past the images that fill the first batch")

    batch = next(view_batches(endless(), SMALL, batch_size=2))
    np.testing.assert_array_equal(batch["image_id"], [0, 2])

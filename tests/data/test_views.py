"""Views of images and their batches: sizes, padding, stretching, and that no image is lost or comes twice."""

import functools

import numpy as np
import pytest

from focaljax.data.views import View, fixed_size_view, shortest_edge_view, view_batches
from tests.small_detectors import images

SMALL = functools.partial(shortest_edge_view, min_size=32, max_size=64)


def test_stretching_fills_the_shape():
    (image,) = images((20, 50))
    view = shortest_edge_view(image, min_size=64, max_size=64, keeps_aspect_ratio=False)
    assert view.image.shape == (64, 64, 3)
    np.testing.assert_array_equal(view.size, [64, 64])
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


def test_largest_sides_hold_at_each_factor():
    (image,) = images((40, 80))
    view = fixed_size_view(image, 2.0, height=64, width=96, largest_sides=(20, 96))
    assert view.image.shape == (128, 192, 3)
    np.testing.assert_array_equal(view.size, [40, 80])
    np.testing.assert_array_equal(fixed_size_view(image, height=64, width=96, largest_sides=(40, 60)).size, [30, 60])


@pytest.mark.parametrize(
    ("height", "size"),
    [
        # 61 columns become 48: 37 x 48 / 61 = 29.11 rows, and 38 x 48 / 61 = 29.90.
        (37, (29, 48)),
        (38, (30, 48)),
    ],
)
def test_fixed_size_is_the_nearest_whole_one_and_content_ends_there(height, size):
    (image,) = images((height, 61))
    image = np.maximum(image, 1)
    view = fixed_size_view(image, height=32, width=48)
    np.testing.assert_array_equal(view.size, size)
    assert view.image[size[0] - 1, size[1] - 1].all()
    assert not view.image[size[0] :].any()


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


def test_few_images_wait_however_many_shapes_there_are():
    # 40 shapes in turn: without a bound 3 images of each would wait, 120 in all.
    B, shapes, num_images = 4, 40, 400
    given, most, seen = 0, 0, []

    def make_view(image, _):
        return View(image, np.array(image.shape[:2], np.int32))

    def stream():
        nonlocal given
        for given in range(1, num_images + 1):
            yield given, np.full((1, 1 + given % shapes, 3), given % 251, np.uint8)

    for batch in view_batches(stream(), make_view, batch_size=B):
        # Those of this batch waited too until now.
        most = max(most, given - len(seen))
        seen += batch["image_id"][batch["is_valid"]].tolist()
        for image_id, image in zip(batch["image_id"], batch["image"], strict=True):
            assert (image == image_id % 251).all()
            assert image.shape == (1, 1 + image_id % shapes, 3)
    assert most == 16 * B
    assert sorted(seen) == list(range(1, num_images + 1))


def test_where_many_wait_the_fullest_batch_leaves():
    # Of 16 x 4 images the 41st and the 64th alone share a shape.
    widths = [*range(1, 64), 41]
    given = ((index, np.zeros((1, width, 3), np.uint8)) for index, width in enumerate(widths, 1))
    view = lambda image, _: View(image, np.array(image.shape[:2], np.int32))  # noqa: E731
    first, *others = view_batches(given, view, batch_size=4)
    np.testing.assert_array_equal(first["image_id"], [41, 64, 64, 64])
    np.testing.assert_array_equal(first["is_valid"], [True, True, False, False])
    assert len(others) == 62


def test_full_batches_do_not_wait_for_the_other_images():
    def endless():
        yield from enumerate(images((32, 40), (40, 32), (32, 40)))
        raise AssertionError("read past the images that fill the first batch")

    batch = next(view_batches(endless(), SMALL, batch_size=2))
    np.testing.assert_array_equal(batch["image_id"], [0, 2])

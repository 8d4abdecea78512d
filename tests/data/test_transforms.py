import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.data.resize import restore_boxes
from focaljax.data.transforms import (
    Augmentation,
    augment,
    color_jitter,
    flip_horizontal,
    flip_vertical,
    random_scale_and_crop,
    resize_and_pad,
)

NO_BOXES = np.zeros((0, 4), np.float32)


@st.composite
def filled_boxes(draw):
    """An image with one filled box on black, large enough to be found again after a resize, and the box."""
    height, width = draw(st.integers(40, 160)), draw(st.integers(40, 160))
    x1, y1 = draw(st.integers(0, width - 20)), draw(st.integers(0, height - 20))
    x2, y2 = draw(st.integers(x1 + 20, width)), draw(st.integers(y1 + 20, height))
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    return image, np.array([[x1, y1, x2, y2]], np.float32)


def find_box(image):
    """The box of the pixels that are at least half bright."""
    rows, columns = np.nonzero(image[..., 0] >= 128)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def noise(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def fitted(image, boxes, **shape):
    """The image and its boxes, neither cropped nor changed otherwise."""
    return random_scale_and_crop(FixedDraws(), image, boxes, scale_range=(1.0, 1.0), **shape)


@settings(max_examples=60, deadline=None)
@given(filled_boxes(), st.integers(64, 200), st.integers(64, 200))
def test_resized_box_is_where_its_pixels_are(example, height, width):
    image, boxes = example
    view = fitted(image, boxes, height=height, width=width)
    assert view.image.shape == (height, width, 3)
    assert view.image.dtype == np.uint8
    assert view.boxes_xyxy.dtype == np.float32
    np.testing.assert_allclose(view.boxes_xyxy[0], find_box(view.image), atol=1.0)
    restored = restore_boxes(view.boxes_xyxy[0], tuple(view.size), image.shape[:2])
    np.testing.assert_allclose(restored, boxes[0], rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(filled_boxes(), st.booleans(), st.booleans())
def test_flipped_box_is_exactly_where_its_pixels_are(example, horizontal, vertical):
    image, boxes = example
    if horizontal:
        image, boxes = flip_horizontal(image, boxes)
    if vertical:
        image, boxes = flip_vertical(image, boxes)
    np.testing.assert_array_equal(boxes[0], find_box(image))


@settings(max_examples=150, deadline=None)
@given(filled_boxes(), st.integers(0, 2**32), st.integers(64, 160), st.integers(64, 160))
def test_augmented_box_is_where_its_visible_pixels_are(example, seed, height, width):
    image, boxes = example
    augmentation = Augmentation(horizontal_flip=0.5, vertical_flip=0.5, scale=(0.7, 2.5), min_visible=0.0)
    view = augment(
        np.random.default_rng(seed),
        image,
        boxes,
        np.zeros(1, bool),
        augmentation=augmentation,
        height=height,
        width=width,
    )
    is_seen = (view.image[..., 0] >= 128).any()
    if len(view.boxes_xyxy):
        # Pixels brighter than half lie within a pixel of the edges; a sliver of one pixel may stay below half.
        if is_seen:
            np.testing.assert_allclose(view.boxes_xyxy[0], find_box(view.image), atol=1.01)
        else:
            assert (view.boxes_xyxy[0, 2:] - view.boxes_xyxy[0, :2]).min() < 2
        assert (view.boxes_xyxy >= 0).all()
        assert (view.boxes_xyxy[0, 2:] <= view.size[::-1]).all()
    elif is_seen:
        x1, y1, x2, y2 = find_box(view.image)
        assert min(x2 - x1, y2 - y1) <= 2


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
def test_flip_twice_is_identity(flip):
    image, boxes = noise(), np.array([[1.0, 2, 30, 40], [0, 0, 64, 48]], np.float32)
    twice_image, twice_boxes = flip(*flip(image, boxes))
    np.testing.assert_array_equal(twice_image, image)
    np.testing.assert_array_equal(twice_boxes, boxes)


def test_image_that_fits_is_copied_and_padded_with_zeros():
    image = noise(48, 64)
    padded, size = resize_and_pad(image, height=64, width=64)
    np.testing.assert_array_equal(padded[:48], image)
    assert not padded[48:].any()
    assert size == (48, 64)
    assert fitted(image, np.array([[1.5, 2, 3, 4]]), height=64, width=64).boxes_xyxy.tolist() == [[1.5, 2, 3, 4]]


def test_boxes_are_scaled_on_each_axis_by_what_its_rounding_leaves():
    # 30x101 into 50x50: factor 50/101, so 30 * 50/101 = 14.85 -> 15 rows and 50 columns.
    image = np.full((30, 101, 3), 255, np.uint8)
    padded, size = resize_and_pad(image, height=50, width=50)
    assert size == (15, 50)
    assert fitted(image, np.array([[0, 0, 101, 30]]), height=50, width=50).boxes_xyxy.tolist() == [[0, 0, 50, 15]]
    assert padded[:15].min() == 255
    assert padded[15:].max() == 0


def test_long_thin_image_keeps_at_least_one_pixel():
    padded, size = resize_and_pad(np.full((2, 1000, 3), 9, np.uint8), height=32, width=32)
    assert (padded[0] == 9).all()
    assert not padded[1:].any()
    assert size == (1, 32)


def test_strong_shrinking_averages_the_pixels():
    # One white column in every 8: bilinear sampling at a quarter would miss or hit it, the mean over 8 is 32.
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, ::8] = 255
    padded, _ = resize_and_pad(image, height=32, width=32)
    assert set(np.unique(padded)) <= {31, 32}


def test_result_is_written_into_out():
    out = np.zeros((2, 40, 64, 3), np.uint8)
    padded, _ = resize_and_pad(noise(), height=40, width=64, out=out[1])
    assert np.shares_memory(padded, out)
    np.testing.assert_array_equal(out[1], resize_and_pad(noise(), height=40, width=64)[0])
    assert not out[0].any()


@pytest.mark.parametrize("transform", ["flip_h", "flip_v", "crop", "augment"])
def test_image_without_boxes_keeps_shape_and_dtype_of_boxes(transform):
    rng, image, shape = np.random.default_rng(0), noise(), {"height": 32, "width": 40}
    boxes = {
        "flip_h": lambda: flip_horizontal(image, NO_BOXES)[1],
        "flip_v": lambda: flip_vertical(image, NO_BOXES)[1],
        "crop": lambda: random_scale_and_crop(rng, image, NO_BOXES, **shape, scale_range=(2, 2)).boxes_xyxy,
        "augment": lambda: (
            augment(rng, image, NO_BOXES, np.zeros(0, bool), augmentation=Augmentation(), **shape).boxes_xyxy
        ),
    }[transform]()
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.float32


class FixedDraws:
    """Stands in for a generator: a uniform draw of 0 means the smallest scale and the top-left crop."""

    def random(self, count):
        return np.zeros(count)


def crop_top_left(boxes, is_crowd=None, **arguments):
    # 100x100 at scale 2 into 100x100: the crop is the top-left 50x50 of the source, and every pixel becomes 2x2.
    return random_scale_and_crop(
        FixedDraws(),
        noise(100, 100),
        np.array(boxes, np.float32).reshape(-1, 4),
        is_crowd,
        height=100,
        width=100,
        scale_range=(2.0, 2.0),
        **arguments,
    )


def test_crop_clips_boxes_to_the_content():
    crop = crop_top_left([[40, 30, 60, 50], [0, 0, 100, 100]], min_visible=0.25)
    # The first keeps 10 of 20 columns; the second keeps 2500 of 10000 pixels, exactly the limit.
    assert crop.boxes_xyxy.tolist() == [[80, 60, 100, 100], [0, 0, 100, 100]]
    assert crop.is_kept.tolist() == [True, True]
    assert crop.size.tolist() == [100, 100]


def test_mostly_hidden_and_outside_boxes_are_dropped_but_crowds_stay():
    # Visible shares: 4/20, outside, 4/20 of a crowd, a crowd outside, all.
    boxes = [[46, 0, 66, 10], [60, 60, 80, 80], [46, 20, 66, 30], [60, 0, 80, 20], [0, 0, 10, 10]]
    crop = crop_top_left(boxes, np.array([False, False, True, True, False]), min_visible=0.25)
    assert crop.is_kept.tolist() == [False, False, True, False, True]
    assert crop.boxes_xyxy.tolist() == [[92, 40, 100, 60], [0, 0, 20, 20]]


def test_box_thinner_than_a_pixel_is_dropped():
    crop = random_scale_and_crop(
        FixedDraws(),
        noise(100, 100),
        np.array([[0, 0, 3, 50], [0, 0, 4, 50]], np.float32),
        height=25,
        width=25,
        scale_range=(1.0, 1.0),
    )
    assert crop.is_kept.tolist() == [False, True]


def test_one_pixel_box_survives_when_nothing_is_scaled():
    box = np.array([[599.9, 0.1, 600.9, 1.1]], np.float32)
    view = random_scale_and_crop(FixedDraws(), noise(8, 640), box, height=8, width=640, scale_range=(1.0, 1.0))
    assert view.is_kept.tolist() == [True]


@pytest.mark.parametrize("shape", [(48, 64), (100, 30), (333, 500)])
def test_scale_one_equals_resize_and_pad(shape):
    image, boxes = noise(*shape), np.array([[1, 2, 20, 30]], np.float32)
    crop = random_scale_and_crop(np.random.default_rng(1), image, boxes, height=96, width=80, scale_range=(1.0, 1.0))
    padded, size = resize_and_pad(image, height=96, width=80)
    np.testing.assert_array_equal(crop.image, padded)
    assert tuple(crop.size) == size
    scale_y, scale_x = np.array(size) / shape
    expected = np.clip(boxes * [scale_x, scale_y, scale_x, scale_y], 0, [*size[::-1], *size[::-1]])
    np.testing.assert_allclose(crop.boxes_xyxy, expected, rtol=1e-6)


def test_crops_reach_every_corner_of_the_image():
    offsets = set()
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = np.arange(16).reshape(4, 4)
    for seed in range(200):
        crop = random_scale_and_crop(
            np.random.default_rng(seed), image, NO_BOXES, height=2, width=2, scale_range=(2.0, 2.0)
        )
        offsets.add(int(crop.image[0, 0, 0]))
    assert offsets == {0, 1, 2, 4, 5, 6, 8, 9, 10}


def test_same_generator_state_gives_same_result_and_arguments_are_left_alone():
    image, boxes, is_crowd = noise(), np.array([[5, 5, 40, 40]], np.float32), np.zeros(1, bool)
    before = image.copy(), boxes.copy()
    augmentation = Augmentation(0.5, 0.5, (0.5, 2.0), 0.1, 0.4, 0.4, 0.4, 0.1)
    views = [
        augment(np.random.default_rng(seed), image, boxes, is_crowd, augmentation=augmentation, height=50, width=60)
        for seed in (3, 3, 4)
    ]
    for field in dataclasses.fields(views[0]):
        np.testing.assert_array_equal(getattr(views[0], field.name), getattr(views[1], field.name))
    assert (views[0].image != views[2].image).any()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(boxes, before[1])


def test_jitter_in_the_pipeline_leaves_padding_black():
    view = augment(
        np.random.default_rng(0),
        noise(20, 40),
        NO_BOXES,
        np.zeros(0, bool),
        augmentation=Augmentation(contrast=1.0, brightness=1.0),
        height=40,
        width=40,
    )
    assert view.size.tolist() == [20, 40]
    assert not view.image[20:].any()


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
    image = noise()
    np.testing.assert_array_equal(color_jitter(np.random.default_rng(0), image), image)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("horizontal_flip", 1.5),
        ("vertical_flip", -0.1),
        ("horizontal_flip", float("nan")),
        ("horizontal_flip", "0.5"),
        ("horizontal_flip", True),
        ("min_visible", 2),
        ("brightness", 1.1),
        ("contrast", -1),
        ("saturation", None),
        ("hue", 0.6),
        ("scale", 1.0),
        ("scale", (0.0, 1.0)),
        ("scale", (2.0, 1.0)),
        ("scale", (1.0, float("inf"))),
        ("scale", (1.0, 1.0, 1.0)),
        ("scale", ("1", "2")),
    ],
)
def test_augmentation_out_of_range_names_the_field(name, value):
    with pytest.raises(ValueError, match=f"augmentation: {name}"):
        Augmentation(**{name: value})


def test_augmentation_takes_a_list_as_scale():
    assert Augmentation(scale=[0.5, 2]).scale == (0.5, 2.0)


@pytest.mark.parametrize(
    ("image", "boxes", "message"),
    [
        (np.zeros((4, 4), np.uint8), NO_BOXES, r"image must be .* got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), NO_BOXES, "image must be .* got float32"),
        (np.zeros((0, 4, 3), np.uint8), NO_BOXES, "non-empty"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros(0), "boxes_xyxy must have shape"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((2, 5)), "boxes_xyxy must have shape"),
    ],
)
def test_wrong_arrays_are_refused(image, boxes, message):
    with pytest.raises(ValueError, match=message):
        fitted(image, boxes, height=8, width=8)
    if boxes is NO_BOXES:
        with pytest.raises(ValueError, match=message):
            resize_and_pad(image, height=8, width=8)


def test_wrong_out_and_is_crowd_are_refused():
    with pytest.raises(ValueError, match="out must be"):
        resize_and_pad(noise(), height=8, width=8, out=np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="is_crowd must have shape"):
        crop_top_left([[0, 0, 5, 5], [0, 0, 6, 6]], np.zeros(1, bool))

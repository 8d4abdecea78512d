import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.data.augmentation import Augmentation
from focaljax.data.resize import restore_boxes
from focaljax.data.transforms import augment, random_scale_and_crop, resize_and_pad

NO_BOXES = np.zeros((0, 4), np.float32)


class FixedDraws:
    """Stands in for a generator: a uniform draw of 0 means the smallest scale and the top-left crop."""

    def random(self, count):
        return np.zeros(count)


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


def flipped_only(image, boxes, flips):
    """The image and its boxes mirrored, in their own size."""
    height, width = image.shape[:2]
    return fitted(image, boxes, height=height, width=width, flips=flips)


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
    flipped = flipped_only(image, boxes, (horizontal, vertical))
    np.testing.assert_array_equal(flipped.boxes_xyxy[0], find_box(flipped.image))


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


@pytest.mark.parametrize(("flips", "axes"), [((True, False), 1), ((False, True), 0), ((True, True), (0, 1))])
def test_flip_mirrors_pixels_and_boxes_and_twice_is_identity(flips, axes):
    image, boxes = noise(), np.array([[1.0, 2, 30, 40], [0, 0, 64, 48]], np.float32)
    once = flipped_only(image, boxes, flips)
    np.testing.assert_array_equal(once.image, np.flip(image, axes))
    # 64 x 48 pixels: columns 1..30 become 34..63, rows 2..40 become 8..46.
    x, y = ([34, 63] if flips[0] else [1, 30]), ([8, 46] if flips[1] else [2, 40])
    assert once.boxes_xyxy.tolist() == [[x[0], y[0], x[1], y[1]], [0, 0, 64, 48]]
    twice = flipped_only(once.image, once.boxes_xyxy, flips)
    np.testing.assert_array_equal(twice.image, image)
    np.testing.assert_array_equal(twice.boxes_xyxy, boxes)


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_crop_of_a_flipped_image_is_that_of_the_image_flipped_before(flips):
    image, boxes = noise(60, 80), np.array([[3, 4, 30, 50], [40, 10, 79, 59]], np.float32)
    before = flipped_only(image, boxes, flips)
    arguments = {"height": 60, "width": 80, "scale_range": (2.0, 2.0), "min_visible": 0.0}
    for seed in range(20):
        crop = random_scale_and_crop(np.random.default_rng(seed), image, boxes, flips=flips, **arguments)
        expected = random_scale_and_crop(np.random.default_rng(seed), before.image, before.boxes_xyxy, **arguments)
        # The weights of an interpolation are rounded from the left: a mirrored one may differ by a grey level.
        np.testing.assert_allclose(crop.image.astype(int), expected.image, atol=1)
        np.testing.assert_array_equal(crop.boxes_xyxy, expected.boxes_xyxy)


@settings(max_examples=60, deadline=None)
@given(filled_boxes(), st.integers(0, 2**32), st.integers(30, 300), st.integers(30, 300))
def test_image_that_was_fitted_before_gives_the_same_to_the_bit(example, seed, height, width):
    image, boxes = example
    image = np.maximum(image, noise(*image.shape[:2]))
    shape = {"height": height, "width": width}
    padded, size = resize_and_pad(image, **shape)
    arguments = {"augmentation": Augmentation(vertical_flip=0.5), **shape}
    whole = augment(np.random.default_rng(seed), image, boxes, np.zeros(1, bool), **arguments)
    content, fitted_from = padded[: size[0], : size[1]], image.shape[:2]
    fitted = augment(
        np.random.default_rng(seed), content, boxes, np.zeros(1, bool), fitted_from=fitted_from, **arguments
    )
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(fitted, field.name), getattr(whole, field.name))
    again, size_again = resize_and_pad(np.ascontiguousarray(content), **shape)
    np.testing.assert_array_equal(again, padded)
    assert size_again == size


def test_fitted_image_of_another_size_or_scale_is_refused():
    arguments = {"height": 32, "width": 32, "fitted_from": (48, 64)}
    for image, scale in ((noise(24, 33), (1.0, 1.0)), (noise(24, 32), (0.5, 2.0))):
        with pytest.raises(ValueError, match=r"fitted_from \(48, 64\) needs an image of"):
            random_scale_and_crop(FixedDraws(), image, NO_BOXES, scale_range=scale, **arguments)


@pytest.mark.parametrize(
    ("settings", "flips_only"),
    [
        ({}, True),
        ({"vertical_flip": 1.0, "min_visible": 0.5}, True),
        ({"scale": (1, 1)}, True),
        ({"scale": (1.0, 1.1)}, False),
        ({"brightness": 0.1}, False),
        ({"contrast": 0.1}, False),
        ({"saturation": 0.1}, False),
        ({"hue": 0.1}, False),
    ],
)
def test_augmentation_knows_whether_it_only_flips(settings, flips_only):
    assert Augmentation(**settings).flips_only is flips_only


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


@pytest.mark.parametrize("transform", ["flip", "crop", "augment"])
def test_image_without_boxes_keeps_shape_and_dtype_of_boxes(transform):
    rng, image, shape = np.random.default_rng(0), noise(), {"height": 32, "width": 40}
    boxes = {
        "flip": lambda: flipped_only(image, NO_BOXES, (True, True)).boxes_xyxy,
        "crop": lambda: random_scale_and_crop(rng, image, NO_BOXES, **shape, scale_range=(2, 2)).boxes_xyxy,
        "augment": lambda: (
            augment(rng, image, NO_BOXES, np.zeros(0, bool), augmentation=Augmentation(), **shape).boxes_xyxy
        ),
    }[transform]()
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.float32


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

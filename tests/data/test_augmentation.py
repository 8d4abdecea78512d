"""Settings of augmentation, and what each of them does to images and boxes of one image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.data.augmentation import Augmentation
from focaljax.data.transforms import FILL, augment, fitted_size, resize_and_pad
from tests.data.painted import apart, assert_boxes_are_where_their_pixels_are, find, painted
from tests.data.test_pipeline import LIVELY, train

SHORT_SIDES = (32, 40, 48)
ONE_IMAGE = {
    "multi-scale": {"short_sides": SHORT_SIDES, "longest_side": 80},
    "large-scale jitter": {"scale": (0.1, 2.0), "min_visible": 0.0},
    "zoom-out": {"ssd_expand": 1.0},
    "SSD's crop": {"ssd_crop": 1.0, "min_visible": 0.0},
    "all of SSD": {"ssd_expand": 0.5, "ssd_crop": 1.0, "scale": (0.7, 1.5), "vertical_flip": 0.5, "min_visible": 0.0},
}


def view_of(example, seed, *, height=96, width=120, **values):
    rng = np.random.default_rng(seed)
    boxes, is_crowd = example.boxes_xyxy, example.is_crowd
    return augment(rng, example.image, boxes, is_crowd, augmentation=Augmentation(**values), height=height, width=width)


@pytest.mark.parametrize("values", ONE_IMAGE.values(), ids=ONE_IMAGE)
@settings(max_examples=60)
@given(apart(), st.integers(0, 2**32))
def test_boxes_are_where_their_pixels_are(values, example, seed):
    view = view_of(example, seed, **values)
    assert view.boxes_xyxy.shape == (view.is_kept.sum(), 4)
    assert_boxes_are_where_their_pixels_are(view, example.labels[view.is_kept], view.size)
    # No object is lost that can be seen; SSD's crop drops those of which it does not hold the centre.
    for label in set(example.labels[~view.is_kept].tolist()) if "ssd_crop" not in values else ():
        seen = find(view.image, label)
        assert seen is None or (seen[2:] - seen[:2]).min() < 3


@given(apart(), st.integers(0, 2**32))
@settings(max_examples=30)
def test_small_scale_keeps_no_box_below_a_pixel_and_loses_none_above_two(example, seed):
    view = view_of(example, seed, scale=(0.02, 0.1), height=64, width=64)
    factor = view.size[0] / example.image.shape[0]
    sides = (example.boxes_xyxy[:, 2:] - example.boxes_xyxy[:, :2]).min(axis=1) * factor
    assert view.is_kept[sides > 2].all()
    assert (view.boxes_xyxy[:, 2:] - view.boxes_xyxy[:, :2] >= 0.99).all()


def test_short_side_is_one_of_those_given_unless_the_longest_side_or_the_output_forbids():
    def sizes(size, **more):
        image = painted(size, [])
        views = [view_of(image, seed, short_sides=SHORT_SIDES, **more) for seed in range(40)]
        return {tuple(view.size.tolist()) for view in views}

    # 2:1 images become (s, 2 s), where 2 s is 80 at most, in either direction.
    assert sizes((100, 200), longest_side=80) == {(32, 64), (40, 80)}
    assert sizes((200, 100), longest_side=80) == {(64, 32), (80, 40)}
    # The output is 96 x 120: the longer side of 96 stays, of a portrait too.
    assert sizes((100, 200)) == {(32, 64), (40, 80), (48, 96)}
    assert sizes((300, 100), height=60, width=120) == {(60, 20)}


@given(st.integers(1, 200), st.integers(1, 200))
def test_evaluation_shows_an_image_as_large_as_training_at_most(height, width):
    augmentation = Augmentation(short_sides=SHORT_SIDES, longest_side=80)
    image = np.full((height, width, 3), 9, np.uint8)
    shape = {"height": 60, "width": 96}
    largest = max(
        (
            view_of(painted((height, width), []), seed, **shape, short_sides=SHORT_SIDES, longest_side=80).size
            for seed in range(12)
        ),
        key=lambda size: size.prod(),
    )
    padded, size = resize_and_pad(image, **shape, largest_sides=augmentation.largest_sides)
    np.testing.assert_array_equal(size, largest)
    assert fitted_size((height, width), **shape, largest_sides=augmentation.largest_sides) == size
    assert (padded[: size[0], : size[1]] == 9).all()
    assert padded.sum() == 27 * size[0] * size[1]


def test_without_multi_scale_the_shape_alone_bounds_an_image():
    assert Augmentation().largest_sides is None
    assert fitted_size((50, 100), height=64, width=64) == (32, 64)


def test_zoomed_out_image_is_smaller_and_surrounded_by_the_mean_colour():
    example = painted((60, 80), [[0, 0, 80, 60]], labels=[0])
    shares = []
    for seed in range(40):
        view = view_of(example, seed, ssd_expand=1.0, ssd_expand_max=3.0, horizontal_flip=0.0)
        height = view.size[0]
        assert abs(height - 90) <= 1  # 60 x 80 just fits; both sides of the window are whole pixels
        assert view.size[1] == 120
        x1, y1, x2, y2 = find(view.image, 0)
        shares.append((x2 - x1) * (y2 - y1) / (90 * 120))
        outside = np.ones((height, 120), bool)
        outside[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        assert (view.image[:height, :120][outside] == FILL).all()
        assert not view.image[height:].any()
    assert min(shares) < 0.2
    assert max(shares) > 0.6
    assert min(shares) >= 1 / 9 - 0.01


@given(st.integers(20, 160), st.integers(20, 160), st.integers(0, 2**32))
@settings(max_examples=100)
def test_a_box_around_a_zoomed_out_image_ends_where_its_pixels_end(height, width, seed):
    example = painted((height, width), [[0, 0, width, height]])
    view = view_of(example, seed, ssd_expand=1.0, horizontal_flip=0.5, vertical_flip=0.5, min_visible=0.0)
    if len(view.boxes_xyxy):
        np.testing.assert_allclose(view.boxes_xyxy[0], find(view.image, 0), atol=1e-4)


def test_objects_with_their_centre_outside_an_ssd_crop_are_dropped_and_crowds_stay():
    # Four boxes and four crowds in the same places.
    corners = [[0, 0, 40, 40], [60, 0, 100, 40], [0, 60, 40, 100], [60, 60, 100, 100]]
    example = painted((100, 100), corners * 2, labels=[0] * 8, is_crowd=[False] * 4 + [True] * 4)
    views = [view_of(example, seed, ssd_crop=1.0, min_visible=0.0) for seed in range(60)]
    kept = np.array([view.is_kept for view in views])
    assert kept[:, :4].any(axis=1).all()
    assert (kept[:, 4:] >= kept[:, :4]).all()
    assert (kept[:, 4:] & ~kept[:, :4]).any()


@pytest.mark.parametrize("values", ONE_IMAGE.values(), ids=ONE_IMAGE)
def test_a_step_that_is_switched_on_leaves_the_draws_of_flips_and_colours_alone(values):
    example = painted((60, 80), [[0, 0, 30, 60], [40, 0, 80, 60]])
    seen = set()
    for seed in range(24):
        flipped = []
        for more in ({}, values):
            view = view_of(example, seed, brightness=0.5, **more)
            boxes = dict(zip(example.labels[view.is_kept].tolist(), view.boxes_xyxy[:, 0]))
            if len(boxes) == 2:  # a crop may have left one of them
                flipped.append(boxes[0] > boxes[1])
        assert len(set(flipped)) <= 1
        seen |= set(flipped[1:])
    assert seen == {False, True}


def test_batches_of_the_settings_that_there_were_first_have_not_moved():
    # Made before there were others; boxes and order follow from the draws alone, means of pixels from OpenCV too.
    (flips,), (lively,) = (
        train(steps=1, batch_size=3, augmentation=augmentation, seed=7) for augmentation in (Augmentation(), LIVELY)
    )
    assert flips["image_id"].tolist() == lively["image_id"].tolist() == [107, 109, 100]
    assert flips["size"].tolist() == [[22, 32], [21, 32], [21, 32]]
    assert lively["size"].tolist() == [[24, 32], [11, 17], [24, 32]]
    boxes = [[21.333, 3.15, 29.867, 12.6], [11.333, 1.65, 15.867, 6.6]]
    np.testing.assert_allclose([batch["boxes"][1, 0] for batch in (flips, lively)], boxes, atol=1e-3)
    means = [[116.924, 111.846, 110.186], [152.543, 34.5, 113.349]]
    np.testing.assert_allclose([batch["image"].mean(axis=(1, 2, 3)) for batch in (flips, lively)], means, atol=0.1)


@pytest.mark.parametrize(
    ("values", "flips_only", "images"),
    [
        ({}, True, 1),
        ({"mixup": 0.1}, True, 2),
        ({"short_sides": (3,)}, False, 1),
        ({"ssd_expand": 0.1}, False, 1),
        ({"ssd_crop": 0.1}, False, 1),
        ({"mosaic": 0.1}, False, 4),
        ({"mosaic": 0.1, "mixup": 0.1}, False, 8),
    ],
)
def test_what_is_needed_of_a_source(values, flips_only, images):
    augmentation = Augmentation(**values)
    assert (augmentation.flips_only, augmentation.images_in_view) == (flips_only, images)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ssd_crop": 2}, "ssd_crop must be a number in 0..1, got 2"),
        ({"ssd_expand": -0.5}, "ssd_expand must be"),
        ({"mosaic": "all"}, "mosaic must be"),
        ({"mixup": float("nan")}, "mixup must be"),
        ({"ssd_expand_max": 0.5}, r"ssd_expand_max must be a number in 1..100, got 0.5"),
        ({"mixup_alpha": 0}, "mixup_alpha must be a number above 0"),
        ({"mixup_alpha": float("inf")}, "mixup_alpha must be"),
        ({"mosaic_scale": (1.0, 0.5)}, "mosaic_scale must be two numbers"),
        ({"short_sides": (800, 640)}, "short_sides must be rising pixels"),
        ({"short_sides": 800}, "short_sides must be rising pixels"),
        ({"short_sides": (0.5, 1.0)}, "short_sides must be rising pixels"),
        ({"short_sides": (800,), "longest_side": 700}, "longest_side must be pixels, at least short_sides, got 700"),
        ({"short_sides": (800,), "scale": (0.5, 1.0)}, "both choose the size of an image"),
    ],
)
def test_setting_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=f"augmentation: .*{message}" if "both" in message else message):
        Augmentation(**values)

"""Mosaics and mixup: boxes follow their pixels, draws are a function of the generator, batches hold all boxes."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.data.augmentation import Augmentation
from focaljax.data.cache import CachedSource
from focaljax.data.mixing import TrainingView, blend, mosaic, training_view
from focaljax.data.transforms import FILL
from tests.data import test_cache
from tests.data.painted import apart, assert_boxes_are_where_their_pixels_are, find, painted
from tests.data.test_pipeline import FakeSource, assert_equal, train

SHAPE = {"height": 96, "width": 128}
MIXED = Augmentation(mosaic=0.5, mixup=0.5, vertical_flip=0.5, ssd_crop=0.3, brightness=0.2)


def never(rng):
    raise AssertionError("no other image is needed")


@settings(max_examples=60)
@given(st.tuples(*(apart() for _ in range(4))), st.integers(0, 2**32), st.sampled_from([(0.5, 1.0), (0.3, 2.0)]))
def test_boxes_of_a_mosaic_are_where_their_pixels_are(examples, seed, scale):
    augmentation = Augmentation(vertical_flip=0.5, mosaic_scale=scale, min_visible=0.0)
    # One image at a time has boxes to be found: colours are few.
    for seen in range(4):
        parts = [one if index == seen else painted(one.size, [], background=90) for index, one in enumerate(examples)]
        view = mosaic(np.random.default_rng(seed), parts, augmentation=augmentation, **SHAPE)
        assert view.size.tolist() == [96, 128]
        assert view.images == 4
        assert len(view.boxes_xyxy) == len(view.labels) == len(view.is_crowd) <= 2
        assert_boxes_are_where_their_pixels_are(view, view.labels, view.size)
        for lost in {0, 1} - set(view.labels.tolist()):
            pixels = find(view.image, lost)
            assert pixels is None or (pixels[2:] - pixels[:2]).min() < 3


def test_mosaic_has_all_four_images_around_a_point_and_fills_the_rest():
    # Each is one box of a colour of its own; at half size all fit into the smallest quarter or are cut at the edges.
    examples = [painted((96, 128), [[0, 0, 128, 96]], labels=[label]) for label in range(4)]
    points = set()
    for seed in range(20):
        augmentation = Augmentation(mosaic_scale=(0.5, 0.5), min_visible=0.0)
        view = mosaic(np.random.default_rng(seed), examples, augmentation=augmentation, **SHAPE)
        assert view.labels.tolist() == [0, 1, 2, 3]
        (_, _, x, y), _, _, (x4, y4, _, _) = view.boxes_xyxy.tolist()
        assert (x, y) == (x4, y4)
        assert 32 <= x <= 96
        assert 24 <= y <= 72
        points.add((x, y))
        covered = np.zeros((96, 128), bool)
        for x1, y1, x2, y2 in view.boxes_xyxy.astype(int):
            covered[y1:y2, x1:x2] = True
        assert (view.image[~covered] == FILL).all()
        # In the quarter of an image is its own colour.
        assert (view.image[int(y) - 1, int(x) - 1] == [255, 0, 0]).all()
        assert (view.image[int(y), int(x)] == [255, 255, 0]).all()
    assert len(points) == 20


def test_too_small_a_mosaic_is_refused():
    with pytest.raises(ValueError, match="at least 2 pixels, got 1 and 8"):
        mosaic(np.random.default_rng(0), [painted((8, 8), [])] * 4, augmentation=Augmentation(), height=1, width=8)


@settings(max_examples=40)
@given(apart(), apart(), st.integers(0, 2**32))
def test_mixup_has_the_boxes_of_both_where_their_pixels_are(first, second, seed):
    # The first image is black, so that what is seen is the second at about half its brightness.
    first = dataclasses.replace(first, image=np.zeros_like(first.image))
    augmentation = Augmentation(mixup=1.0)
    view = training_view(np.random.default_rng(seed), first, lambda rng: second, augmentation=augmentation, **SHAPE)
    alone = training_view(np.random.default_rng(seed), first, never, augmentation=Augmentation(), **SHAPE)
    assert view.images == 2
    assert view.labels.tolist() == [*first.labels, *second.labels]
    np.testing.assert_array_equal(view.boxes_xyxy[: len(first.labels)], alone.boxes_xyxy)
    brighter = np.minimum(view.image.astype(int) * 2, 255)
    of_second = dataclasses.replace(view, boxes_xyxy=view.boxes_xyxy[len(first.labels) :])
    assert_boxes_are_where_their_pixels_are(of_second, second.labels, view.size, image=brighter)


def test_blend_weighs_pixels_and_keeps_the_larger_content():
    def view(value, size):
        image = np.zeros((4, 6, 3), np.uint8)
        image[: size[0], : size[1]] = value
        return TrainingView(image, np.ones((1, 4), np.float32), np.array([value]), np.zeros(1, bool), np.array(size))

    mixed = blend(view(100, (4, 3)), view(200, (2, 6)), 0.75)
    # 0.75 * 100 + 0.25 * 200 where both are, else the one and black.
    assert mixed.image[:, :, 0].tolist() == [[125] * 3 + [50] * 3] * 2 + [[75] * 3 + [0] * 3] * 2
    assert mixed.size.tolist() == [4, 6]
    assert mixed.labels.tolist() == [100, 200]


def test_image_that_is_not_mixed_is_the_same_as_without_the_settings():
    plain = train(steps=6, augmentation=Augmentation(scale=(0.5, 2.0), hue=0.1), seed=2)
    mixed = train(steps=6, augmentation=Augmentation(scale=(0.5, 2.0), hue=0.1, mosaic=0.4, mixup=0.3), seed=2)
    same = [
        (one == other).all()
        for batch, others in zip(plain, mixed)
        for one, other in zip(batch["image"], others["image"])
    ]
    # (1 - 0.4) (1 - 0.3) = 0.42 of 24 are neither.
    assert 5 <= sum(same) <= 16
    for batch, others in zip(plain, mixed):
        np.testing.assert_array_equal(batch["image_id"], others["image_id"])


def test_all_images_of_the_source_come_into_mosaics():
    source = FakeSource(6)
    drawn = []
    augmentation = Augmentation(mosaic=1.0)

    def draw(rng):
        drawn.append(int(rng.integers(len(source))))
        return source[drawn[-1]]

    for seed in range(30):
        training_view(np.random.default_rng(seed), source[0], draw, augmentation=augmentation, height=24, width=32)
    assert len(drawn) == 90
    assert set(drawn) == set(range(6))


@pytest.mark.parametrize("start_step", [1, 4])
def test_resumed_run_and_other_threads_see_the_same_mixed_batches(start_step):
    whole = train(steps=6, augmentation=MIXED, max_boxes=24)
    assert_equal(
        train(steps=6 - start_step, start_step=start_step, augmentation=MIXED, max_boxes=24), whole[start_step:]
    )
    assert_equal(train(steps=6, augmentation=MIXED, max_boxes=24, num_threads=3), whole)
    hosts = [train(steps=6, augmentation=MIXED, max_boxes=24, shard=(index, 2)) for index in range(2)]
    joined = [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in zip(*hosts)]
    assert_equal(joined, whole)


def test_unreadable_image_of_a_mosaic_is_replaced_and_reported():
    source = FakeSource(4, unreadable=(2,))
    train(source, steps=6, augmentation=Augmentation(mosaic=1.0), max_boxes=12)
    assert [finding.file_name for finding in source.report.findings] == ["2.jpg (image 102): truncated"]


def test_rows_for_all_boxes_of_a_mosaic_hold_them_and_fewer_keep_the_largest_said_once():
    augmentation = Augmentation(mosaic=1.0, mosaic_scale=(0.5, 0.5), min_visible=0.0)
    images = 4 * FakeSource.max_boxes
    source = FakeSource(10)
    whole = train(source, steps=8, augmentation=augmentation, max_boxes=images)
    assert not source.report.findings
    assert max(batch["is_box"].sum(axis=1).max() for batch in whole) > FakeSource.max_boxes
    fewer = train(source, steps=8, augmentation=augmentation, max_boxes=3)
    (finding,) = source.report.findings
    assert finding.kind == "more than 3 boxes in a mosaic or mixup: the 3 largest kept, crowd regions last"
    for batch, others in zip(whole, fewer):
        for row, counts in enumerate(batch["is_box"].sum(axis=1)):
            assert others["is_box"][row].sum() == min(3, counts)


@pytest.mark.parametrize("values", [{"mixup": 0.5}, {"mosaic": 0.5}, {"ssd_crop": 1.0}, {"short_sides": (20, 30)}])
def test_kept_images_give_the_same_batches(values, tmp_path):
    source = test_cache.annotated_images(tmp_path / "images")
    cached = CachedSource(source, tmp_path / "cache", "train")
    augmentation = Augmentation(**values)
    assert_equal(test_cache.training(cached, augmentation), test_cache.training(source, augmentation))
    kept = "train_40x48.images" if "mixup" in values else "train_decoded.images"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [kept]


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_labels_and_crowds_stay_with_their_boxes(seed):
    # The label is the box's number, and its colour; the fourth is a crowd region.
    corners = [[0, 0, 40, 40], [60, 0, 100, 40], [0, 60, 40, 100], [60, 60, 100, 100]]
    example = painted((100, 100), corners, is_crowd=[False, False, False, True])
    empty = painted((100, 100), [], background=90)
    others = itertools.repeat(empty)
    augmentation = Augmentation(mosaic=0.5, vertical_flip=0.5, ssd_expand=0.3, ssd_crop=0.5, min_visible=0.1)
    rng = np.random.default_rng(seed)
    view = training_view(rng, example, lambda _: next(others), augmentation=augmentation, **SHAPE)
    assert (view.is_crowd == (view.labels == 3)).all()
    assert_boxes_are_where_their_pixels_are(view, view.labels, view.size)


def test_a_mosaic_leaves_the_draws_of_mixup_alone():
    examples = [painted((40, 60), [], background=value, image_id=value) for value in (40, 90, 140)]

    def is_mixed(seed, **values):
        drawn = []

        def draw(rng):
            drawn.append(int(rng.integers(3)))
            return examples[drawn[-1]]

        rng = np.random.Generator(np.random.Philox(seed))
        view = training_view(rng, examples[0], draw, augmentation=Augmentation(mixup=0.5, **values), **SHAPE)
        return view.images in (2, 5, 8)

    alone = [is_mixed(seed) for seed in range(40)]
    assert [is_mixed(seed, mosaic=0.5) for seed in range(40)] == alone
    assert 10 < sum(alone) < 30

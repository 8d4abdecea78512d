"""Statistics of a split from its annotations, beside what reading the images and plain loops give."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.data.coco import CocoSource
from focaljax.data.statistics import (
    SplitBoxes,
    count_boxes,
    duplicate_boxes,
    images_without,
    mean_and_quantiles,
    read_split_boxes,
    resized,
    some_images,
)
from focaljax.data.transforms import random_scale_and_crop
from tests.data.coco_folders import noise, write_coco


@pytest.fixture
def source(tmp_path):
    boxes = [
        (0, 0, (1, 2, 30, 20)),
        (0, 1, (5, 5, 0, 8)),  # no area
        (2, 1, (10, 4, 100, 8)),  # reaches out
        (2, 1, (0, 0, 20, 20), True),
        (2, 0, (3, 3, 9, 9)),
    ]
    write_coco(tmp_path, [noise(0), noise(1, 30, 20), noise(2)], boxes)
    return CocoSource(tmp_path / "images", tmp_path / "annotations.json")


def split_of(boxes, labels, image_index, sizes, is_crowd=None, names=("cat", "dog")):
    count = len(sizes)
    return SplitBoxes(
        boxes_xyxy=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=np.asarray(labels, np.int32),
        is_crowd=np.zeros(len(labels), bool) if is_crowd is None else np.asarray(is_crowd, bool),
        image_index=np.asarray(image_index, np.int64),
        sizes=np.asarray(sizes, np.int64),
        image_ids=tuple(range(count)),
        file_names=tuple(f"{index}.png" for index in range(count)),
        class_names=names,
    )


def test_boxes_are_those_of_the_examples_though_no_image_is_decoded(source, monkeypatch):
    examples = [source[index] for index in range(len(source))]
    monkeypatch.setattr(CocoSource, "__getitem__", lambda *_: pytest.fail("an image was decoded"))
    split = read_split_boxes(source)
    for name in ("boxes_xyxy", "labels", "is_crowd"):
        expected = np.concatenate([getattr(example, name) for example in examples])
        np.testing.assert_array_equal(getattr(split, name), expected)
    np.testing.assert_array_equal(split.image_index, [0, 2, 2, 2])
    assert [tuple(size) for size in split.sizes] == [example.size for example in examples]
    assert split.file_names == ("0.png", "1.png", "2.png")


def test_crowd_regions_are_no_objects(source):
    counts = count_boxes(read_split_boxes(source))
    assert (counts.objects, counts.crowds) == (3, 1)
    assert counts.objects_of_class.tolist() == [2, 1]
    assert counts.images_of_class.tolist() == [2, 1]
    assert counts.objects_of_image.tolist() == [1, 0, 2]
    assert counts.boxes_of_image.tolist() == [1, 0, 3]
    split = read_split_boxes(source)
    assert [images_without(split, label) for label in (0, 1)] == [[1], [0, 1]]


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    shape=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    seed=st.integers(0, 99),
)
def test_resized_boxes_are_those_that_training_without_augmentation_gets(size, shape, seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (5, 2, 2)), axis=1) * (size[1], size[0])
    boxes = corners.reshape(-1, 4).astype(np.float32)
    split = resized(split_of(boxes, [0] * 5, [0] * 5, [size]), height=shape[0], width=shape[1])
    image = np.zeros((*size, 3), np.uint8)
    trained = random_scale_and_crop(rng, image, boxes, height=shape[0], width=shape[1], scale_range=(1.0, 1.0))
    np.testing.assert_allclose(split.boxes_xyxy, trained.boxes_xyxy, rtol=1e-6, atol=1e-4)  # float32 corners
    np.testing.assert_array_equal(split.sizes, [trained.size])


@settings(max_examples=20)
@given(seed=st.integers(0, 200))
def test_duplicates_are_those_that_a_loop_over_pairs_finds(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.choice([0, 1, 2, 25]))  # each number is compiled for
    starts = rng.integers(0, 3, (count, 2))
    boxes = np.concatenate([starts, starts + rng.integers(1, 4, (count, 2))], axis=1)
    image_index = np.sort(rng.integers(0, 3, count))
    labels, is_crowd = rng.integers(0, 2, count), rng.random(count) < 0.2
    split = split_of(boxes, labels, image_index, [(9, 9)] * 3, is_crowd)
    expected = [
        row
        for row in range(count)
        if not is_crowd[row]
        and any(
            (boxes[row] == boxes[other]).all()
            and (image_index[row], labels[row]) == (image_index[other], labels[other])
            and not is_crowd[other]
            for other in range(row)
        )
    ]
    # Of whole corners up to 6, IoU above 0.95 is equality.
    assert duplicate_boxes(split).tolist() == expected


def test_almost_equal_boxes_are_duplicates_and_shifted_ones_are_not():
    boxes = [[0, 0, 100, 100], [0, 0, 100, 97], [0, 0, 100, 90]]
    split = split_of(boxes, [0, 0, 0], [0, 0, 0], [(200, 200)])
    assert duplicate_boxes(split).tolist() == [1]  # IoU 0.97; the third has 0.9 and 0.93
    other_class = dataclasses.replace(split, labels=np.array([0, 1, 0], np.int32))
    assert duplicate_boxes(other_class).tolist() == []


def test_some_images_keep_their_boxes():
    image_index = np.repeat(np.arange(10), 2)
    boxes = np.stack([image_index, image_index, image_index + 5, image_index + 5], axis=1)
    split = split_of(boxes, [0, 1] * 10, image_index, [(20, 20)] * 10)
    few = some_images(split, 3)
    assert few.file_names == ("0.png", "4.png", "9.png")
    np.testing.assert_array_equal(few.image_index, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(few.boxes_xyxy[:, 0], [0, 0, 4, 4, 9, 9])
    assert some_images(split, 10) is split
    # Images without an object are not among them: here only the first and the last have one.
    rare = split_of([[0, 0, 5, 5], [1, 1, 6, 6], [2, 2, 7, 7]], [0, 1, 0], [0, 9, 9], [(20, 20)] * 10)
    assert some_images(rare, 3).file_names == ("0.png", "9.png")
    crowds = dataclasses.replace(rare, is_crowd=np.array([True, True, True]))
    assert len(some_images(crowds, 3)) == 0


def test_statistics_of_nothing_are_nan():
    assert np.isnan(mean_and_quantiles([])).all()

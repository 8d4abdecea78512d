import itertools
import logging
import pickle
import threading

import grain
import numpy as np
import pytest

from focaljax.data import pipeline
from focaljax.data.augmentation import Augmentation
from focaljax.data.example import DataError, Example, UnreadableImageError
from focaljax.data.pipeline import evaluation_batches, training_batches
from focaljax.data.report import DataReport

SIZE = {"height": 24, "width": 32}
STILL = Augmentation(horizontal_flip=0.0)
LIVELY = Augmentation(0.5, 0.5, (0.5, 2.0), 0.25, 0.3, 0.3, 0.3, 0.1)


class FakeSource:
    """Images in memory: image `index` has id `100 + index` and `index % 4` boxes; some cannot be read."""

    class_names = ("thing", "other")
    category_ids = (3, 7)
    max_boxes = 3

    def __init__(self, length=10, unreadable=(), error=None, examples=None):
        self.report = DataReport()
        self.length = length
        self.unreadable = unreadable
        self.error = error
        self.examples = examples or {}

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        if index in self.unreadable:
            raise UnreadableImageError(f"{index}.jpg (image {100 + index}): truncated")
        if self.error is not None:
            raise self.error
        if index in self.examples:
            return self.examples[index]
        rng = np.random.default_rng(index)
        boxes = np.array([[2, 3, 10 + k, 12 + k] for k in range(index % 4)], np.float32).reshape(-1, 4)
        return Example(
            image=rng.integers(1, 256, (20 + index % 3, 30, 3), dtype=np.uint8),
            boxes_xyxy=boxes,
            labels=np.arange(len(boxes), dtype=np.int32) % 2,
            is_crowd=np.arange(len(boxes)) == 2,
            image_id=100 + index,
            file_name=f"{index}.jpg",
        )

    def ground_truth(self):
        return {}


def train(source=None, *, steps, batch_size=4, augmentation=LIVELY, seed=0, num_threads=0, max_boxes=3, **arguments):
    batches = training_batches(
        FakeSource() if source is None else source,
        batch_size=batch_size,
        max_boxes=max_boxes,
        seed=seed,
        augmentation=augmentation,
        num_threads=num_threads,
        **SIZE,
        **arguments,
    )
    return list(itertools.islice(batches, steps))


def evaluate(source, *, batch_size=4, num_threads=0, **arguments):
    return list(evaluation_batches(source, batch_size=batch_size, num_threads=num_threads, **SIZE, **arguments))


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def image_ids(batches):
    return np.concatenate([batch["image_id"] for batch in batches]).tolist()


def test_training_batches_have_fixed_shapes_and_dtypes():
    B, N = 4, 3
    expected = {
        "image": ((B, 24, 32, 3), np.uint8),
        "size": ((B, 2), np.int32),
        "boxes": ((B, N, 4), np.float32),
        "labels": ((B, N), np.int32),
        "is_crowd": ((B, N), np.bool_),
        "is_box": ((B, N), np.bool_),
        "image_id": ((B,), np.int64),
        "original_size": ((B, 2), np.int32),
        "is_valid": ((B,), np.bool_),
    }
    for batch in train(steps=6):
        assert {name: (array.shape, array.dtype.type) for name, array in batch.items()} == expected
        assert batch["is_valid"].all()


def test_rows_hold_the_boxes_first_and_padding_after():
    for batch in train(steps=5, augmentation=STILL):
        for row, image_id in enumerate(batch["image_id"].tolist()):
            example = FakeSource()[image_id - 100]
            count = len(example.boxes_xyxy)
            assert batch["is_box"][row].tolist() == [True] * count + [False] * (3 - count)
            expected = example.boxes_xyxy * (batch["size"][row] / batch["original_size"][row])[[1, 0, 1, 0]]
            np.testing.assert_allclose(batch["boxes"][row, :count], expected, rtol=1e-6)
            assert not batch["boxes"][row, count:].any()
            assert batch["labels"][row].tolist() == example.labels.tolist() + [-1] * (3 - count)
            assert batch["is_crowd"][row].tolist() == example.is_crowd.tolist() + [False] * (3 - count)
            assert batch["original_size"][row].tolist() == list(example.image.shape[:2])
            height, width = batch["size"][row]
            assert batch["image"][row, :height, :width].min() > 0
            assert not batch["image"][row, height:].any()
            assert not batch["image"][row, :, width:].any()


@pytest.mark.parametrize("start_step", [1, 4, 11])
def test_resumed_run_sees_the_same_batches(start_step):
    whole = train(steps=14)
    assert_equal(train(steps=14 - start_step, start_step=start_step), whole[start_step:])


def test_number_of_threads_and_prefetch_do_not_change_batches():
    alone = train(steps=8)
    assert_equal(train(steps=8, num_threads=4, prefetch=1), alone)
    assert_equal(train(steps=8, num_threads=2, prefetch=8), alone)


def test_every_epoch_holds_every_image_once_in_an_order_of_its_own():
    # 12 images in batches of 5: 12 batches are 60 images, which are 5 epochs, and batches span epochs.
    seen = image_ids(train(FakeSource(12), steps=12, batch_size=5))
    epochs = [tuple(seen[start : start + 12]) for start in range(0, 60, 12)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(100, 112))
    assert len(set(epochs)) == 5
    assert list(range(100, 112)) not in map(list, epochs)


def test_same_image_is_augmented_differently_in_every_epoch():
    batches = train(FakeSource(1), steps=6, batch_size=1)
    assert len({batch["image"].tobytes() for batch in batches}) == 6


def test_images_of_one_batch_are_augmented_differently():
    (batch,) = train(FakeSource(1), steps=1, batch_size=6)
    assert len({image.tobytes() for image in batch["image"]}) == 6


def test_seed_decides_order_and_augmentation():
    assert_equal(train(steps=3, seed=5), train(steps=3, seed=5))
    assert image_ids(train(steps=3, seed=5)) != image_ids(train(steps=3, seed=6))
    # The run with the next seed is not the same run one epoch later.
    assert image_ids(train(steps=8, batch_size=5, seed=5))[10:] != image_ids(train(steps=6, batch_size=5, seed=6))


@pytest.mark.parametrize("count", [2, 3])
def test_slices_of_the_hosts_make_up_the_global_batch(count):
    whole = train(steps=5, batch_size=6)
    hosts = [train(steps=5, batch_size=6, shard=(index, count)) for index in range(count)]
    joined = [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in zip(*hosts)]
    assert_equal(joined, whole)


def test_unreadable_image_is_replaced_logged_and_reported_once(caplog):
    source = FakeSource(6, unreadable=(2, 3))
    with caplog.at_level(logging.WARNING, "focaljax.data"):
        seen = image_ids(train(source, steps=9))
    # Three epochs, and the two missing images are replaced by the next, number 4.
    assert sorted(seen) == sorted([100, 101, 104, 104, 104, 105] * 6)
    assert sorted(finding.file_name for finding in source.report.findings) == [
        "2.jpg (image 102): truncated",
        "3.jpg (image 103): truncated",
    ]
    assert [record.name for record in caplog.records] == ["focaljax.data"] * 2
    assert all("truncated" in record.getMessage() for record in caplog.records)


def test_unreadable_image_is_reported_once_by_many_threads_and_iterators(caplog):
    source = FakeSource(3, unreadable=(0,))
    for _ in range(2):
        train(source, steps=30, num_threads=8)
    assert len(source.report.findings) == 1
    assert len(caplog.records) == 1


def test_last_image_is_replaced_by_the_first():
    assert sorted(image_ids(train(FakeSource(3, unreadable=(2,)), steps=1, batch_size=3))) == [100, 100, 101]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_source_without_readable_images_is_an_error(num_threads):
    with pytest.raises(DataError, match="5 images in a row"):
        train(FakeSource(5, unreadable=range(5)), steps=1, num_threads=num_threads)
    with pytest.raises(DataError, match="5 images in a row"):
        evaluate(FakeSource(5, unreadable=range(5)), num_threads=num_threads)


def test_a_long_run_of_unreadable_images_is_an_error(monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_UNREADABLE_IN_A_ROW", 4)
    with pytest.raises(DataError, match="4 images in a row"):
        train(FakeSource(12, unreadable=range(3, 7)), steps=6)
    with pytest.raises(DataError, match="4 images in a row"):
        evaluate(FakeSource(12, unreadable=range(3, 7)), batch_size=5)
    assert len(train(FakeSource(12, unreadable=range(3, 6)), steps=6)) == 6
    assert len(evaluate(FakeSource(12, unreadable=range(3, 6)), batch_size=5)) == 3


@pytest.mark.parametrize(("length", "batch_size", "count"), [(50, 8, 2), (50, 64, 8), (9, 8, 8), (1, 8, 8)])
def test_every_host_notices_that_none_of_its_images_is_readable(length, batch_size, count):
    for index in range(count):
        with pytest.raises(DataError, match="images in a row could not be read"):
            evaluate(FakeSource(length, unreadable=range(length)), batch_size=batch_size, shard=(index, count))


@pytest.mark.parametrize(("length", "batch_size", "count"), [(50, 8, 2), (50, 64, 8), (9, 8, 8)])
def test_single_unreadable_images_end_the_evaluation_of_no_host(length, batch_size, count):
    for index in range(count):
        assert evaluate(FakeSource(length, unreadable=(3,)), batch_size=batch_size, shard=(index, count))


@pytest.mark.parametrize("num_threads", [0, 3])
@pytest.mark.parametrize("error", [RuntimeError("disk on fire"), KeyError("bbox"), OSError(5, "input/output error")])
def test_any_other_exception_reaches_the_caller_as_itself(error, num_threads):
    with pytest.raises(type(error)) as caught:
        train(FakeSource(error=error), steps=1, num_threads=num_threads)
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        evaluate(FakeSource(error=error), num_threads=num_threads)
    assert caught.value is error


def many_boxes():
    """Image 0 with 4 objects of areas 4, 100, 16, 64 and two crowd regions of area 400 and 225."""
    corners = [(0, 0, 2, 2), (0, 0, 20, 20), (0, 0, 10, 10), (0, 0, 4, 4), (0, 0, 15, 15), (0, 0, 8, 8)]
    return Example(
        image=np.zeros((24, 32, 3), np.uint8),
        boxes_xyxy=np.array(corners, np.float32),
        labels=np.arange(6, dtype=np.int32),
        is_crowd=np.array([False, True, False, False, True, False]),
        image_id=100,
        file_name="many.jpg",
    )


@pytest.mark.parametrize(
    ("max_boxes", "labels"),
    [(2, [2, 5]), (4, [0, 2, 3, 5]), (5, [0, 1, 2, 3, 5]), (6, [0, 1, 2, 3, 4, 5]), (7, [0, 1, 2, 3, 4, 5, -1])],
)
def test_too_many_boxes_keep_the_largest_and_crowds_last(max_boxes, labels, caplog):
    source = FakeSource(1, examples={0: many_boxes()})
    batches = train(source, steps=3, max_boxes=max_boxes, augmentation=STILL)
    for batch in batches:
        assert batch["labels"].tolist() == [labels] * 4
    expected = [("many.jpg", 100)] if max_boxes < 6 else []
    assert [(finding.file_name, finding.image_id) for finding in source.report.findings] == expected
    assert len(caplog.records) == len(expected)


def test_evaluation_gives_every_image_once_in_order():
    batches = evaluate(FakeSource(10), batch_size=4)
    assert [batch["is_valid"].tolist() for batch in batches] == [[True] * 4, [True] * 4, [True, True, False, False]]
    is_valid = np.concatenate([batch["is_valid"] for batch in batches])
    assert np.array(image_ids(batches))[is_valid].tolist() == list(range(100, 110))
    # The padding rows repeat the first images.
    assert batches[2]["image_id"].tolist() == [108, 109, 100, 101]
    assert {name: (array.shape, array.dtype.type) for name, array in batches[2].items()} == {
        "image": ((4, 24, 32, 3), np.uint8),
        "size": ((4, 2), np.int32),
        "image_id": ((4,), np.int64),
        "original_size": ((4, 2), np.int32),
        "is_valid": ((4,), np.bool_),
    }


def test_evaluation_size_is_where_the_content_ends():
    # 30 columns become 32, and 20, 21 and 22 rows 21.3, 22.4 and 23.5.
    rows = {20: 21, 21: 22, 22: 23}
    for batch in evaluate(FakeSource(10)):
        for image, size, original_size in zip(batch["image"], batch["size"], batch["original_size"], strict=True):
            assert size.tolist() == [rows[original_size[0]], 32]
            assert image[: size[0]].min() > 0
            assert not image[size[0] :].any()


@pytest.mark.parametrize("length", [1, 4, 7])
def test_evaluation_slices_of_the_hosts_make_up_the_global_batch(length):
    whole = evaluate(FakeSource(length), batch_size=4)
    hosts = [evaluate(FakeSource(length), batch_size=4, shard=(index, 2), num_threads=2) for index in range(2)]
    joined = [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in zip(*hosts)]
    assert_equal(joined, whole)


def test_unreadable_image_is_blank_and_not_valid_in_evaluation(caplog):
    source = FakeSource(5, unreadable=(1,))
    for _ in range(2):
        first, second = evaluate(source)
        assert first["is_valid"].tolist() == [True, False, True, True]
        assert first["image_id"].tolist() == [100, -1, 102, 103]
        assert not first["image"][1].any()
        assert second["is_valid"].tolist() == [True, False, False, False]
    assert len(source.report.findings) == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"max_boxes": 0}, "max_boxes"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"start_step": -1}, "start_step"),
        ({"num_threads": -1}, "num_threads"),
        ({"prefetch": -1}, "prefetch"),
        ({"shard": (2, 2)}, "shard must be"),
        ({"batch_size": 7, "shard": (0, 2)}, "divide among the 2 hosts, got 7; 6 and 8 do"),
        ({"batch_size": 1, "shard": (0, 2)}, "got 1; 2 and 2 do|got 1; 2"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        train(steps=1, **arguments)


def test_empty_source_is_an_error():
    with pytest.raises(DataError, match="no images"):
        train(FakeSource(0), steps=1)
    with pytest.raises(DataError, match="no images"):
        evaluate(FakeSource(0))


def test_batch_reader_survives_pickling_and_still_reports_to_its_source():
    reader = pipeline._ReadEvaluationBatch(FakeSource(3, unreadable=(0,)), slice(0, 2), 24, 32)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy(np.arange(2))["is_valid"].tolist() == [False, True]
    assert len(copy._source.report.findings) == 1


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


@pytest.mark.skipif(
    not hasattr(grain.DatasetIterator, "close"), reason="this Grain leaves its threads to the collector"
)
@pytest.mark.parametrize("end", ["closed", "dropped", "exhausted", "failed"])
def test_threads_end_with_the_iterator(end):
    arguments = {"batch_size": 2, **SIZE, "num_threads": 2}
    source = FakeSource(4, error=RuntimeError() if end == "failed" else None)
    before = set(reading_threads())
    batches = evaluation_batches(source, **arguments)
    if end == "failed":
        with pytest.raises(RuntimeError):
            next(batches)
    else:
        next(batches)
    started = set(reading_threads()) - before
    assert started
    if end == "closed":
        batches.close()
    elif end == "exhausted":
        list(batches)
    elif end == "dropped":
        del batches
    for thread in started:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in started)

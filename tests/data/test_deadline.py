"""The bound on the wait for data: what comes in time passes as it is, what hangs is an error, and threads end."""

import itertools
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from focaljax.data import coco, tfds_index, voc
from focaljax.data.augmentation import Augmentation
from focaljax.data.deadline import StalledError, in_time, with_deadline
from focaljax.data.example import Example
from focaljax.data.pipeline import training_batches
from focaljax.data.report import DataReport
from focaljax.data.tfds_source import TfdsSource

TINY = pathlib.Path(__file__).resolve().parents[1] / "cli" / "tiny.py"


def threads_of_deadlines():
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def wait_until(is_so, seconds=20.0):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_items_come_in_order_and_end():
    assert list(with_deadline(iter(range(100)), 30.0)) == list(range(100))
    assert list(with_deadline(iter(()), 30.0)) == []


def test_an_error_of_the_iterator_comes_out_where_its_item_would():
    def items():
        yield 1
        raise KeyError("the data's own")

    bounded = with_deadline(items(), 30.0)
    assert next(bounded) == 1
    with pytest.raises(KeyError, match="the data's own"):
        next(bounded)


def test_a_source_that_hangs_is_an_error_within_the_bound():
    forever = threading.Event()

    def items():
        yield 1
        forever.wait()

    bounded = with_deadline(items(), 0.3)
    assert next(bounded) == 1
    start = time.monotonic()
    with pytest.raises(StalledError, match=r"within 0\.3 s \(data\.timeout\)"):
        next(bounded)
    assert 0.3 <= time.monotonic() - start < 10  # a busy machine is late, not for ever
    forever.set()
    wait_until(lambda: not threads_of_deadlines())


def test_slow_items_within_the_bound_pass():
    def items():
        for item in range(3):
            time.sleep(0.1)
            yield item

    assert list(with_deadline(items(), 30.0)) == [0, 1, 2]


def test_closing_ends_the_thread_and_the_iterator_below():
    is_closed = threading.Event()

    def items():
        try:
            yield from itertools.count()
        finally:
            is_closed.set()

    bounded = with_deadline(items(), 30.0)
    assert [next(bounded) for _ in range(3)] == [0, 1, 2]
    bounded.close()
    assert is_closed.wait(20)
    wait_until(lambda: not threads_of_deadlines())


class OneImage:
    """A source of grey images; `read` is called before each."""

    class_names, category_ids, max_boxes = ("cat",), (1,), 1

    def __init__(self, read):
        self._read = read
        self.report = DataReport()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self._read(index)
        box = np.array([[1, 1, 9, 9]], np.float32)
        return Example(np.full((16, 16, 3), 99, np.uint8), box, np.zeros(1, np.int32), np.zeros(1, bool), index, "a")


def batches_of(read):
    options = {"batch_size": 2, "height": 16, "width": 16, "max_boxes": 1, "seed": 0, "num_threads": 2}
    batches = training_batches(OneImage(read), augmentation=Augmentation(), **options)
    return with_deadline(batches, 20.0)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, MemoryError])
def test_a_reading_thread_that_dies_is_an_error_and_no_hang(error):
    def read(index):
        if index == 5:
            raise error("gone")

    # What ends a thread of the pipeline comes out as it is, or the wait for it ends.
    with pytest.raises((error, StalledError)):
        for _ in batches_of(read):
            pass


def test_what_is_read_in_time_is_returned_and_an_error_comes_out():
    assert in_time(lambda: 7, 30.0, what="number") == 7
    with pytest.raises(KeyError, match="gone"):
        in_time(lambda: {}["gone"], 30.0, what="number")


def open_later(pipe):
    """Gives the threads that read a pipe their end, so that they do not outlive the test."""
    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    wait_until(lambda: not threads_of_deadlines())


def test_an_annotation_file_that_hangs_is_an_error_that_names_it(tmp_path):
    pipe = tmp_path / "annotations.json"
    os.mkfifo(pipe)
    with pytest.raises(StalledError, match=rf"no annotation file {pipe} came within 0\.2 s"):
        coco.CocoSource(tmp_path, pipe, timeout=0.2)
    open_later(pipe)


def test_a_split_list_that_hangs_is_an_error_that_names_it(tmp_path):
    pipe = tmp_path / "train.txt"
    os.mkfifo(pipe)
    with pytest.raises(StalledError, match=rf"no list of names from {pipe} came within 0\.2 s"):
        voc.VocSource(tmp_path, tmp_path, split=pipe, timeout=0.2)
    open_later(pipe)


def test_a_folder_of_annotations_whose_second_file_hangs_is_an_error(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.xml").write_text("<annotation></annotation>")
    forever, read = threading.Event(), voc.read_regular_file
    monkeypatch.setattr(voc, "read_regular_file", lambda path: forever.wait() if "b.xml" in path else read(path))
    with pytest.raises(StalledError, match=rf"no annotation file from {tmp_path} came within 0\.2 s"):
        voc.VocSource(tmp_path, tmp_path, timeout=0.2)
    forever.set()
    wait_until(lambda: not threads_of_deadlines())


def test_tfds_records_that_hang_are_an_error(coco_dir, monkeypatch):
    forever, read = threading.Event(), tfds_index._chunks

    def chunks(records):
        forever.wait()
        yield from read(records)

    monkeypatch.setattr(tfds_index, "_chunks", chunks)
    # The folder's description is read within the bound too, on a busy machine as well.
    with pytest.raises(StalledError, match=r"no record from .* came within 5 s"):
        TfdsSource("coco/2017", "train", data_dir=coco_dir, timeout=5.0)
    forever.set()
    wait_until(lambda: not threads_of_deadlines())


HANGING = """
import time
from focaljax.data import coco
from tests.cli.tiny import get_config as tiny

def get_config():
    def hang(*args, **kwargs):
        time.sleep(1000)
    coco.read_regular_file = hang
    config = tiny()
    config.data.source = "coco"
    for split in ("train", "val"):
        config.data[split].images, config.data[split].annotations = "images", "annotations.json"
    config.data.timeout = 3.0
    return config
"""


def test_training_whose_files_hang_ends_with_one_line_within_the_bound(tmp_path, users_env):
    import json

    import cv2

    (tmp_path / "images").mkdir()
    images = []
    for image_id in range(1, 9):
        cv2.imwrite(str(tmp_path / "images" / f"{image_id}.png"), np.zeros((64, 64, 3), np.uint8))
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 64, "width": 64})
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    (tmp_path / "hanging.py").write_text(HANGING)
    root = str(TINY.parents[2])
    environment = users_env | {"PYTHONPATH": os.pathsep.join([root, users_env.get("PYTHONPATH", "")])}
    config = [f"--config={tmp_path / 'hanging.py'}", f"--config.data.root={tmp_path}"]
    # Starting and compiling take most of it; without a bound it would be a thousand seconds.
    done = subprocess.run(
        [sys.executable, "-m", "focaljax", "train", *config, "--workdir", str(tmp_path / "run")],
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("focaljax: no batch came within 3 s (data.timeout)")
    assert done.stderr.count("\n") == 1

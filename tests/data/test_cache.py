"""Images kept decoded: the batches stay the same, and a file that does not fit is made anew."""

import itertools
import json
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest

from focaljax.cli import datasets
from focaljax.cli.config import default_config, differences
from focaljax.data import coco
from focaljax.data.augmentation import Augmentation
from focaljax.data.cache import CachedSource
from focaljax.data.coco import AnnotatedImages
from focaljax.data.deadline import StalledError
from focaljax.data.example import DataError, UnreadableImageError
from focaljax.data.pipeline import evaluation_batches, training_batches
from focaljax.data.subset import FirstImages
from focaljax.data.tfds_source import TfdsSource

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = {"height": 40, "width": 48}
FLIPS = Augmentation(vertical_flip=0.5)
LIVELY = Augmentation(0.5, 0.5, (0.5, 2.0), 0.25, 0.3, 0.3, 0.3, 0.1)
# Larger than SIZE, smaller, of another aspect, less than half of it, and just it.
SIZES = [(60, 80), (20, 30), (70, 20), (130, 100), (40, 48), (33, 47)]


def annotated_images(folder, *, sizes=SIZES, seed=0):
    """A source of noise with a box in each image; the fourth is cut off, which its header does not tell."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for index, size in enumerate(sizes):
        encoded = cv2.imencode(".jpg", rng.integers(0, 256, (*size, 3), dtype=np.uint8))[1].tobytes()
        (folder / f"{index}.jpg").write_bytes(encoded[: len(encoded) // 2] if index == 3 else encoded)
    images = [
        {"id": 10 + index, "file_name": f"{index}.jpg", "height": height, "width": width}
        for index, (height, width) in enumerate(sizes)
    ]
    boxes = [{"id": 1 + index, "image_id": 10 + index, "category_id": 1, "bbox": [3, 4, 12, 9]} for index in range(5)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    return AnnotatedImages(folder, document, where="test", check_images=False)


@pytest.fixture
def source(tmp_path):
    return annotated_images(tmp_path / "images")


def training(source, augmentation=FLIPS, steps=6):
    arguments = {"batch_size": 4, "max_boxes": 2, "seed": 1, "num_threads": 2, **SIZE}
    return list(itertools.islice(training_batches(source, augmentation=augmentation, **arguments), steps))


def evaluation(source, **size):
    return list(evaluation_batches(source, batch_size=4, num_threads=0, **(size or SIZE)))


def assert_equal(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)
            assert batch[name].dtype == other[name].dtype


def forbid_decoding(monkeypatch):
    def decode(*_, file_name, image_id, **__):
        # What cannot be decoded is not kept, and is tried again.
        assert image_id == 13, file_name
        raise UnreadableImageError("truncated")

    monkeypatch.setattr(coco.image_files, "decode_image", decode)


@pytest.mark.parametrize("batches", [training, lambda source: training(source, LIVELY), evaluation])
def test_batches_are_the_same_and_a_later_run_does_not_decode(source, tmp_path, monkeypatch, batches):
    expected = batches(source)
    assert_equal(batches(CachedSource(source, tmp_path / "cache", "train")), expected)
    forbid_decoding(monkeypatch)
    assert_equal(batches(CachedSource(source, tmp_path / "cache", "train")), expected)


def test_images_evaluated_at_another_size_than_fits_are_resized_once(source, tmp_path):
    sides = {**SIZE, "largest_sides": (16, 48)}
    cached = CachedSource(source, tmp_path / "cache", "val")
    assert_equal(evaluation(cached, **sides), evaluation(source, **sides))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["val_decoded.images"]


def test_images_are_kept_resized_unless_scale_or_colours_change(source, tmp_path):
    cached = CachedSource(source, tmp_path / "cache", "train")
    training(cached)
    evaluation(cached)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["train_40x48.images"]
    training(cached, LIVELY)
    evaluation(cached, height=20, width=24)
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert names == ["train_20x24.images", "train_40x48.images", "train_decoded.images"]
    pixels = 3 * sum(height * width for index, (height, width) in enumerate(SIZES) if index != 3)
    # Besides the pixels five numbers an image and a key.
    assert (tmp_path / "cache" / "train_decoded.images").stat().st_size == pixels + 6 * 5 * 8 + 32


def test_the_rest_is_that_of_the_source(source, tmp_path):
    cached = CachedSource(source, tmp_path / "cache", "train")
    for name in ("class_names", "category_ids", "max_boxes", "report"):
        assert getattr(cached, name) == getattr(source, name)
    assert len(cached) == len(SIZES)
    assert cached.ground_truth() == source.ground_truth()
    assert cached[0].size == (60, 80)
    np.testing.assert_array_equal(cached[0].image, source[0].image)
    assert not (tmp_path / "cache").exists()


def test_kept_example_has_the_boxes_of_the_image_as_it_came(source, tmp_path):
    example = CachedSource(source, tmp_path / "cache", "train").reader((30, 30))(0)
    # 60 x 80 fits into 30 x 30 as 22.5 x 30.
    assert example.image.shape == (22, 30, 3)
    assert example.size == (60, 80)
    assert example.boxes_xyxy.tolist() == [[3, 4, 15, 13]]
    with pytest.raises(IndexError, match="image index -1 is not in 0..5"):
        CachedSource(source, tmp_path / "cache", "train").reader((30, 30))(-1)


def test_changed_image_is_decoded_anew(source, tmp_path):
    training(CachedSource(source, tmp_path / "cache", "train"))
    before = (tmp_path / "images" / "0.jpg").stat()
    changed = annotated_images(tmp_path / "images", seed=5)
    os.utime(tmp_path / "images" / "0.jpg", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert_equal(training(CachedSource(changed, tmp_path / "cache", "train")), training(changed))


def test_fewer_images_are_not_read_from_the_file_of_all(source, tmp_path):
    evaluation(CachedSource(source, tmp_path / "cache", "train"))
    part = FirstImages(source, 2)
    assert_equal(evaluation(CachedSource(part, tmp_path / "cache", "train")), evaluation(part))


def test_another_decoder_decodes_anew(source, tmp_path, monkeypatch):
    CachedSource(source, tmp_path / "cache", "train").reader(None)
    written = (tmp_path / "cache" / "train_decoded.images").read_bytes()
    monkeypatch.setattr(cv2, "__version__", "99.0")
    CachedSource(source, tmp_path / "cache", "train").reader(None)
    again = (tmp_path / "cache" / "train_decoded.images").read_bytes()
    assert again[:-32] == written[:-32]
    assert again[-32:] != written[-32:]


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda _: b"x"])
def test_incomplete_file_is_made_anew(source, tmp_path, damage):
    path = tmp_path / "cache" / "val_40x48.images"
    expected = evaluation(CachedSource(source, tmp_path / "cache", "val"))
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert_equal(evaluation(CachedSource(source, tmp_path / "cache", "val")), expected)
    assert path.read_bytes() == whole


def test_full_disk_is_one_error_and_leaves_nothing(source, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            DataError, match=r"train_decoded\.images cannot be written \(File too large.* free.*make room"
        ):
            CachedSource(source, tmp_path / "cache", "train").reader(None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []


def test_folder_that_cannot_be_made_is_named(source, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"cache/train_decoded\.images cannot be written \(File exists"):
        CachedSource(source, tmp_path / "cache", "train").reader(None)


def test_interrupted_writing_leaves_nothing(source, tmp_path):
    def interrupted(items, description, total):
        yield from itertools.islice(items, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CachedSource(source, tmp_path / "cache", "train", track=interrupted).reader(None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_progress_is_told(source, tmp_path):
    told = []

    def track(items, description, total):
        told.append((description, total))
        return items

    CachedSource(source, tmp_path / "cache", "train", track=track).reader(None)
    assert told == [(f"decoding train for {tmp_path / 'cache'}", len(SIZES))]


def test_two_processes_make_it_at_once(source, tmp_path):
    script = (
        "import pathlib, sys\n"
        "from tests.data.test_cache import *\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "source = CachedSource(AnnotatedImages(folder / 'images', pickle.loads((folder / 'document').read_bytes()),\n"
        "    where='test', check_images=False), folder / 'cache', 'train')\n"
        "sys.stdout.buffer.write(b''.join(batch['image'].tobytes() for batch in training(source)))\n"
    )
    (tmp_path / "document").write_bytes(pickle.dumps(source.ground_truth()))
    command = [sys.executable, "-c", script, str(tmp_path)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    expected = b"".join(batch["image"].tobytes() for batch in training(source))
    for run in runs:
        assert run.communicate(timeout=120)[0] == expected
        assert run.returncode == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["train_40x48.images"]


def test_reader_is_pickled_without_its_pixels(tmp_path):
    source = FirstImages(annotated_images(tmp_path / "images", sizes=[(600, 800)]), 1)
    reader = CachedSource(source, tmp_path / "cache", "train").reader(None)
    pickled = pickle.dumps(reader)
    assert len(pickled) < 100_000
    np.testing.assert_array_equal(pickle.loads(pickled)(0).image, source[0].image)


def test_tfds_images_are_kept_and_decoded_anew_when_the_data_set_is_written_anew(coco_dir, tmp_path, monkeypatch):
    source = TfdsSource(coco_dir, "train")
    cached = CachedSource(source, tmp_path / "cache", "train")
    for mode, augmentation in ((evaluation, None), (training, FLIPS), (training, LIVELY)):
        settings = () if augmentation is None else (augmentation,)
        assert_equal(mode(cached, *settings), mode(source, *settings))
    before = source.fingerprint()
    assert TfdsSource(coco_dir, "train").fingerprint() == before
    assert TfdsSource(coco_dir, "validation").fingerprint() != before
    (records,) = pathlib.Path(coco_dir).rglob("*train*array_record*")
    state = records.stat()
    os.utime(records, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    try:
        assert source.fingerprint() != before
    finally:
        os.utime(records, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_fingerprint_tells_that_an_image_is_gone(source, tmp_path):
    before = source.fingerprint()
    assert source.fingerprint() == before
    (tmp_path / "images" / "5.jpg").unlink()
    assert source.fingerprint() != before
    assert FirstImages(source, 2).fingerprint() == source.fingerprint()


def test_setting_names_the_folder_and_may_change_in_a_run_that_goes_on(source, tmp_path):
    (tmp_path / "annotations.json").write_text(json.dumps(source.ground_truth()))
    config = default_config()
    config.data.root = str(tmp_path)
    config.data.train.update(images="images", annotations="annotations.json")
    config.data.image_size = (40, 48)
    config.optim.batch_size = 4
    plain = datasets.make_source(config, "train")
    with_cache = config.copy_and_resolve_references()
    with_cache.data.cache = str(tmp_path / "cache")
    cached = datasets.make_source(with_cache, "train")
    batches = [
        list(itertools.islice(datasets.training_batches(settings, one, 0), 3))
        for settings, one in ((config, plain), (with_cache, cached))
    ]
    assert_equal(*batches)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["train_40x48.images"]
    assert differences(config, with_cache) == []


def test_image_that_hangs_while_the_file_is_made_is_an_error_in_time(source, tmp_path):
    class Hanging:
        released = threading.Event()

        def __getattr__(self, name):
            return getattr(source, name)

        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            self.released.wait()
            return source[index]

    hanging = Hanging()
    try:
        with pytest.raises(StalledError, match="no image came within 0.2 s"):
            CachedSource(hanging, tmp_path / "cache", "train", timeout=0.2).reader((30, 30))
        assert not list((tmp_path / "cache").iterdir())
    finally:
        hanging.released.set()

import io
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from focaljax.data import tfds_index
from focaljax.data.example import DataError
from focaljax.data.shapes import prepare_shapes
from focaljax.data.tfds_source import TfdsSource, find_builder_dir
from tests.data.tfds_layouts import COCO_NAMES, VOC_NAMES, coco_features, coco_image, coco_object, encode, prepare


def test_coco_layout_is_found_by_name_and_read(coco_dir):
    source = TfdsSource("coco/2017", "train", data_dir=coco_dir)
    assert len(source) == 3
    assert source.class_names == tuple(COCO_NAMES)
    assert source.category_ids == (1, 2, 3)
    assert source.max_boxes == 2
    assert source.report.findings == []

    example = source[0]
    assert example.image.shape == (48, 64, 3)
    assert example.image.dtype == np.uint8
    np.testing.assert_array_equal(example.boxes_xyxy, np.array([[1.25, 2.5, 33.17, 40.09], [0, 0, 64, 48]], np.float32))
    assert example.boxes_xyxy.dtype == np.float32
    np.testing.assert_array_equal(example.labels, [2, 0])
    assert example.labels.dtype == np.int32
    np.testing.assert_array_equal(example.is_crowd, [False, True])
    assert (example.image_id, example.file_name) == (139, "000000000139.jpg")


def test_corners_are_the_annotated_ones_to_the_last_bit(tmp_path):
    corners = np.round(np.random.default_rng(0).random((50, 4)) * 100, 2)
    corners[:, 2:] = corners[:, :2] + np.round(corners[:, 2:] + 1, 2)
    objects = [coco_object(tuple(box), (333, 517), id=row) for row, box in enumerate(corners.tolist(), 1)]
    prepare(tmp_path, {"train": [coco_image(1, (333, 517), objects)]}, coco_features())
    example = TfdsSource("coco/2017", "train", data_dir=tmp_path)[0]
    np.testing.assert_array_equal(example.boxes_xyxy, corners.astype(np.float32))


def test_image_without_objects_has_empty_arrays(coco_dir):
    example = TfdsSource("coco/2017", "train", data_dir=coco_dir)[1]
    assert example.boxes_xyxy.shape == (0, 4)
    assert example.labels.shape == example.is_crowd.shape == (0,)
    assert example.boxes_xyxy.dtype == np.float32
    assert example.labels.dtype == np.int32
    assert example.is_crowd.dtype == bool


def test_ground_truth_has_the_annotated_numbers(coco_dir):
    truth = TfdsSource("coco/2017", "train", data_dir=coco_dir).ground_truth()
    assert truth["images"] == [
        {"id": 139, "file_name": "000000000139.jpg", "height": 48, "width": 64},
        {"id": 7, "file_name": "000000000007.jpg", "height": 33, "width": 45},
        {"id": 581929, "file_name": "000000581929.jpg", "height": 427, "width": 640},
    ]
    # TFDS stores float32 fractions; rounding to a hundredth of a pixel gives the annotated numbers back exactly.
    expected = [
        (501, 139, 3, [1.25, 2.5, 31.92, 37.59], 900.0, 0),
        (502, 139, 1, [0.0, 0.0, 64.0, 48.0], 3000.0, 1),
        (503, 581929, 2, [473.07, 395.93, 38.65, 31.07], 7.0, 0),
    ]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    assert [tuple(annotation[key] for key in keys) for annotation in truth["annotations"]] == expected
    assert truth["categories"] == [{"id": k, "name": name} for k, name in zip((1, 2, 3), COCO_NAMES)]
    json.dumps(truth)


def test_ground_truth_does_not_decode_images(coco_dir, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded")

    for decoder in ("cv2.imdecode", "simplejpeg.decode_jpeg"):
        monkeypatch.setattr(decoder, fail)
    assert len(TfdsSource("coco/2017", "train", data_dir=coco_dir).ground_truth()["annotations"]) == 3


def test_pixels_are_those_of_the_stored_file(coco_dir):
    example = TfdsSource("coco/2017", "validation", data_dir=coco_dir)[0]
    stored = cv2.cvtColor(cv2.imdecode(np.frombuffer(encode(20, 30, seed=9), np.uint8), 1), cv2.COLOR_BGR2RGB)
    # Two JPEG decoders may differ by rounding.
    assert np.abs(example.image.astype(int) - stored).max() <= 3


def test_parts_and_sums_of_splits(coco_dir):
    assert len(TfdsSource("coco/2017", "train[1:]", data_dir=coco_dir)) == 2
    both = TfdsSource("coco/2017", "train+validation", data_dir=coco_dir)
    assert [both[index].image_id for index in range(4)] == [139, 7, 581929, 9]


def test_source_is_picklable_and_safe_among_threads(coco_dir):
    source = pickle.loads(pickle.dumps(TfdsSource("coco/2017", "train", data_dir=coco_dir)))
    with ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(lambda call: source[call % 3], range(60)))
    assert [example.image_id for example in examples] == [139, 7, 581929] * 20


def test_examples_do_not_share_memory(coco_dir):
    source = TfdsSource("coco/2017", "train", data_dir=coco_dir)
    source[0].boxes_xyxy[:] = -1
    assert (source[0].boxes_xyxy >= 0).all()


def test_index_out_of_range_ends_iteration(coco_dir):
    source = TfdsSource("coco/2017", "train", data_dir=coco_dir)
    assert len(list(source)) == 3  # type: ignore[call-overload]
    with pytest.raises(IndexError):
        source[-1]


def test_newest_version_is_taken_and_a_stated_one_if_asked(tmp_path):
    for version, image_id in (("1.9.0", 1), ("1.10.0", 2)):
        prepare(tmp_path, {"train": [coco_image(image_id, (8, 8), [])]}, coco_features(), version=version)
    (tmp_path / "coco/2017/incomplete.X_2.0.0").mkdir()
    shutil.copy(tmp_path / "coco/2017/1.9.0/dataset_info.json", tmp_path / "coco/2017/incomplete.X_2.0.0")
    for name in ("coco", "coco/2017", tmp_path / "coco" / "2017", tmp_path / "coco/2017/1.10.0"):
        assert find_builder_dir(name, data_dir=tmp_path) == str(tmp_path / "coco/2017/1.10.0")
    assert find_builder_dir("coco/2017:1.9.0", data_dir=tmp_path) == str(tmp_path / "coco/2017/1.9.0")


def test_several_configurations_must_be_told_apart(tmp_path):
    for config in ("2014", "2017"):
        prepare(tmp_path, {"train": [coco_image(1, (8, 8), [])]}, coco_features(), config=config)
    with pytest.raises(DataError, match=r"several configurations: .*2014.*2017"):
        find_builder_dir("coco", data_dir=tmp_path)


def test_data_dir_of_the_environment_is_used(coco_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(coco_dir))
    assert len(TfdsSource("coco/2017", "validation")) == 1


def test_voc_layout_treats_difficult_objects_as_crowds(tmp_path):
    features = {
        "image": tfds.features.Image(),
        "image/filename": tfds.features.Text(),
        "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=VOC_NAMES)),
        "objects": tfds.features.Sequence(
            {
                "bbox": tfds.features.BBoxFeature(),
                "is_difficult": np.bool_,
                "is_truncated": np.bool_,
                "label": tfds.features.ClassLabel(names=VOC_NAMES),
                "pose": tfds.features.ClassLabel(names=["frontal", "left"]),
            }
        ),
    }

    def voc_object(xyxy: tuple[float, ...], label: int, *, difficult: bool) -> dict[str, Any]:
        bbox = coco_object(xyxy, (40, 50))["bbox"]
        return {"bbox": bbox, "is_difficult": difficult, "is_truncated": False, "label": label, "pose": 0}

    objects = [voc_object((5, 6, 20, 30), 1, difficult=False), voc_object((10, 0, 50, 40), 0, difficult=True)]
    examples = [
        {"image": io.BytesIO(encode(40, 50)), "image/filename": "000012.jpg", "labels": [1], "objects": []},
        {"image": io.BytesIO(encode(40, 50)), "image/filename": "000033.jpg", "labels": [1], "objects": objects},
    ]
    prepare(tmp_path, {"test": examples}, features, name="voc", config="2007", version="4.0.0")
    source = TfdsSource("voc/2007", "test", data_dir=tmp_path)
    example = source[1]
    np.testing.assert_array_equal(example.boxes_xyxy, [[5, 6, 20, 30], [10, 0, 50, 40]])
    np.testing.assert_array_equal(example.is_crowd, [False, True])
    assert example.image_id == 2  # there is no image/id: the record's number, from 1
    assert source.max_boxes == 2
    annotations = source.ground_truth()["annotations"]
    assert [annotation["id"] for annotation in annotations] == [1, 2]
    assert [annotation["iscrowd"] for annotation in annotations] == [0, 1]
    assert [annotation["area"] for annotation in annotations] == [15.0 * 24, 40.0 * 40]


def test_annotations_that_took_long_to_read_are_kept(tmp_path, monkeypatch):
    images = [coco_image(5, (20, 20), [coco_object((1, 1, 9, 9), (20, 20))]), coco_image(6, (9, 9), [])]
    images.append(coco_image(7, (9, 9), [], image=io.BytesIO(b"x")))
    folder = prepare(tmp_path, {"train": images}, coco_features())
    first = TfdsSource(folder, "train")
    assert not list(folder.glob("*.npz"))  # quick to read: no file

    monkeypatch.setattr(tfds_index, "_KEEP_AFTER_SECONDS", -1.0)
    TfdsSource(folder, "train")
    (kept,) = folder.glob("focaljax-*.npz")
    monkeypatch.setattr(tfds_index, "read_index", lambda records: pytest.fail("read again"))
    again = TfdsSource(folder, "train")
    assert again.ground_truth() == first.ground_truth()
    assert again.report.lines() == first.report.lines()
    np.testing.assert_array_equal(again[0].boxes_xyxy, first[0].boxes_xyxy)

    monkeypatch.undo()
    kept.write_bytes(b"damaged")
    assert TfdsSource(folder, "train").ground_truth() == first.ground_truth()


def test_tensorflow_is_never_imported(tmp_path):
    folder = prepare_shapes(tmp_path, num_train=2, num_val=0, num_test=0, height=32, width=32)
    code = (
        "import sys\n"
        "from focaljax.data.tfds_source import TfdsSource\n"
        f"source = TfdsSource({folder!r}, 'train')\n"
        "source[0], source.ground_truth()\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

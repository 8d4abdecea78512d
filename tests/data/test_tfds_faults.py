"""The TFDS source on damaged, missing or unfit data."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from focaljax.data import tfds_index
from focaljax.data.example import DataError, UnreadableImageError
from focaljax.data.tfds_index import parse_record
from focaljax.data.tfds_source import TfdsSource
from tests.data.tfds_layouts import VOC_NAMES, coco_features, coco_image, coco_object, encode, prepare


def test_box_without_area_is_dropped_in_training_and_kept_in_the_ground_truth(tmp_path):
    objects = [coco_object((4, 4, 4, 9), (20, 20), id=11), coco_object((1, 1, 9, 9), (20, 20), id=12)]
    prepare(tmp_path, {"train": [coco_image(5, (20, 20), objects)]}, coco_features())
    source = TfdsSource("coco/2017", "train", data_dir=tmp_path)
    np.testing.assert_array_equal(source[0].boxes_xyxy, [[1, 1, 9, 9]])
    assert source.max_boxes == 1
    assert source.report.lines() == [
        "1 x box of zero or negative area: dropped: 000000000005.jpg (image 5, annotation 11)"
    ]
    assert [annotation["id"] for annotation in source.ground_truth()["annotations"]] == [11, 12]


def test_repeated_ids_are_numbered_anew(tmp_path):
    objects = [coco_object((1, 1, 9, 9), (20, 20), id=0), coco_object((2, 2, 8, 8), (20, 20), id=3)]
    images = [coco_image(5, (20, 20), objects), coco_image(5, (20, 20), [])]
    prepare(tmp_path, {"train": images}, coco_features())
    source = TfdsSource("coco/2017", "train", data_dir=tmp_path)
    truth = source.ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2]
    assert [(annotation["id"], annotation["image_id"]) for annotation in truth["annotations"]] == [(1, 1), (2, 1)]
    assert source.report.counts() == {"image id used before: images numbered from 1": 1}


def test_label_outside_of_the_classes_is_dropped(tmp_path):
    objects = [coco_object((1, 1, 9, 9), (20, 20), id=4, label=-1), coco_object((2, 2, 8, 8), (20, 20), id=5, label=1)]
    prepare(tmp_path, {"train": [coco_image(5, (20, 20), objects)]}, coco_features())
    source = TfdsSource("coco/2017", "train", data_dir=tmp_path)
    np.testing.assert_array_equal(source[0].labels, [1])
    assert [annotation["id"] for annotation in source.ground_truth()["annotations"]] == [5]
    assert source.report.counts() == {"annotation of an unknown category: dropped": 1}


def test_unreadable_images_are_left_out_and_named(tmp_path):
    whole = encode(20, 30)
    images = [
        coco_image(
            1, (20, 30), [coco_object((1, 1, 9, 9), (20, 30), id=1)], image=io.BytesIO(whole[: len(whole) // 2])
        ),
        coco_image(2, (20, 30), [coco_object((2, 2, 9, 9), (20, 30), id=2)]),
        coco_image(3, (20, 30), [], image=io.BytesIO(b"")),
        coco_image(4, (20, 30), [], image=io.BytesIO(b"no image")),
        coco_image(5, (20, 30), [], image=io.BytesIO(encode(20, 30, suffix=".png"))),
        coco_image(6, (20, 30), [], image=io.BytesIO(encode(21, 31, suffix=".bmp"))),
    ]
    prepare(tmp_path, {"train": images}, coco_features())
    source = TfdsSource("coco/2017", "train", data_dir=tmp_path)
    assert [source[index].image_id for index in range(len(source))] == [2, 5, 6]
    assert source[2].image.shape == (21, 31, 3)
    np.testing.assert_array_equal(source[0].boxes_xyxy, [[2, 2, 9, 9]])
    assert [image["id"] for image in source.ground_truth()["images"]] == [2, 5, 6]
    assert sorted(finding.image_id or 0 for finding in source.report.findings) == [1, 3, 4]
    assert sorted(source.report.counts()) == [
        "image file empty: image skipped",
        "image file not decodable: image skipped",
        "image file truncated: image skipped",
    ]


@pytest.fixture
def counts_changed(tmp_path, monkeypatch):
    """Returns what reads four images of two objects each, with columns of some records made longer or shorter."""
    images = [
        coco_image(k, (20, 30), [coco_object((k, 1, 9, 9), (20, 30), label=k % 3, id=10 * k + n) for n in (1, 2)])
        for k in (1, 2, 3, 4)
    ]
    prepare(tmp_path, {"train": images}, coco_features())

    def read(changes):
        def changed(record):
            feature = parse_record(record)
            for name, count in changes.get(feature["image/id"].int64_list.value[0], {}).items():
                column = feature[f"objects/{name}"]
                values = column.float_list.value or column.int64_list.value
                values[:] = (list(values) * 4)[:count]
            return feature

        monkeypatch.setattr(tfds_index, "parse_record", changed)
        return TfdsSource("coco/2017", "train", data_dir=tmp_path)

    return read


@pytest.mark.parametrize(
    "columns",
    [{"label": 1}, {"label": 3}, {"label": 0}, {"bbox": 4}, {"bbox": 7}, {"is_crowd": 1}, {"id": 3}, {"area": 1}],
)
def test_record_with_more_of_one_than_of_another_is_left_out_and_named(counts_changed, columns):
    source = counts_changed({2: columns})
    assert [source[index].image_id for index in range(len(source))] == [1, 3, 4]
    assert [source[index].labels.tolist() for index in range(3)] == [[1, 1], [0, 0], [1, 1]]
    assert source.report.lines() == ["1 x objects of unequal counts: image skipped: 000000000002.jpg (image 2)"]


def test_counts_that_cancel_over_two_records_shift_no_labels(counts_changed):
    source = counts_changed({2: {"label": 1}, 3: {"label": 3}})
    assert [source[index].labels.tolist() for index in range(len(source))] == [[1, 1], [1, 1]]
    assert [finding.image_id for finding in source.report.findings] == [2, 3]


def test_split_of_unequal_counts_alone_has_no_readable_image(counts_changed):
    with pytest.raises(DataError, match="no readable image: 4 x objects of unequal counts"):
        counts_changed({k: {"label": 1} for k in (1, 2, 3, 4)})


def test_damage_behind_a_whole_header_is_an_error_of_that_image(tmp_path):
    encoded = bytearray(encode(64, 64, suffix=".png"))
    start = encoded.index(b"IDAT") + 4
    encoded[start : start + 40] = bytes(40)
    prepare(tmp_path, {"train": [coco_image(8, (64, 64), [], image=io.BytesIO(bytes(encoded)))]}, coco_features())
    source = TfdsSource("coco/2017", "train", data_dir=tmp_path)
    with pytest.raises(UnreadableImageError, match=r"000000000008\.jpg \(image 8\)"):
        source[0]


def test_split_without_one_readable_image_is_an_error(tmp_path):
    prepare(tmp_path, {"train": [coco_image(8, (9, 9), [], image=io.BytesIO(b"x"))]}, coco_features())
    with pytest.raises(DataError, match=r"no readable image.*000000000008\.jpg"):
        TfdsSource("coco/2017", "train", data_dir=tmp_path)


def test_data_set_that_is_not_prepared_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no prepared data set 'coco/2017'.*download_and_prepare"):
        TfdsSource("coco/2017", "train", data_dir=tmp_path)


@pytest.mark.parametrize("split", ["valid", "train[:900]", "train[x]", "train[:0]", ""])
def test_unknown_split_is_an_error_that_names_the_splits(coco_dir, split):
    with pytest.raises(DataError, match=r"its splits are train \(3 images\), validation \(1 images\)"):
        TfdsSource("coco/2017", split, data_dir=coco_dir)


def test_data_set_without_boxes_is_an_error(tmp_path):
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=VOC_NAMES)}
    examples = [{"image": io.BytesIO(encode(8, 8)), "label": 0}]
    folder = prepare(tmp_path, {"train": examples}, features, name="flowers", config=None)
    with pytest.raises(DataError, match="not one for detection: expected the features 'image' and 'objects'"):
        TfdsSource(folder, "train")


def test_other_file_format_is_an_error_with_the_remedy(coco_dir, tmp_path):
    folder = tmp_path / "1.1.0"
    shutil.copytree(coco_dir / "coco/2017/1.1.0", folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for shard in folder.glob("*array_record*"):
        shard.rename(folder / shard.name.replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"file format tfrecord; expected array_record.*convert_format"):
        TfdsSource(folder, "train")


def test_damaged_folder_is_an_error(coco_dir, tmp_path):
    folder = tmp_path / "1.1.0"
    shutil.copytree(coco_dir / "coco/2017/1.1.0", folder)
    shard = next(folder.glob("coco-train*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read.*prepare the data set again"):
        TfdsSource(folder, "train")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="cannot be opened.*prepare it again"):
        TfdsSource(folder, "train")


def test_missing_package_is_named(coco_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"pip install 'focaljax\[tfds\]'"):
        TfdsSource("coco/2017", "train", data_dir=coco_dir)

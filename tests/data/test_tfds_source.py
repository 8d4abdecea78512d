import io
import json
import pathlib
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
from focaljax.data.example import DataError, UnreadableImageError
from focaljax.data.shapes import prepare_shapes
from focaljax.data.tfds_source import TfdsSource, find_builder_dir

COCO_NAMES = ["person", "bicycle", "car"]
VOC_NAMES = ["aeroplane", "bicycle"]


def encode(height: int, width: int, *, suffix: str = ".jpg", seed: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.imencode(suffix, cv2.resize(coarse, (width, height)))[1].tobytes()


def coco_features() -> Any:
    objects = {
        "area": np.int64,
        "bbox": tfds.features.BBoxFeature(),
        "id": np.int64,
        "is_crowd": np.bool_,
        "label": tfds.features.ClassLabel(names=COCO_NAMES),
    }
    return {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "objects": tfds.features.Sequence(objects),
    }


def coco_object(xyxy: tuple[float, ...], size: tuple[int, int], **values: Any) -> dict[str, Any]:
    (x1, y1, x2, y2), (height, width) = xyxy, size
    bbox = tfds.features.BBox(ymin=y1 / height, xmin=x1 / width, ymax=y2 / height, xmax=x2 / width)
    return {"area": 7, "id": 1, "is_crowd": False, "label": 0, **values, "bbox": bbox}


def coco_image(image_id: int, size: tuple[int, int], objects: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    image = {"image": io.BytesIO(encode(*size, seed=image_id)), "image/filename": f"{image_id:012d}.jpg"}
    return {**image, "image/id": image_id, "objects": objects, **values}


def prepare(
    data_dir: pathlib.Path,
    splits: dict[str, list[dict[str, Any]]],
    features: dict[str, Any],
    *,
    name: str = "coco",
    config: str | None = "2017",
    version: str = "1.1.0",
) -> pathlib.Path:
    """Writes a data set with TFDS's own writer; returns its folder."""
    own_name, own_version = name, version

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = own_name
        VERSION = tfds.core.Version(own_version)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    tfds.disable_progress_bar()
    builder_config = tfds.core.BuilderConfig(name=config) if config else None
    builder = Writer(data_dir=str(data_dir), config=builder_config)
    builder.download_and_prepare(file_format="array_record", download_dir=str(data_dir / "downloads"))
    return pathlib.Path(builder.data_dir)


@pytest.fixture(scope="module")
def coco_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    data_dir = tmp_path_factory.mktemp("coco")
    train = [
        coco_image(
            139,
            (48, 64),
            [
                coco_object((1.25, 2.5, 33.17, 40.09), (48, 64), id=501, label=2, area=900),
                coco_object((0, 0, 64, 48), (48, 64), id=502, label=0, is_crowd=True, area=3000),
            ],
        ),
        coco_image(7, (33, 45), []),
        coco_image(581929, (427, 640), [coco_object((473.07, 395.93, 511.72, 427.0), (427, 640), id=503, label=1)]),
    ]
    validation = [coco_image(9, (20, 30), [coco_object((2, 3, 9, 8), (20, 30), id=1)])]
    prepare(data_dir, {"train": train, "validation": validation}, coco_features())
    return data_dir


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

"""COCO annotation files: what is read, repaired, left out, and refused."""

import concurrent.futures
import json
import math
import pathlib
import pickle
import struct

import cv2
import numpy as np
import pytest

from focaljax.data.coco import CocoSource, read_coco_json
from tests.data.conftest import annotation, kinds

COCO_SAMPLE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_sample"


def test_address_of_an_image_stands_in_for_its_file_name_as_in_lvis(document, load):
    for image in document["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/{load.folder.name}/{image.pop('file_name')}"
    (load.folder.parent / "annotations.json").write_text(json.dumps(document))
    source = CocoSource(load.folder.parent, load.folder.parent / "annotations.json")
    assert [example.file_name for example in source] == [f"images/{name}.png" for name in "cab"]
    assert not source.report.findings


def test_images_come_in_file_order_with_their_boxes(document, load):
    source = load(document)
    assert len(source) == 3
    assert source.max_boxes == 2
    assert source.report.findings == []
    first, second, third = (source[index] for index in range(3))
    assert (first.image_id, second.image_id, third.image_id) == (50, 9, 700)
    assert first.file_name == "c.png"
    assert first.image.shape == (30, 40, 3)
    assert first.image.dtype == np.uint8
    assert (first.image[0, 0, 0], second.image[0, 0, 0], third.image[0, 0, 0]) == (100, 0, 50)
    np.testing.assert_array_equal(first.boxes_xyxy, np.array([[1.5, 2, 11.5, 22.25], [5, 5, 6, 6]]))
    np.testing.assert_array_equal(first.is_crowd, [False, False])
    np.testing.assert_array_equal(third.is_crowd, [True])
    for example in (first, second, third):
        assert example.boxes_xyxy.dtype == np.float32
        assert example.labels.dtype == np.int32
        assert example.is_crowd.dtype == bool
    assert second.boxes_xyxy.shape == (0, 4)


def test_labels_are_ranks_of_the_category_ids_also_of_absent_classes(document, load):
    source = load(document)
    assert source.category_ids == (4, 17, 90)
    assert source.class_names == ("ant", "cat", "zebra")
    assert source[0].labels.tolist() == [2, 0]


def test_negative_and_too_large_indices_raise(document, load):
    source = load(document)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source[index]


def test_changing_an_example_does_not_change_the_next(document, load):
    source = load(document)
    source[0].boxes_xyxy[:] = -1
    assert (source[0].boxes_xyxy >= 0).all()


def test_ground_truth_keeps_annotations_as_they_were(document, load):
    document["annotations"].append(annotation(14, 9, 17, [-10, 5, 20, 10], area=7))  # clipped in training
    document["annotations"].append(annotation(15, 9, 17, [3, 3, 0, 0], area=0))  # dropped in training
    truth = load(document).ground_truth()
    expected = [{**entry, "ignore": entry["iscrowd"]} for entry in document["annotations"]]
    assert truth["annotations"] == expected
    assert truth["images"] == document["images"]
    assert truth["categories"] == sorted(document["categories"], key=lambda entry: entry["id"])
    json.dumps(truth)


def test_missing_area_and_crowd_flag_are_filled_in(document, load):
    document["annotations"] = [{"id": 1, "image_id": 9, "category_id": 4, "bbox": [1, 2, 3, 5]}]
    (entry,) = load(document).ground_truth()["annotations"]
    assert (entry["area"], entry["iscrowd"]) == (15.0, 0)


@pytest.mark.parametrize("ids", [(0, 1, 2), (5, 5, 6), (None, 1, 2), ("x", 1, 2)])
def test_unusable_annotation_ids_are_numbered_from_one(document, load, ids):
    for entry, annotation_id in zip(document["annotations"], ids):
        entry["id"] = annotation_id
    source = load(document)
    assert [entry["id"] for entry in source.ground_truth()["annotations"]] == [1, 2, 3]
    assert kinds(source) == ["annotation ids missing, repeated or 0: numbered from 1 for the evaluation"]


@pytest.mark.parametrize(
    ("bbox", "box_xyxy", "kind"),
    [
        ([-5, 2, 20, 10], [0, 2, 15, 12], "box outside the image: clipped"),
        ([30, 20, 100, 100], [30, 20, 40, 30], "box outside the image: clipped"),
        ([-0.4, 0, 40.8, 30.4], [0, 0, 40, 30], None),
        ([3, 3, 0, 5], None, "box of zero or negative area: dropped"),
        ([9, 9, -3, 5], None, "box of zero or negative area: dropped"),
        ([3, 3, 1e-9, 5], None, "box of zero or negative area: dropped"),
        ([50, 3, 5, 5], None, "box wholly outside the image: dropped"),
        ([-9, 3, 9, 5], None, "box wholly outside the image: dropped"),
        ([math.nan, 3, 5, 5], None, "box with NaN or infinite corners: dropped"),
        ([1, 3, math.inf, 5], None, "box with NaN or infinite corners: dropped"),
        ([1e308, 0, 1e308, 5], None, "box with NaN or infinite corners: dropped"),
        ([1, 2, 3], None, "annotation without a bbox of four numbers: dropped"),
        ([1, 2, 3, "wide"], None, "annotation without a bbox of four numbers: dropped"),
        ([1, 2, 3, [4]], None, "annotation without a bbox of four numbers: dropped"),
        ({"x": 1}, None, "annotation without a bbox of four numbers: dropped"),
        (None, None, "annotation without a bbox of four numbers: dropped"),
    ],
)
def test_faulty_box_is_repaired_or_dropped_and_named(document, load, bbox, box_xyxy, kind):
    document["annotations"].append(annotation(99, 9, 17, bbox))
    source = load(document)
    np.testing.assert_array_equal(source[1].boxes_xyxy, np.array([] if box_xyxy is None else [box_xyxy]).reshape(-1, 4))
    assert len(source[0].boxes_xyxy) == 2, "the other boxes stay"
    found = [(f.kind, f.file_name, f.image_id, f.annotation_id) for f in source.report.findings]
    assert found == ([] if kind is None else [(kind, "a.png", 9, 99)])
    json.dumps(source.ground_truth(), allow_nan=False)


@pytest.mark.parametrize("category_id", [5, None, [4], "4"])
def test_annotation_of_an_unknown_category_is_dropped_and_named(document, load, category_id):
    document["annotations"].append(annotation(99, 9, category_id, [1, 1, 5, 5]))
    source = load(document)
    assert [str(finding) for finding in source.report.findings] == ["a.png (image 9, annotation 99)"]
    assert kinds(source) == ["annotation of an unknown category: dropped"]
    assert len(source[1].boxes_xyxy) == 0
    assert len(source.ground_truth()["annotations"]) == 3


@pytest.mark.parametrize("image_id", [8, None, {"id": 9}])
def test_annotation_of_an_unknown_image_is_dropped_and_named(document, load, image_id):
    document["annotations"].append(annotation(99, image_id, 4, [1, 1, 5, 5]))
    source = load(document)
    assert kinds(source) == ["annotation of an unknown image: dropped"]
    assert source.report.findings[0].annotation_id == 99
    assert len(source.ground_truth()["annotations"]) == 3


def test_entries_that_are_no_objects_are_reported(document, load):
    document["annotations"].append(None)
    document["images"].append("a.png")
    source = load(document)
    assert len(source) == 3
    assert "image entry without an integer id and a file name: skipped" in kinds(source)
    assert "annotation of an unknown image: dropped" in kinds(source)


def test_images_that_cannot_be_used_are_skipped_with_their_annotations(document, load):
    whole = (load.folder / "a.png").read_bytes()
    (load.folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (load.folder / "empty.png").write_bytes(b"")
    (load.folder.parent / "outside.png").write_bytes(whole)
    faults = {
        "half.png": "image file truncated: image skipped",
        "empty.png": "image file empty: image skipped",
        "absent.png": "image file missing: image skipped",
        "../outside.png": "file name that leads out of the images folder: image skipped",
        str(load.folder.parent / "outside.png"): "file name that leads out of the images folder: image skipped",
    }
    for image_id, file_name in enumerate(faults, start=1000):
        document["images"].insert(1, {"id": image_id, "file_name": file_name, "width": 40, "height": 30})
        document["annotations"].append(annotation(image_id, image_id, 4, [1, 1, 5, 5]))
    source = load(document)
    assert {finding.file_name: finding.kind for finding in source.report.findings} == faults
    assert {finding.image_id for finding in source.report.findings} == set(range(1000, 1005))
    assert [source[index].image_id for index in range(len(source))] == [50, 9, 700]
    truth = source.ground_truth()
    assert [entry["id"] for entry in truth["images"]] == [50, 9, 700]
    assert [entry["id"] for entry in truth["annotations"]] == [11, 13, 12]


def test_image_of_another_size_than_annotated_is_skipped(document, load):
    document["images"][0]["width"] = 41
    source = load(document)
    assert [str(finding) for finding in source.report.findings] == ["c.png (image 50)"]
    assert kinds(source) == ["image of another size than annotated: image skipped"]
    assert len(source) == 2


@pytest.mark.parametrize("check_images", [True, False])
@pytest.mark.parametrize("height", [None, 0, -3, "30", math.nan, True])
def test_missing_size_is_taken_from_the_file(document, load, height, check_images):
    document["images"][0]["height"] = height
    source = load(document, check_images=check_images)
    assert kinds(source) == ["image without an annotated size: taken from the file"]
    assert source.ground_truth()["images"][0] == {"id": 50, "file_name": "c.png", "height": 30, "width": 40}


def test_image_annotated_upright_is_turned_by_its_exif_orientation(document, load):
    # A JPEG whose EXIF block says 6: the camera was turned, upright is the stored image turned clockwise.
    tiff = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0) + bytes(4)
    stored = np.zeros((40, 30, 3), np.uint8)
    stored[:20] = 255
    jpeg = cv2.imencode(".jpg", stored)[1].tobytes()
    exif = b"Exif\0\0" + tiff
    (load.folder / "turned.jpg").write_bytes(
        jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    )
    document["images"][1]["file_name"] = "turned.jpg"
    source = load(document)
    assert source.report.findings == []
    image = source[1].image
    assert image.shape == (30, 40, 3)
    assert image[:, 25:].min() > 200, "the bright upper half is on the right after a clockwise turn"
    assert image[:, :15].max() < 50


def test_first_of_two_images_with_one_id_is_kept(document, load):
    document["images"].append({"id": 50, "file_name": "b.png", "width": 40, "height": 30})
    source = load(document)
    assert [str(finding) for finding in source.report.findings] == ["b.png (image 50)"]
    assert source[0].file_name == "c.png"
    assert len(source[0].boxes_xyxy) == 2


def test_classes_of_another_split_can_be_enforced(document, load):
    document["categories"] = [{"id": 4, "name": "ant"}]
    source = load(document, class_names=("zebra", "ant", "bee"), category_ids=(90, 4, 1))
    assert source.class_names == ("zebra", "ant", "bee")
    assert source[0].labels.tolist() == [0, 1]
    assert [entry["id"] for entry in source.ground_truth()["categories"]] == [90, 4, 1]


def test_classes_chosen_by_name_or_by_id_leave_out_the_others(document, load):
    for options in ({"class_names": ("zebra", "cat")}, {"category_ids": (90, 17)}):
        source = load(document, **options)
        assert (source.class_names, source.category_ids) == (("zebra", "cat"), (90, 17))
        assert source[0].labels.tolist() == [0]
        assert set(kinds(source)) == {"annotation of an unknown category: dropped"}


def test_no_annotations_at_all_gives_images_without_boxes(document, load):
    document["annotations"] = []
    source = load(document)
    assert source.max_boxes == 0
    assert source[0].boxes_xyxy.shape == (0, 4)
    assert source.ground_truth()["annotations"] == []


def test_outlines_are_not_kept(document, load):
    document["annotations"][0]["segmentation"] = [[1, 1, 2, 2, 3, 1]]
    load(document)
    assert "segmentation" not in read_coco_json(load.annotations)["annotations"][0]


def test_pickled_source_reads_the_same(document, load):
    source = load(document)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0].boxes_xyxy, source[0].boxes_xyxy)
    np.testing.assert_array_equal(again[0].image, source[0].image)
    assert again.ground_truth() == source.ground_truth()


def test_threads_read_what_one_thread_reads(document, load):
    source = load(document)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(lambda index: source[index % 3], range(60)))
    for index, example in enumerate(examples):
        assert example.image_id == (50, 9, 700)[index % 3]
        np.testing.assert_array_equal(example.image, source[index % 3].image)


@pytest.mark.skipif(not COCO_SAMPLE.is_dir(), reason="../shared/data/coco_sample is absent")
@pytest.mark.parametrize(("split", "images", "annotations", "crowds"), [("train", 47, 524, 6), ("val", 57, 517, 7)])
def test_coco_sample_is_read_as_it_is(split, images, annotations, crowds):
    path = COCO_SAMPLE / "annotations" / f"instances_{split}2017.json"
    source = CocoSource(COCO_SAMPLE / "images" / f"{split}2017", path)
    assert source.report.findings == []
    assert len(source) == images
    assert len(source.class_names) == 80
    assert source.category_ids[-1] == 90
    truth = source.ground_truth()
    original = {entry["id"]: entry for entry in json.loads(path.read_text())["annotations"]}
    assert len(truth["annotations"]) == annotations
    for entry in truth["annotations"]:
        for member in ("image_id", "category_id", "bbox", "area", "iscrowd"):
            assert entry[member] == original[entry["id"]][member]
    examples = [source[index] for index in range(len(source))]
    assert sum(int(example.is_crowd.sum()) for example in examples) == crowds
    assert sum(len(example.boxes_xyxy) for example in examples) == annotations
    assert sum(len(example.boxes_xyxy) == 0 for example in examples) == (2 if split == "val" else 0)


def test_size_that_no_image_has_is_taken_from_the_file(document, load):
    document["images"][0]["width"] = 2**70
    document["images"][1]["height"] = 1e300
    source = load(document)
    assert len(source) == 3
    assert kinds(source) == ["image without an annotated size: taken from the file"] * 2


def test_box_of_negative_size_is_left_out_of_the_ground_truth_too(document, load):
    from focaljax.evaluation.coco_metrics import evaluate_detections

    document["annotations"][0]["bbox"] = [20, 2, -10, 5]
    source = load(document)
    assert kinds(source) == ["box of zero or negative area: dropped"]
    assert [entry["id"] for entry in source.ground_truth()["annotations"]] == [13, 12]
    assert evaluate_detections(source.ground_truth(), []).AP == 0.0

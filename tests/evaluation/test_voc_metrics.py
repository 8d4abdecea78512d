import json
import pathlib

import numpy as np
import pytest

from focaljax.evaluation.voc_metrics import eleven_point_average, every_point_average, voc_average_precision

ORACLE = pathlib.Path(__file__).parents[2].parent / "shared/data/coco_eval_oracle/voc_ap_case1"


def objects(*boxes, category_id=1, **extra):
    return [{"image_id": 1, "category_id": category_id, "bbox": list(box), **extra} for box in boxes]


def truth(annotations):
    return {
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "images": [{"id": 1}],
        "annotations": annotations,
    }


def read_boxes(path):
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    return [[float(value) for value in line[1:]] for line in lines]


@pytest.mark.skipif(not ORACLE.exists(), reason="the published evaluation cases are not on this machine")
@pytest.mark.parametrize(
    ("name", "interpolation"), [("every_point", every_point_average), ("eleven_point", eleven_point_average)]
)
@pytest.mark.parametrize("threshold", ["0.1", "0.3", "0.5", "0.75"])
def test_published_case_is_equal_to_its_ten_digits(name, interpolation, threshold):
    annotations, detections = [], []
    for image_id, path in enumerate(sorted((ORACLE / "gts").glob("*.txt"))):
        annotations += [{"image_id": image_id, "category_id": 1, "bbox": box} for box in read_boxes(path)]
        detections += [
            {"image_id": image_id, "category_id": 1, "score": score, "bbox": box}
            for score, *box in read_boxes(ORACLE / "dets" / path.name)
        ]
    expected = json.loads((ORACLE / "expected.json").read_text())[name][threshold]
    found = voc_average_precision(
        truth(annotations), detections, iou_threshold=float(threshold), interpolation=interpolation
    )
    # the published digits are cut, not rounded
    assert expected <= found["dog"] < expected + 1e-10


def test_second_detection_of_an_object_is_false():
    # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: area 1/2 * 1 + 1/2 * 2/3 = 5/6
    detections = objects((0, 0, 9, 9), (0, 0, 9, 9), (50, 50, 9, 9))
    for score, detection in zip((0.9, 0.8, 0.7), detections):
        detection["score"] = score
    found = voc_average_precision(truth(objects((0, 0, 9, 9), (50, 50, 9, 9))), detections)
    assert found == {"dog": pytest.approx(5 / 6, abs=1e-12)}


def test_detection_whose_best_object_is_taken_does_not_take_another():
    # both detections overlap the first object most, so the second object stays unfound: area 1/2 * 1
    annotations = objects((0, 0, 99, 99), (0, 0, 99, 89))
    detections = objects((0, 0, 99, 99), (0, 0, 99, 98))
    detections[0]["score"], detections[1]["score"] = 0.9, 0.8
    assert voc_average_precision(truth(annotations), detections) == {"dog": 0.5}


def test_detection_of_a_difficult_object_does_not_count():
    annotations = objects((0, 0, 9, 9)) + objects((50, 50, 9, 9), iscrowd=1)
    detections = objects((50, 50, 9, 9), (0, 0, 9, 9))
    detections[0]["score"], detections[1]["score"] = 0.9, 0.8
    assert voc_average_precision(truth(annotations), detections) == {"dog": 1.0}


def test_no_detections_give_zero_and_a_class_without_objects_is_absent():
    assert voc_average_precision(truth(objects((0, 0, 9, 9))), []) == {"dog": 0.0}
    only_difficult = objects((0, 0, 9, 9), iscrowd=1)
    assert voc_average_precision(truth(only_difficult), []) == {}


def test_detections_of_another_image_or_class_are_no_matches():
    elsewhere = {"image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9}
    other_class = {"image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "score": 0.9}
    assert voc_average_precision(truth(objects((0, 0, 9, 9))), [elsewhere, other_class]) == {"dog": 0.0}


def test_averages_of_no_detections_are_zero():
    nothing = np.zeros(0)
    assert every_point_average(nothing, nothing) == 0.0
    assert eleven_point_average(nothing, nothing) == 0.0

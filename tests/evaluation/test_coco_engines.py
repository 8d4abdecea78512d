"""Both engines of the COCO metrics give the same, to the last bit."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.evaluation.coco_engines import (
    DetectionTable,
    ObjectTable,
    with_hotcoco,
    with_pycocotools,
)
from focaljax.evaluation.coco_metrics import MEANINGS, evaluate_detections

ORACLE = pathlib.Path(__file__).parents[2].parent / "shared/data/coco_eval_oracle"
CASES = ("cocoapi_fakebbox100", "padilla_sampled", "fce_ignore", "bccd_val_perturbed")


def by_both(ground_truth, detections):
    """The metrics with hotcoco and, as where it is not installed, with pycocotools."""
    fast = evaluate_detections(ground_truth, detections)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hotcoco", None)
        reference = evaluate_detections(ground_truth, detections)
    assert fast.engine.startswith("hotcoco 1.")
    assert reference.engine.startswith("pycocotools 2.")
    return fast, reference


def assert_same(ground_truth, detections):
    fast, reference = by_both(ground_truth, detections)
    for name in MEANINGS:
        assert getattr(fast, name) == getattr(reference, name), name
    assert fast.per_class == reference.per_class
    return fast


def truth(annotations, num_images=1, num_classes=1):
    return {
        "images": [{"id": number} for number in range(num_images)],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(num_classes)],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": 0, **annotation}
            for number, annotation in enumerate(annotations)
        ],
    }


def detection(bbox, score=0.5, *, image_id=0, category_id=0):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


BOX, BESIDE, SMALL = [0.0, 0.0, 50.0, 50.0], [100.0, 0.0, 50.0, 50.0], [10.0, 10.0, 20.0, 20.0]


@pytest.mark.skipif(not ORACLE.exists(), reason="the published evaluation cases are not on this machine")
@pytest.mark.parametrize("case", CASES)
def test_published_cases(case):
    ground_truth, detections = (json.loads((ORACLE / case / name).read_text()) for name in ("gt.json", "dt.json"))
    assert_same(ground_truth, detections)


def test_crowds():
    crowd = {"bbox": [0.0, 0.0, 200.0, 200.0], "iscrowd": 1}
    detections = [detection(SMALL, 0.9), detection(BOX, 0.8), detection(BESIDE, 0.7), detection([300.0, 0, 9, 9], 0.6)]
    metrics = assert_same(truth([crowd, {"bbox": BOX}]), detections)
    assert 0.9 < metrics.AP <= 1.0  # only what lies outside both is false, and scores lowest
    assert_same(truth([crowd]), detections)


def test_images_without_detections_or_objects():
    objects = [{"bbox": BOX, "image_id": 0}, {"bbox": BOX, "image_id": 2}]
    metrics = assert_same(truth(objects, num_images=4), [detection(BOX, 0.9, image_id=3), detection(BOX, image_id=2)])
    # the first is false, the second one of two: precision 1/2 at 51 of 101 recall levels
    np.testing.assert_allclose(metrics.AP50, 0.5 * 51 / 101)


@pytest.mark.parametrize("objects", [[], [{"bbox": BOX}, {"bbox": SMALL}]])
def test_no_detections_at_all(objects):
    assert_same(truth(objects, num_images=2, num_classes=2), [])


def test_no_images_and_no_classes():
    assert_same(truth([], num_images=0, num_classes=0), [])


def test_classes_without_objects():
    detections = [detection(BOX, category_id=number) for number in range(80)]
    metrics = assert_same(truth([{"bbox": BOX, "category_id": 7}], num_classes=80), detections)
    assert [name for name, values in metrics.per_class.items() if values.AP >= 0] == ["class 7"]


def test_annotation_id_zero():
    metrics = assert_same(truth([{"bbox": BOX}, {"bbox": BESIDE}]), [detection(BOX), detection(BESIDE)])
    np.testing.assert_allclose(metrics.AP, 1.0)


def test_more_than_a_hundred_detections_and_equal_scores():
    detections = [detection([float(number % 7), 0.0, 50.0, 50.0], 0.5) for number in range(150)]
    assert_same(truth([{"bbox": BOX}, {"bbox": BESIDE}]), [*detections, detection(BESIDE, 0.5)])


def test_ids_that_are_strings_or_out_of_order():
    ground_truth = {
        "images": [{"id": "b"}, {"id": "a"}],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"id": 5, "image_id": "a", "category_id": 9, "bbox": BOX},
            {"id": 5, "image_id": "b", "category_id": 4, "bbox": BOX},
        ],
    }
    detections = [detection(BOX, image_id="a", category_id=9), detection(SMALL, image_id="b", category_id=4)]
    metrics = assert_same(ground_truth, detections)
    assert {name: round(values.AP50) for name, values in metrics.per_class.items()} == {"dog": 0, "cat": 1}


def test_engines_are_silent(capfd):
    by_both(truth([{"bbox": BOX}], num_images=2, num_classes=2), [detection(BOX)])
    by_both(truth([]), [])
    assert capfd.readouterr() == ("", "")


# Coordinates in few steps: equal boxes, touching boxes, IoUs exactly at a threshold, areas exactly at a border.
STEPS = st.sampled_from([0.0, 10.0, 16.0, 20.0, 32.0, 64.0, 96.0, 100.0])
SIDES = st.one_of(STEPS, st.floats(0.0, 120.0))
BOXES = st.tuples(STEPS, STEPS, SIDES, SIDES)
AREAS = st.one_of(st.none(), st.sampled_from([0.0, 1023.9, 1024.0, 9216.0, 9216.1, 1e10, 2e10, -1.0]))
SCORES = st.one_of(st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0]), st.floats(-2.0, 2.0))
NUMBERS = st.integers(1, 3)
OBJECTS = st.lists(st.tuples(NUMBERS, NUMBERS, BOXES, AREAS, st.booleans()), max_size=12)
FOUND = st.lists(st.tuples(NUMBERS, NUMBERS, BOXES, SCORES), max_size=20)


def columns(rows, count):
    return list(zip(*rows)) if rows else [()] * count


def tables(objects, detections):
    images, classes, boxes, areas, crowds = columns(objects, 5)
    boxes_xywh = np.array(boxes, np.float64).reshape(-1, 4)
    object_table = ObjectTable(
        np.array(images, np.int64),
        np.array(classes, np.int64),
        boxes_xywh,
        np.array([w * h if area is None else area for area, (_, _, w, h) in zip(areas, boxes)], np.float64),
        np.array(crowds, bool),
    )
    images, classes, boxes, scores = columns(detections, 4)
    detection_table = DetectionTable(
        np.array(images, np.int64),
        np.array(classes, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
    )
    return object_table, detection_table


@settings(max_examples=150)
@given(objects=OBJECTS, detections=FOUND)
def test_any_small_data_set(objects, detections):
    both = tables(objects, detections)
    fast, reference = (engine(*both, num_images=3, num_classes=3) for engine in (with_hotcoco, with_pycocotools))
    np.testing.assert_array_equal(fast.precision, reference.precision)
    np.testing.assert_array_equal(fast.recall, reference.recall)


@settings(max_examples=100)
@given(objects=OBJECTS, copies=st.lists(st.tuples(st.integers(0, 11), STEPS, SCORES), max_size=20))
def test_any_small_data_set_with_detections_near_the_objects(objects, copies):
    # at random hardly any detection matches an object
    detections = [
        (*objects[index % len(objects)][:2], (x, y, w + 0.05 * shift, h), score)
        for index, shift, score in copies
        if objects
        for x, y, w, h in [objects[index % len(objects)][2]]
    ]
    both = tables(objects, detections)
    fast, reference = (engine(*both, num_images=3, num_classes=3) for engine in (with_hotcoco, with_pycocotools))
    np.testing.assert_array_equal(fast.precision, reference.precision)
    np.testing.assert_array_equal(fast.recall, reference.recall)


def test_metrics_with_other_engines_are_equal_if_their_numbers_are():
    metrics = evaluate_detections(truth([{"bbox": BOX}]), [detection(BOX)])
    assert dataclasses.replace(metrics, engine="another") == metrics
    assert dataclasses.replace(metrics, AP=0.0) != metrics

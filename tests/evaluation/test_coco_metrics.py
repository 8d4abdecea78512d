import copy
import dataclasses
import io
import json
import os
import pathlib

import numpy as np
import pytest
import rich.console

from focaljax.data.example import DataError
from focaljax.evaluation.coco_metrics import (
    MEANINGS,
    UNDEFINED,
    evaluate_detections,
    metrics_table,
    read_coco_results,
    write_coco_results,
    write_evaluation,
)

ORACLE = pathlib.Path(__file__).parents[2].parent / "shared/data/coco_eval_oracle"
CASES = ("cocoapi_fakebbox100", "padilla_sampled", "fce_ignore", "bccd_val_perturbed")


def truth(annotations=(), images=(1,), categories=((1, "cat"),)):
    return {
        "images": [{"id": image_id} for image_id in images],
        "categories": [{"id": key, "name": name} for key, name in categories],
        "annotations": list(annotations),
    }


def an_object(bbox, *, image_id=1, category_id=1, **extra):
    return {"id": 1, "image_id": image_id, "category_id": category_id, "bbox": bbox, **extra}


def a_detection(bbox, score=0.9, *, image_id=1, category_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def twelve(metrics):
    return {name: getattr(metrics, name) for name in MEANINGS}


def assert_equal(number, expected):
    # pycocotools adds 2e-16 to the divisor of a precision
    np.testing.assert_allclose(number, expected, rtol=1e-12)


def decimals(number):
    return len(repr(number).partition(".")[2])


@pytest.mark.skipif(not ORACLE.exists(), reason="the published evaluation cases are not on this machine")
class TestPublishedNumbers:
    @pytest.fixture(params=CASES)
    def case(self, request):
        folder = ORACLE / request.param
        return [json.loads((folder / name).read_text()) for name in ("gt.json", "dt.json", "expected.json")]

    def test_equal_to_every_digit_given(self, case):
        ground_truth, detections, expected = case
        metrics = evaluate_detections(ground_truth, detections)
        for published in expected["published"].values():
            # a number with fewer digits than its neighbours had zeros at its end
            digits = max(decimals(number) for number in published.values())
            rounded = {name: round(value, digits) for name, value in twelve(metrics).items()}
            assert rounded == published
        assert twelve(metrics) == expected["recomputed"]["stats"]

    def test_classes_equal_the_reference(self, case):
        ground_truth, detections, expected = case
        metrics = evaluate_detections(ground_truth, detections)
        expected_classes = {
            values["name"]: (values["AP"], values["AP50"]) for values in expected["per_category_recomputed"].values()
        }
        found = {name: (values.AP, values.AP50) for name, values in metrics.per_class.items()}
        # the reference may leave out the classes without ground truth
        assert {name: found[name] for name in expected_classes} == expected_classes
        assert all(found[name][0] == UNDEFINED for name in found.keys() - expected_classes.keys())


def test_perfect_detections_have_ap_one():
    # one object of each size: 20 * 20 small, 50 * 50 medium, 200 * 200 large
    boxes = ([0, 0, 20, 20], [100, 0, 50, 50], [0, 200, 200, 200])
    metrics = evaluate_detections(truth(map(an_object, boxes)), [a_detection(box) for box in boxes])
    numbers = twelve(metrics)
    # one detection an image finds one object of three
    assert_equal(numbers.pop("AR1"), 1 / 3)
    for number in numbers.values():
        assert_equal(number, 1.0)


def test_half_of_the_objects_found():
    # recall reaches 1/2 at precision 1: 51 of the 101 recall levels (0, 0.01, .. 0.50) have precision 1, the rest 0
    objects = [an_object([0, 0, 50, 50]), an_object([100, 100, 50, 50])]
    metrics = evaluate_detections(truth(objects), [a_detection([0, 0, 50, 50])])
    assert_equal(metrics.AP, 51 / 101)
    assert metrics.AR100 == 0.5


def test_box_that_is_off_passes_only_the_low_thresholds():
    # IoU 60 / 100 = 0.6 passes the thresholds 0.50, 0.55 and (with equality) 0.60 of ten
    metrics = evaluate_detections(truth([an_object([0, 0, 10, 10])]), [a_detection([0, 0, 10, 6])])
    assert_equal(metrics.AP50, 1.0)
    assert metrics.AP75 == 0.0
    assert_equal(metrics.AP, 0.3)


def test_duplicate_detections_are_false():
    # by score: true, false (the same object again), true. Precision 1 up to recall 1/2, then 2/3:
    # 51 levels of 1 and 50 of 2/3
    objects = [an_object([0, 0, 50, 50]), an_object([100, 100, 50, 50])]
    detections = [
        a_detection([0, 0, 50, 50], 0.9),
        a_detection([0, 0, 50, 50], 0.8),
        a_detection([100, 100, 50, 50], 0.7),
    ]
    metrics = evaluate_detections(truth(objects), detections)
    assert_equal(metrics.AP, (51 + 50 * 2 / 3) / 101)
    assert metrics.AR100 == 1.0


def test_detections_inside_a_crowd_do_not_count():
    # Three detections lie in the crowd (a crowd's overlap is measured by the detection's own area) and score above
    # the true one. Without the crowd they would be false, and the precision 1/4.
    crowd = an_object([0, 0, 300, 300], iscrowd=1)
    single = an_object([400, 400, 50, 50])
    detections = [a_detection([20 * step, 10, 40, 40], 0.9) for step in range(3)]
    detections.append(a_detection([400, 400, 50, 50], 0.5))
    assert_equal(evaluate_detections(truth([crowd, single]), detections).AP, 1.0)
    assert_equal(evaluate_detections(truth([single]), detections).AP, 0.25)


def test_crowds_are_not_counted_as_objects():
    metrics = evaluate_detections(truth([an_object([0, 0, 9, 9], iscrowd=1), an_object([20, 20, 9, 9])]), [])
    assert metrics.per_class["cat"].ground_truths == 1


def test_mean_is_over_the_classes_with_ground_truth():
    # AP 1 and 0; the third class has no object and a false detection, and does not enter the mean
    categories = ((1, "cat"), (2, "dog"), (3, "owl"))
    objects = [an_object([0, 0, 50, 50]), an_object([0, 0, 50, 50], category_id=2)]
    detections = [a_detection([0, 0, 50, 50]), a_detection([0, 0, 50, 50], category_id=3)]
    metrics = evaluate_detections(truth(objects, categories=categories), detections)
    assert_equal(metrics.AP, 0.5)
    assert [values.AP for values in metrics.per_class.values()] == [pytest.approx(1.0), 0.0, UNDEFINED]
    assert [values.detections for values in metrics.per_class.values()] == [1, 0, 1]


def test_image_without_objects_adds_false_detections():
    # the false detection on the empty image 2 comes first: precision 1/2 at every recall level
    detections = [a_detection([0, 0, 50, 50], 0.9, image_id=2), a_detection([0, 0, 50, 50], 0.8)]
    metrics = evaluate_detections(truth([an_object([0, 0, 50, 50])], images=(1, 2)), detections)
    assert_equal(metrics.AP, 0.5)


def test_no_detections_give_zero_and_absent_sizes_are_undefined():
    numbers = twelve(evaluate_detections(truth([an_object([0, 0, 50, 50])]), []))
    undefined = {name for name, value in numbers.items() if value == UNDEFINED}
    assert undefined == {"APs", "APl", "ARs", "ARl"}
    assert {value for name, value in numbers.items() if name not in undefined} == {0.0}


@pytest.mark.parametrize("detections", [[], [a_detection([0, 0, 5, 5])]])
def test_no_ground_truth_is_undefined(detections):
    assert set(twelve(evaluate_detections(truth(), detections)).values()) == {UNDEFINED}


def test_no_images_and_no_categories_are_undefined():
    metrics = evaluate_detections(truth(images=(), categories=()), [])
    assert set(twelve(metrics).values()) == {UNDEFINED}
    assert metrics.per_class == {}


def test_annotation_id_zero_and_equal_ids_count_like_others():
    boxes = ([0, 0, 50, 50], [100, 100, 50, 50], [200, 200, 50, 50])
    for ids in ((0, 1, 2), (4, 4, 4), ("a", None, 0)):
        objects = [{**an_object(box), "id": key} for box, key in zip(boxes, ids)]
        metrics = evaluate_detections(truth(objects), [a_detection(box) for box in boxes])
        assert_equal(metrics.AP, 1.0)


def test_area_comes_from_the_annotation_and_else_from_the_box():
    # the box has 100 * 100 pixels (large), the object's own outline 900 (small)
    box = [0, 0, 100, 100]
    assert evaluate_detections(truth([an_object(box)]), [a_detection(box)]).APs == UNDEFINED
    assert evaluate_detections(truth([an_object(box, area=900.0)]), [a_detection(box)]).APs == pytest.approx(1.0)


def test_equal_class_names_are_told_apart_by_their_ids():
    metrics = evaluate_detections(truth([an_object([0, 0, 9, 9])], categories=((3, "cat"), (1, "cat"), (2, "dog"))), [])
    assert list(metrics.per_class) == ["cat (id 1)", "dog", "cat (id 3)"]


def test_annotations_of_unlisted_images_do_not_count():
    objects = [an_object([0, 0, 50, 50]), an_object([0, 0, 50, 50], image_id=99)]
    metrics = evaluate_detections(truth(objects), [a_detection([0, 0, 50, 50])])
    assert_equal(metrics.AP, 1.0)
    assert metrics.per_class["cat"].ground_truths == 1


def test_arguments_are_unchanged_and_nothing_is_printed(capsys):
    ground_truth = truth([an_object([0, 0, 50, 50])])
    detections = [a_detection([0, 0, 50, 50])]
    before = copy.deepcopy((ground_truth, detections))
    evaluate_detections(ground_truth, detections)
    assert (ground_truth, detections) == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        (a_detection([0, 0, 5, 5], image_id=12), r"image_id .*\(12\)"),
        (a_detection([0, 0, 5, 5], category_id=7), r"category_id .*\(7\)"),
        (a_detection([0, 0, 5, 5], float("nan")), "detection 1 of image 1 .*score nan"),
        (a_detection([0, float("nan"), 5, 5]), "detection 1 of image 1 .*bbox"),
        (a_detection([0, 0, float("inf"), 5]), "bbox"),
        (a_detection([0, 0, -1, 5]), "no size below 0"),
        (a_detection([0, 0, 5]), "bbox"),
        (a_detection("abcd"), "bbox"),
        (a_detection(["1", "2", "3", "4"]), "detection 1 of image 1 .*bbox"),
        (a_detection("1234"), "bbox '1234'"),
        (a_detection([0, 0, 5, 5, 5]), "bbox"),
        (a_detection([0, 0, None, 5]), "bbox"),
        (a_detection(np.zeros((4, 1))), "bbox"),
        (a_detection([0, 0, 5, 5], image_id=1.0), "image_id 1.0, expected an id"),
        (a_detection([0, 0, 5, 5], "high"), "score 'high'"),
        (["image_id", "category_id", "bbox", "score"], "detection 1 is a list"),
        ({"image_id": 1, "bbox": [0, 0, 5, 5]}, "detection 1 of image 1 has no category_id and no score"),
    ],
)
def test_faulty_detection_is_refused_and_named(detection, message):
    with pytest.raises(ValueError, match=message):
        evaluate_detections(truth([an_object([0, 0, 5, 5])]), [a_detection([0, 0, 5, 5]), detection])


def test_boxes_of_three_and_of_five_numbers_do_not_make_up_for_each_other():
    with pytest.raises(ValueError, match=r"detection 1 of image 1 has the bbox \[0, 0, 5\]"):
        evaluate_detections(truth(), [a_detection(box) for box in ([0, 0, 5, 5], [0, 0, 5], [0, 0, 5, 5, 5])])


def test_many_unknown_image_ids_are_counted_and_the_first_named():
    detections = [a_detection([0, 0, 5, 5], image_id=key) for key in range(100, 110)]
    with pytest.raises(ValueError, match=r"10 values of image_id .*\(100, 101, 102, 103, 104, \.\.\.\)"):
        evaluate_detections(truth(), detections)


@pytest.mark.parametrize("bbox", [None, [0, 0, float("nan"), 5], [1, 2, 3]])
def test_annotation_without_a_finite_box_is_refused_and_named(bbox):
    with pytest.raises(ValueError, match="annotation 1 of image 1"):
        evaluate_detections(truth([an_object(bbox)]), [])


def test_numpy_numbers_are_accepted():
    detection = {
        "image_id": np.int64(1),
        "category_id": np.int32(1),
        "bbox": np.array([0, 0, 50, 50], np.float32),
        "score": np.float32(0.5),
    }
    assert_equal(evaluate_detections(truth([an_object([0, 0, 50, 50])]), [detection]).AP, 1.0)


@pytest.fixture
def metrics():
    objects = [an_object([0, 0, 50, 50])]
    return evaluate_detections(truth(objects, categories=((1, "cat"), (2, "[dog]"))), [a_detection([0, 0, 50, 40])])


def test_table_shows_every_number_and_a_dash_for_undefined(metrics):
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(metrics_table(metrics, title="test"))
    lines = {line.split()[0]: line.split() for line in console.export_text().splitlines() if line.split()}
    assert set(MEANINGS) <= set(lines)
    assert lines["AP"][1] == "0.700"
    assert lines["APs"][1] == "-"
    assert lines["cat"] == ["cat", "0.700", "1.000", "1.000", "0.700", "1", "1"]
    assert lines["[dog]"] == ["[dog]", "-", "-", "-", "-", "0", "0"]


def test_evaluation_file_has_the_keys_and_null_for_undefined(tmp_path, metrics):
    path = tmp_path / "new" / "evaluation_test.json"
    write_evaluation(path, metrics, details={"split": "test"})
    written = json.loads(path.read_text())
    assert list(written) == [*MEANINGS, "per_class", "engine", "split"]
    assert written["engine"] == metrics.engine
    assert written["AP"] == metrics.AP
    assert written["APs"] is None
    assert written["per_class"]["cat"] == dataclasses.asdict(metrics.per_class["cat"]) | {"APs": None, "APl": None}
    assert written["per_class"]["[dog]"]["AP"] is None
    assert [item.name for item in path.parent.iterdir()] == ["evaluation_test.json"]


def test_details_may_not_hide_a_metric(tmp_path, metrics):
    with pytest.raises(ValueError, match="'AP50'"):
        write_evaluation(tmp_path / "evaluation.json", metrics, details={"AP50": 1.0})


def test_results_file_gives_back_what_was_written(tmp_path):
    detections = [a_detection([0.1, 1 / 3, 5.0, 7.0], 0.123456789), a_detection([0, 0, 1, 1])]
    for content in (detections, []):
        write_coco_results(tmp_path / "results.json", content)
        assert read_coco_results(tmp_path / "results.json") == content


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_coco_results(path, [])
    with pytest.raises(ValueError):
        write_coco_results(path, [a_detection([0, 0, 1, 1], float("nan"))])

    def no_replace(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", no_replace)
    with pytest.raises(OSError, match="disk full"):
        write_coco_results(path, [a_detection([0, 0, 1, 1])])
    assert read_coco_results(path) == []
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the results file"),
        (b'[{"image_id": 1,', "not valid JSON .line 1, column 17"),
        (b"\x80abc", "not text"),
        (b'{"images": [], "annotations": []}', "JSON dict, expected a list of detections: this is an annotation file"),
        (b"[1]", "detection 0 is a int"),
        (b'[{"image_id": 1, "category_id": 1, "score": 1}]', "detection 0 has no bbox"),
        (b'[{"image_id": [1], "category_id": 1, "score": 1, "bbox": [0, 0, 1, 1]}]', "expected an id"),
        (b'[{"image_id": 1, "category_id": 1, "score": 1, "bbox": [0, 0, 1]}]', "detection 0 .*bbox"),
    ],
)
def test_faulty_results_file_is_named_with_its_fault(tmp_path, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_coco_results(path)
    assert str(path) in str(raised.value)


def test_markup_and_escapes_in_title_and_class_names_are_shown_as_they_are():
    metrics = evaluate_detections(truth(categories=((1, "[/]a[red]"), (2, "b\x1b[2J\nc"))), [])
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(metrics_table(metrics, title="runs/[/]x"))
    shown = console.file.getvalue()
    for text in ("runs/[/]x", "[/]a[red]", r"b\x1b[2J\x0ac"):
        assert text in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "9" * 5000 + "]"], ids=["deep", "5000 digits"])
def test_deep_nesting_and_endless_numbers_in_results_are_one_clear_error(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=r"r\.json") as error:
        read_coco_results(tmp_path / "r.json")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("member", [{"score": 10**400}, {"bbox": [10**400, 1, 2, 3]}])
def test_numbers_beyond_floats_are_faults_of_their_detection(member):
    detection = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5} | member
    with pytest.raises(ValueError, match="detection 0 of image 1 has the"):
        evaluate_detections(truth(), [detection])

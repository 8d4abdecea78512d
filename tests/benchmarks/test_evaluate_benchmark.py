"""The benchmark of COCO's metrics, run once on few images, and the parts that judge what it measures."""

import copy
import json
import pathlib
import sys

import numpy as np
import pytest

from focaljax.evaluation.coco_metrics import MEANINGS, evaluate_detections
from tests.benchmarks.scripts import finished_script, imported, not_installed

WORK = {"num_images": 6, "detections_an_image": 20, "num_classes": 3}


@pytest.fixture(scope="module")
def modules():
    """The benchmark's modules, which find each other as a script's do."""
    with imported("evaluate", "evaluation_data", "report") as result:
        yield result


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run where faster-coco-eval is not installed."""
    folder = tmp_path_factory.mktemp("benchmark")
    flags = ["--images", "6", "--detections", "20", "--classes", "3", "--rounds", "1", "--seed", "5"]
    stand_ins = {"faster_coco_eval": not_installed("faster_coco_eval")}
    return finished_script("evaluate", folder, *flags, stand_ins=stand_ins)


def test_every_contestant_has_times_and_its_difference_from_the_reference(small_run):
    rows = {row["name"]: row for row in json.loads(small_run[1])["contestants"]}
    names = ["focaljax on hotcoco", "focaljax on pycocotools", "pycocotools", "faster-coco-eval", "hotcoco"]
    assert list(rows) == names
    assert rows.pop("faster-coco-eval") == {
        "name": "faster-coco-eval",
        "status": "not installed (faster_coco_eval)",
    }
    reference = rows["pycocotools"]["value"]["median_ms"]
    for name, row in rows.items():
        assert row["value"]["median_ms"] >= row["value"]["min_ms"] > 0
        # both are rounded: the time to 0.01 ms, which may be 1% of it
        ratio = reference / row["value"]["median_ms"]
        assert row["times_faster_than_pycocotools"] == pytest.approx(ratio, rel=0.02, abs=0.01), name
        assert row["largest_difference"] == 0
    assert [name for name, row in rows.items() if "engine" in row] == ["focaljax on hotcoco"]


def test_table_has_a_line_for_each_contestant(small_run):
    lines = small_run[0].stdout.splitlines()
    assert lines[0].startswith("6 images x 20 detections x 3 classes, ")
    missing = next(line for line in lines if line.startswith("faster-coco-eval "))
    assert missing.endswith("not installed (faster_coco_eval)")
    assert sum(line.startswith(("focaljax on", "pycocotools ", "hotcoco ")) for line in lines) == 4


def test_result_has_the_metrics_of_its_data_and_says_where_it_was_measured(small_run, modules):
    result = json.loads(small_run[1])
    metrics = evaluate_detections(*modules["evaluation_data"].synthetic_evaluation(**WORK, seed=5))
    assert result["work"]["metrics"] == {name: getattr(metrics, name) for name in MEANINGS}
    assert {"python", "numpy", "hotcoco", "pycocotools"} <= set(result["versions"])
    assert {"commit", "date", "machine"} <= set(result)
    # A result is published; the paths of who measured are nobody's business.
    assert str(pathlib.Path(sys.executable).parent) not in small_run[1]


def test_contestants_that_differ_end_the_benchmark(modules):
    numbers = {"metrics": {"AP": 0.5, "AP50": 0.7}, "class_ap": {"cat": 0.5}}
    answers = {
        "focaljax/hotcoco": {**copy.deepcopy(numbers), "engine": "hotcoco 1.3.0"},
        "focaljax/pycocotools": {**copy.deepcopy(numbers), "engine": "pycocotools 2.0.11"},
        "pycocotools": copy.deepcopy(numbers),
        "faster-coco-eval": copy.deepcopy(numbers),
    }
    check, error = modules["evaluate"].check_agreement, modules["report"].DisagreementError
    assert set(check(answers).values()) == {0.0}

    last_bit = float(np.nextafter(0.5, 1))
    answers["faster-coco-eval"]["metrics"]["AP"] = last_bit
    assert check(answers)["faster-coco-eval"] == last_bit - 0.5
    answers["faster-coco-eval"]["metrics"]["AP"] = 0.5001
    with pytest.raises(error, match=r"faster-coco-eval: metrics AP is 0\.5001, expected 0\.5"):
        check(answers)
    answers["faster-coco-eval"]["metrics"]["AP"] = float("nan")
    with pytest.raises(error, match="AP is nan"):
        check(answers)

    answers["faster-coco-eval"] = copy.deepcopy(numbers)
    answers["focaljax/hotcoco"]["class_ap"]["cat"] = last_bit
    with pytest.raises(error, match="focaljax/hotcoco: class_ap cat"):
        check(answers)
    answers["focaljax/hotcoco"]["class_ap"]["cat"] = 0.5
    answers["focaljax/hotcoco"]["engine"] = "pycocotools 2.0.11"
    with pytest.raises(error, match=r"focaljax/hotcoco: ran on pycocotools 2\.0\.11, expected hotcoco"):
        check(answers)


def test_data_are_as_large_as_those_of_coco_and_given_by_their_seed(modules):
    make = modules["evaluation_data"].synthetic_evaluation
    truth, detections = make(num_images=300, detections_an_image=100, num_classes=80, seed=0)
    assert len(truth["images"]) == 300
    assert len(detections) == 300 * 100
    assert len(truth["annotations"]) / 300 == pytest.approx(7.3, rel=0.1)
    areas = np.array([annotation["area"] for annotation in truth["annotations"]])
    assert np.mean(areas < 32**2) == pytest.approx(0.41, abs=0.03)
    assert np.mean(areas > 96**2) == pytest.approx(0.24, abs=0.03)
    boxes = np.array([annotation["bbox"] for annotation in truth["annotations"]])
    assert boxes.min() >= 0
    assert ((boxes[:, :2] + boxes[:, 2:]) <= [640.01, 480.01]).all()
    # neither all found nor nothing
    assert 0.1 < evaluate_detections(truth, detections).AP < 0.6
    assert make(**WORK, seed=1) == make(**WORK, seed=1)
    assert make(**WORK, seed=1) != make(**WORK, seed=2)


def test_wrong_flag_is_named(modules, capsys):
    with pytest.raises(SystemExit, match="2"):
        modules["evaluate"].main(["--images", "0"])
    assert "'0' is no whole number of at least 1" in capsys.readouterr().err

"""The benchmark of growing work, run at the first point of two sweeps, and the parts that make and judge its points."""

import json

import cv2
import pytest

from focaljax.cli.config import load_config
from focaljax.data.coco import CocoSource
from tests.benchmarks.scripts import finished_script, imported
from tests.cli.conftest import TINY, devices_of_runs


@pytest.fixture(scope="module")
def scale():
    with imported("scale") as modules:
        yield modules["scale"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    flags = ["--sweeps", "data", "--points", "1", "--seed", "5", "--plot", str(folder / "scale.png")]
    completed, written = finished_script("scale", folder, *flags, stand_ins={})
    return completed.stdout, json.loads(written), folder / "scale.png"


def test_points_have_time_memory_and_what_they_are_of(small_run):
    (data,) = small_run[1]["sweeps"]["data"]
    assert (data["value"], data["images"]) == (1000, 125)
    for mode in ("checked", "unchecked"):
        assert data[f"seconds_{mode}"] > 0
        assert data[f"first_batch_{mode}"] > 0
        assert data[f"peak_mib_{mode}"] >= data[f"mib_{mode}"]


def test_result_says_where_it_was_measured_and_is_drawn(small_run):
    table, result, plot = small_run
    assert result["work"] == {"backbone": "resnet50", "steps": 5, "seed": 5}
    assert {"machine", "versions", "commit", "date"} <= set(result)
    assert "1,000" in table
    assert cv2.imread(str(plot)).std() > 5


def test_a_step_is_measured_at_the_settings_of_its_point(scale, monkeypatch):
    seen = []

    def measure(config, *, classes, boxes, steps):
        seen.append((config.model.backbone, config.optim.batch_size, config.data.image_size, boxes, classes, steps))
        return {}

    with imported("train_step") as modules:
        monkeypatch.setattr(modules["train_step"], "measure", measure)
        for name, value in (("batch", 4), ("size", 384), ("boxes", 50), ("classes", 1203)):
            scale.measure_step("resnet18", steps=3, seed=0, **scale.SWEEPS[name].settings(value))
    assert seen == [
        ("resnet18", 4, (256, 256), 8, 80, 3),
        ("resnet18", 1, (384, 384), 8, 80, 3),
        ("resnet18", 2, (256, 256), 50, 80, 3),
        ("resnet18", 2, (256, 256), 8, 1203, 3),
    ]


def test_measured_step_has_time_memory_and_arithmetic():
    config = load_config([f"--config={TINY}"])
    with imported("train_step") as modules, devices_of_runs(1):
        point = modules["train_step"].measure(config, classes=3, boxes=12, steps=2)
    assert point["milliseconds_a_step"] >= point["fastest"] > 0
    assert point["images_per_second"] == pytest.approx(8e3 / point["milliseconds_a_step"], rel=0.02)
    assert point["gflop_per_step"] > 0
    assert point["mib_of_temporaries"] > 0
    assert point["mib_of_state"] > 4  # 465,453 parameters, Adam's two moments and an average


def test_data_set_has_as_many_boxes_as_asked_and_none_at_fault(scale, tmp_path):
    scale.make_data_set(tmp_path, 80)
    source = CocoSource(tmp_path / "images", tmp_path / "annotations.json")
    assert (len(source), source.max_boxes, len(source.report.findings)) == (10, 8, 0)
    assert source[9].image.shape == (48, 64, 3)


def test_growth_is_the_exponent_from_the_point_before(scale):
    points = [{"value": value, "milliseconds_a_step": ms} for value, ms in ((10, 5.0), (20, 10.0), (40, 40.0))]
    assert [point.get("growth") for point in scale.with_growth("boxes", points)] == [None, 1.0, 2.0]
    # Twice the side is four times the pixels.
    sides = [{"value": 64, "milliseconds_a_step": 1.0}, {"value": 128, "milliseconds_a_step": 4.0}]
    assert scale.with_growth("size", sides)[1]["growth"] == 1.0
    data = [{"value": 1000, "seconds_checked": 1.0}, {"value": 10_000, "seconds_checked": 1.0}]
    assert scale.with_growth("data", data)[1]["growth"] == 0.0

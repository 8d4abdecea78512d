"""The benchmark of growing work, run at the first point of two sweeps, and the parts that make and judge its points."""

import json

import cv2
import pytest

from focaljax.data.coco import CocoSource
from tests.benchmarks.scripts import finished_script, imported


@pytest.fixture(scope="module")
def scale():
    with imported("scale") as modules:
        yield modules["scale"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    flags = ["--sweeps", "boxes,data", "--points", "1", "--backbone", "resnet_tiny", "--steps", "1", "--seed", "5"]
    flags += ["--plot", str(folder / "scale.png")]
    completed, written = finished_script(
        "scale", folder, *flags, stand_ins={}, XLA_FLAGS="", JAX_DISABLE_MOST_OPTIMIZATIONS="1"
    )
    return completed.stdout, json.loads(written), folder / "scale.png"


def test_points_have_time_memory_and_what_they_are_of(small_run):
    (boxes,), (data,) = small_run[1]["sweeps"].values()
    assert boxes["value"] == 1
    assert boxes["milliseconds_a_step"] >= boxes["fastest"] > 0
    assert boxes["images_per_second"] == pytest.approx(2e3 / boxes["milliseconds_a_step"], rel=0.01)
    assert boxes["mib_of_temporaries"] > 0
    assert (data["value"], data["images"]) == (1000, 125)
    for mode in ("checked", "unchecked"):
        assert data[f"seconds_{mode}"] > 0
        assert data[f"first_batch_{mode}"] > 0
        assert data[f"peak_mib_{mode}"] >= data[f"mib_{mode}"]


def test_result_says_where_it_was_measured_and_is_drawn(small_run):
    table, result, plot = small_run
    assert result["work"] == {"backbone": "resnet_tiny", "steps": 1, "seed": 5}
    assert {"machine", "versions", "commit", "date"} <= set(result)
    assert "boxes on an image" in table
    assert "1,000" in table
    assert cv2.imread(str(plot)).std() > 5


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

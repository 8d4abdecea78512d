"""The benchmark of prediction, run once on small images, and the parts that judge what it measures."""

import json
import pathlib
import sys

import numpy as np
import pytest

from tests.benchmarks.scripts import finished_script, imported, not_installed


@pytest.fixture(scope="module")
def modules():
    """The benchmark's modules, which find each other as a script's do."""
    with imported("predict", "predict_batch", "report") as result:
        yield result


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run where torch is not installed."""
    folder = tmp_path_factory.mktemp("benchmark")
    flags = ["--image-size", "64", "--forms", "eager", "--rounds", "1", "--seed", "5"]
    torch = {"torch": not_installed("torch")}
    return finished_script("predict", folder, *flags, stand_ins=torch)


def test_throughput_and_latency_have_times(small_run):
    result = json.loads(small_run[1])
    ours, peer = result["contestants"]
    for task, images in (("throughput", 2), ("latency", 1)):
        assert ours[task]["median_ms"] >= ours[task]["min_ms"] > 0
        assert ours[task]["times_focaljax"] == 1.0
        assert ours[task]["images_per_second"] == pytest.approx(images / ours[task]["median_ms"] * 1e3, rel=0.01)
        assert peer[task] == {"status": "not installed (torch)"}
    assert result["work"]["batch_size"] == {"throughput": 2, "latency": 1}
    # both images have objects to compare
    assert all(0 < count <= 300 for count in result["work"]["detections"])
    assert len(result["work"]["detections"]) == 2


def test_table_has_a_line_for_each_contestant(small_run):
    lines = small_run[0].stdout.splitlines()
    assert lines[0].startswith("RetinaNet R50-FPN, torchvision_v1, 64 x 64 px, float32, cpu, 2 threads: ")
    assert [line.split()[0] for line in lines[5:7]] == ["focaljax", "torchvision"]
    assert lines[6].endswith("not installed (torch)")


def test_result_says_where_and_on_what_it_was_measured(small_run):
    result = json.loads(small_run[1])
    assert {"python", "jax", "flax"} <= set(result["versions"])
    assert {"commit", "date", "machine"} <= set(result)
    # A result is published; the paths of who measured are nobody's business.
    assert str(pathlib.Path(sys.executable).parent) not in small_run[1]


def found(*rows):
    """Detections of an image from (x, score, label), boxes of 10 x 10 pixels."""
    return {
        "boxes": [[x, 0.0, x + 10, 10.0] for x, _, _ in rows],
        "scores": [score for _, score, _ in rows],
        "labels": [label for _, _, label in rows],
    }


def test_like_detections_are_counted_once_whatever_their_order(modules):
    predict = modules["predict"]
    count, tolerance = predict.count_same, predict.Tolerance(score=0.01, pixels=0.5, share=1.0)
    ours = found((0, 0.9, 1), (50, 0.8, 2), (80, 0.7, 3))
    assert count(ours, found((80.4, 0.705, 3), (50, 0.8, 2), (0, 0.9, 1)), tolerance) == 3
    assert count(ours, found((0, 0.9, 1), (0, 0.9, 1)), tolerance) == 1
    for other in ((0.6, 0.9, 1), (0, 0.88, 1), (0, 0.9, 2), (float("nan"), 0.9, 1)):
        assert count(ours, found(other), tolerance) == 0
    assert count(found(), ours, tolerance) == count(ours, found(), tolerance) == 0


def test_contestants_that_find_other_objects_end_the_benchmark(modules):
    predict = modules["predict"]

    def reports(ours, theirs):
        return {
            f"{name}/latency": {"status": "ok", "answer": {"detections": detections}}
            for name, detections in (("focaljax", ours), ("eager", theirs))
        }

    def check(ours, theirs):
        predict.check_agreement("latency", reports(ours, theirs), predict.EXACT)

    one, two = found((0, 0.9, 1)), found((0, 0.9, 1), (50, 0.8, 2))
    check([one, two], [one, two])
    predict.check_agreement("latency", reports([one], [one]) | {"compile/latency": {"status": "failed"}}, predict.EXACT)
    with pytest.raises(
        modules["report"].DisagreementError, match="image 1: focaljax has 1 detections, eager 2, of which"
    ):
        check([two, one], [two, two])
    # nothing found says nothing
    with pytest.raises(modules["report"].DisagreementError, match="only 0 are the same"):
        check([found()], [found()])


def test_images_are_given_by_their_seed_and_whole(modules):
    make = modules["predict_batch"].synthetic_images
    images = make(2, 72, seed=1)
    assert (images.shape, images.dtype) == ((2, 72, 72, 3), np.uint8)
    assert (images == make(2, 72, seed=1)).all()
    assert (images != make(2, 72, seed=2)).any()
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image-size", "500"], "500 is no multiple of 32"),
        (["--forms", "eager,fast"], "no 'fast'"),
        (["--batch-size", "0"], "'0' is no whole number of at least 1"),
    ],
)
def test_wrong_flag_is_named(modules, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        modules["predict"].main(flags)
    assert message in capsys.readouterr().err

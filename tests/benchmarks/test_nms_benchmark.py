"""The benchmark of suppression, run once on few boxes, and the parts that judge what it measures."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

from tests.benchmarks.scripts import finished_script, imported, not_installed


@pytest.fixture(scope="module")
def modules():
    """The benchmark's modules, which find each other as a script's do."""
    with imported("nms", "nms_boxes", "report") as result:
        yield result


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run where torch is not installed."""
    folder = tmp_path_factory.mktemp("benchmark")
    flags = ["--candidates", "60,200", "--limits", "10,all", "--classes", "3", "--rounds", "1", "--seed", "5"]
    return finished_script("nms", folder, *flags, stand_ins={"torch": not_installed("torch")})


def greedy(boxes, scores, labels, iou_threshold):
    """The indices of the boxes kept, best first, pair by pair."""
    kept = []
    for i in np.argsort(-scores):
        for j in kept:
            low, high = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
            common = np.prod(np.maximum(high - low, 0), dtype=float)
            union = sum(np.prod(boxes[k, 2:] - boxes[k, :2], dtype=float) for k in (i, j)) - common
            if labels[i] == labels[j] and common > iou_threshold * union:
                break
        else:
            kept.append(i)
    return kept


def test_every_task_has_times_and_the_boxes_kept(small_run, modules):
    tasks = json.loads(small_run[1])["tasks"]
    assert [(task["candidates"], task["limit"]) for task in tasks] == [(60, 10), (60, None), (200, 10), (200, None)]
    for task in tasks:
        boxes = modules["nms_boxes"].synthetic_candidates(task["candidates"], 3, seed=5)
        kept = len(greedy(*boxes, 0.5))
        assert task["kept"] == min(kept, task["limit"] or kept)
        assert task["kept"] < task["candidates"]
        ours = task["focaljax"]
        assert ours["median_ms"] >= ours["min_ms"] > 0
        assert ours["times_focaljax"] == 1.0
        assert len(ours["ms"]) == 1


def test_peer_that_is_not_installed_is_named_without_numbers(small_run):
    for task in json.loads(small_run[1])["tasks"]:
        assert task["torchvision"] == {"status": "not installed (torch)"}
    assert small_run[0].stdout.count("not installed (torch)\n") == 4


def test_result_says_where_and_on_what_it_was_measured(small_run):
    result = json.loads(small_run[1])
    work = result["work"]
    assert (work["classes"], work["iou_threshold"], work["seed"], work["rounds"]) == (3, 0.5, 5, 1)
    assert result["machine"]["cpu"]
    assert {"python", "jax", "jaxlib"} <= set(result["versions"])
    assert {"commit", "date"} <= set(result)
    # A result is published; the paths of who measured are nobody's business.
    assert str(pathlib.Path(sys.executable).parent) not in small_run[1]


def test_indices_told_by_the_scores_are_those_of_plain_loops(modules):
    library = object.__new__(importlib.import_module("nms_with_jax").Library)
    library._num_classes, library._iou_threshold, library._seed = 2, 0.5, 1
    library.jax = importlib.import_module("jax")
    answer = library.answer(library.build("focaljax/80/30"))
    assert answer["kept"] == greedy(*modules["nms_boxes"].synthetic_candidates(80, 2, 1), 0.5)[:30]


def test_contestants_that_keep_other_boxes_end_the_benchmark(modules):
    def reports(ours, theirs):
        lists = {"focaljax/9/all": ours, "torchvision/9/all": theirs}
        return {key: {"status": "ok", "answer": {"kept": kept}} for key, kept in lists.items()}

    check = modules["nms"].check_agreement
    check("9/all", reports([3, 1, 2], [3, 1, 2]))
    check("9/all", reports([3], []) | {"torchvision/9/all": {"status": "not installed (torch)"}})
    for theirs, message in (
        ([3, 2, 1], "row 1 is box 1 of ours and 2 of theirs"),
        ([3, 1], "keeps 3 boxes, torchvision 2; row 2 is box 2 of ours and None of theirs"),
    ):
        with pytest.raises(modules["report"].DisagreementError, match=message):
            check("9/all", reports([3, 1, 2], theirs))


def test_candidates_are_distinct_in_score_exact_in_position_and_given_by_their_seed(modules):
    make = modules["nms_boxes"].synthetic_candidates
    boxes, scores, labels = make(1000, 80, seed=1)
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int32)
    assert boxes.shape == (1000, 4)
    assert len(np.unique(scores)) == 1000
    assert scores.min() > 0.05
    assert scores.max() == 1
    assert (boxes * 16 % 1 == 0).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 800
    assert set(labels) == set(range(80))
    assert all((one == again).all() for one, again in zip((boxes, scores, labels), make(1000, 80, seed=1)))
    assert make(1, 1, seed=0)[0].shape == (1, 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limits", "100,most"], "'most' is no whole number of at least 1"),
        (["--candidates", "0"], "'0' is no whole number of at least 1"),
    ],
)
def test_wrong_flag_is_named(modules, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        modules["nms"].main(flags)
    assert message in capsys.readouterr().err

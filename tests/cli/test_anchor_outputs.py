"""What a trained detector gives for each anchor, and the figure of the scores that is made from it."""

import csv
import json
import pathlib
import runpy
import shutil

import cv2
import jax
import numpy as np
import pytest

from focaljax import losses
from focaljax.cli.anchor_outputs import anchor_outputs, name_of
from focaljax.detection.postprocess import softmax_log_odds

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
SCORES, FIGURE4 = EXPERIMENTS / "scores" / "scores.py", EXPERIMENTS / "figure4" / "figure4.py"


@pytest.fixture(scope="module")
def outputs(finished_run):
    return [jax.device_get(of_image) for of_image in anchor_outputs(str(finished_run), "val", 3)]


def test_highest_score_of_an_image_is_that_of_its_best_detection(finished_run, outputs):
    detections = json.loads((finished_run / "detections_val.json").read_text())
    best: dict[int, float] = {}
    for detection in detections:
        best[detection["image_id"]] = max(best.get(detection["image_id"], 0.0), detection["score"])
    expected = [best[image_id] for image_id in sorted(best)][: len(outputs)]
    found = [float(jax.nn.sigmoid(logits).max()) for logits, _ in outputs]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def with_setting(run, folder, room, name, value):
    workdir = shutil.copytree(run, folder / "run")
    settings = json.loads((workdir / "config.json").read_text())
    settings[room][name] = value
    (workdir / "config.json").write_text(json.dumps(settings))
    return workdir


def test_boxes_beyond_those_of_the_training_count(finished_run, outputs, tmp_path):
    workdir = with_setting(finished_run, tmp_path, "data", "max_boxes", 1)
    labels = [of_image for _, of_image in anchor_outputs(str(workdir), "val", 3)]
    np.testing.assert_array_equal(labels, [of_image for _, of_image in outputs])
    assert any(len(set(of_image[of_image >= 0])) > 1 for _, of_image in outputs)  # more than one object


def test_outputs_of_a_softmax_loss_are_log_odds(finished_run, outputs, tmp_path):
    workdir = with_setting(finished_run, tmp_path, "loss", "classification", "softmax_focal")
    (logits, labels), *rest = anchor_outputs(str(workdir), "val", 1)
    assert not rest
    np.testing.assert_allclose(logits, softmax_log_odds(outputs[0][0]), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(labels, outputs[0][1])


def test_scores_of_objects_and_background_are_told_apart(finished_run, outputs, tmp_path):
    script = runpy.run_path(str(SCORES))
    script["main"](["--workdir", str(finished_run), "--images", "3", "--out", str(tmp_path)])
    with (tmp_path / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["row"] == finished_run.name
    of_class = [
        jax.nn.sigmoid(logits[anchor, labels[anchor]])
        for logits, labels in outputs
        for anchor in np.flatnonzero(labels >= 0)
    ]
    others = np.concatenate(
        [np.ravel(jax.nn.sigmoid(logits[labels == losses.BACKGROUND])) for logits, labels in outputs]
    )
    assert (int(row["assigned"]), int(row["background"])) == (len(of_class), len(others))
    for kind, values in (("assigned", of_class), ("background", others)):
        for level in script["QUANTILES"][kind]:
            assert float(row[f"{kind} {level:g}"]) == pytest.approx(np.quantile(values, level), abs=2e-5)
    assert cv2.imread(str(tmp_path / "scores.png")).std() > 5


def test_run_of_a_sweep_has_the_name_of_its_row(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"data": "bccd", "row": "GHM", "seed": 1, "AP": 0.25}))
    assert name_of(tmp_path) == {"data": "bccd", "row": "GHM", "seed": 1, "AP": "0.250"}
    (tmp_path / "result.json").write_text("{")
    assert name_of(tmp_path)["row"] == tmp_path.name


@pytest.mark.parametrize("script", [SCORES, FIGURE4])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "foo"], "invalid choice"),
        (["--images", "0"], "at least 1"),
        ([], "does not exist: --workdir must be"),
    ],
)
def test_mistake_is_one_line(tmp_path, capsys, script, arguments, words):
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script))["main"](["--workdir", str(tmp_path), *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err

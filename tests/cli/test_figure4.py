"""The figure of the losses of a trained detector's anchors, made from a run."""

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
from focaljax.cli import datasets
from focaljax.cli.anchor_outputs import anchor_outputs
from focaljax.cli.evaluate import saved_run

SCRIPT = pathlib.Path(__file__).parents[2] / "experiments" / "figure4" / "figure4.py"


def test_figure_has_the_anchors_of_every_object(finished_run, one_device, tmp_path):
    figure4 = runpy.run_path(str(SCRIPT))
    # As most configs have it: as many boxes as an image has.
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    settings = json.loads((workdir / "config.json").read_text())
    settings["data"]["max_boxes"] = 0
    (workdir / "config.json").write_text(json.dumps(settings))
    figure4["main"](["--workdir", str(workdir), "--out", str(tmp_path)])
    config, folder = saved_run(str(workdir), ())
    source = datasets.make_source(config, "val", classes=datasets.load_classes(folder))
    objects = sum(len(source[index].labels) for index in range(len(source)))
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["anchors"], float(row["gamma"])) for row in rows] == [
        (name, gamma) for name in ("assigned", "background") for gamma in figure4["GAMMAS"]
    ]
    assigned, background = rows[: len(figure4["GAMMAS"])], rows[len(figure4["GAMMAS"]) :]
    # The low-quality rule leaves no object without an anchor.
    assert {row["number"] for row in assigned} == {assigned[0]["number"]}
    assert int(assigned[0]["number"]) >= objects > 0
    assert int(background[0]["number"]) > int(assigned[0]["number"])
    for of_kind in (assigned, background):
        assert (np.diff([float(row["sum"]) for row in of_kind]) < 0).all()
        assert 0 < float(of_kind[0]["hardest 0.1"]) <= float(of_kind[0]["hardest 0.5"]) < 1
    assert cv2.imread(str(tmp_path / "figure4.png")).std() > 5


def test_table_has_the_losses_of_all_anchors_of_each_run(finished_run, tmp_path):
    figure4 = runpy.run_path(str(SCRIPT))
    figure4["main"](["--workdir", str(finished_run), str(finished_run), "--images", "3", "--out", str(tmp_path)])
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[:8] == rows[8:]
    outputs = [jax.device_get(of_image) for of_image in anchor_outputs(str(finished_run), "val", 3)]
    for row in rows[:8]:
        gamma, losses_of = float(row["gamma"]), []
        for logits, labels in outputs:
            targets = labels[:, None] == np.arange(logits.shape[1])
            p_other = 1 / (1 + np.exp(np.where(targets, logits, -logits).astype(np.float64)))
            loss = (p_other**gamma * -np.log1p(-p_other)).sum(axis=1)
            losses_of.append(loss[labels >= 0 if row["anchors"] == "assigned" else labels == losses.BACKGROUND])
        loss = np.sort(np.concatenate(losses_of))
        assert int(row["number"]) == len(loss)
        assert float(row["sum"]) == pytest.approx(loss.sum(), rel=1e-4)
        assert float(row["hardest 0.1"]) == pytest.approx(loss[-round(len(loss) / 10) :].sum() / loss.sum(), abs=1e-3)

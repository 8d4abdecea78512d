"""The figure of the losses of a trained detector's anchors, made from a run."""

import csv
import json
import pathlib
import runpy
import shutil

import cv2
import numpy as np

from focaljax.cli import datasets
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

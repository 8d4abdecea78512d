"""Names from data on the terminal and in file names: they neither act nor lead anywhere."""

import io
import json
import pathlib
import sys

import cv2
import numpy as np
import pytest

from focaljax.cli import console, datasets
from focaljax.cli.detector_flags import read_class_names
from focaljax.cli.main import UsageError, main
from tests.cli.conftest import TINY


def test_said_lines_have_no_escapes_and_suit_the_terminals_encoding(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    console.say("class a\x1b[2J\nb \u65e5 \ud800 [red]x[/red] [/]")
    assert written.getvalue() == rb"class a\x1b[2J\x0ab \u65e5 \ud800 [red]x[/red] [/]" + b"\n"


@pytest.mark.parametrize("description", ["decoding for [/]", "[red]x[/red]", "a\x1b[2J"])
def test_progress_bar_takes_any_folder_name(monkeypatch, description):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert list(console.track("ab", description, 2)) == ["a", "b"]


def test_an_error_that_quotes_escapes_and_megabytes_is_one_short_line(tmp_path, capsys):
    name = "\x1b[2J" + "x" * 100_000
    (tmp_path / "a.json").write_text(json.dumps({name: 1}))
    flags = ["--config.data.source=coco", f"--config.data.root={tmp_path}"]
    flags += ["--config.data.train.images=.", "--config.data.train.annotations=a.json"]
    assert main(["samples", "--config", TINY, "--out", str(tmp_path / "out"), *flags]) == 1
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert len(error) < 5000
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" + "9" * 5000 + "]", '[{"id": 1, "name": ["cat"]}]', '[{"id": "1", "name": "cat"}]', "5"],
    ids=["deep", "5000 digits", "name that is a list", "id that is text", "number"],
)
def test_hostile_classes_are_a_clear_error(tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UsageError, match=r"classes\.json cannot be read"):
        datasets.load_classes(tmp_path)
    if text != "5":  # a class of that name, one a line
        with pytest.raises(UsageError, match=r"classes\.json"):
            read_class_names(tmp_path / "classes.json")


def test_samples_of_files_with_any_names_stay_in_their_folder_and_apart(tmp_path, capsys):
    names = ["a/x.jpg", "b/x.png", "..\x1b[2J\n.png", "[/].png", ".png.png", "\u65e5" * 70 + ".png"]
    images = []
    for place, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, np.full((64, 64, 3), 20 * place, np.uint8))[1].tobytes())
        images.append({"id": place + 1, "file_name": name, "height": 64, "width": 64})
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "[/]\x1b[2J"}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    flags = ["--config.data.source=coco", f"--config.data.root={tmp_path}"]
    flags += ["--config.data.train.images=images", "--config.data.train.annotations=a.json"]
    out = tmp_path / "deep" / "out"
    before = set(tmp_path.rglob("*"))
    assert main(["samples", "--config", TINY, "--out", str(out), *flags]) == 0
    assert "\x1b" not in "".join(capsys.readouterr())
    written = json.loads((out / "annotations.json").read_text())["images"]
    new = set(tmp_path.rglob("*")) - before
    assert all(path == out.parent or path.is_relative_to(out) for path in new)
    shades = [cv2.imread(str(out / "images" / entry["file_name"]))[0, 0, 0] for entry in written]
    assert np.abs(np.array(shades, int) - 20 * np.arange(len(names))).max() <= 2
    assert len(list(pathlib.Path(out, "images").iterdir())) == len(names)

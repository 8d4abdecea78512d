"""focaljax report: what is on the page, of a run that is finished, that is not, that lost its data, and of a sweep."""

import json
import os
import pathlib
import re
import shutil
import types

import numpy as np
import pytest
from matplotlib.figure import Figure

from focaljax.cli import datasets, report_run
from focaljax.cli.config import load_config
from focaljax.cli.main import main
from focaljax.cli.runtime import only_run_in
from focaljax.cli.sweep_report import write_report
from focaljax.cli.watching import note_start
from focaljax.evaluation.coco_engines import DetectionTable
from focaljax.evaluation.coco_metrics import MEANINGS, evaluate_detections, write_coco_results, write_evaluation
from focaljax.sweeps import Row, Sweep
from focaljax.training.metrics import read_metrics, read_timings
from tests.browser import assert_fit_to_be_read, look_at, needs_chromium
from tests.evaluation.test_page import Parsed

pytestmark = pytest.mark.usefixtures("one_device")


def report(workdir, *flags):
    out = workdir / "page.html"
    assert main(["report", "--workdir", str(workdir), "--out", str(out), *flags]) == 0
    parsed = Parsed(out.read_text(encoding="utf-8"))
    text = " ".join("".join(parsed.words).split())
    headings = list(dict.fromkeys(word for word in parsed.words if word in HEADINGS))
    return parsed, text, headings


HEADINGS = (
    "Summary", "Curves", "Classes", "Precision and recall", "Scores", "Confusions", "Images", "Detections", "Settings",
    "Runs", "Table, tiny",
)  # fmt: skip


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the files of the run, without its checkpoints and results that other tests may have made anew."""
    for name in ("config.json", "classes.json", "metrics.jsonl", "timings.jsonl", "starts.jsonl"):
        shutil.copy(finished_run / name, tmp_path / name)
    return tmp_path


def evaluate_almost_perfectly(workdir, tiny_source, overrides=()):
    """Writes an evaluation and detections that are the truth, but for two: one object is missed, one box is wrong."""
    truth = tiny_source.ground_truth()
    keys = ("image_id", "category_id", "bbox")
    results = [{**{key: one[key] for key in keys}, "score": 0.9} for one in truth["annotations"]]
    missed = results.pop(0)
    results.append({**missed, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.8})
    metrics = evaluate_detections(truth, results)
    write_evaluation(
        workdir / "evaluation_val.json", metrics, details={"split": "val", "step": 6, "overrides": overrides}
    )
    write_coco_results(workdir / "detections_val.json", results)
    return metrics, missed


def class_name(source, category_id):
    return source.class_names[source.category_ids.index(category_id)]


@pytest.fixture(scope="module")
def tiny_source(tiny):
    return datasets.make_source(load_config([f"--config={tiny[1]}", *tiny[2:]]), "val")


def test_page_of_a_finished_run_has_all_and_loads_nothing(run, tiny_source):
    metrics, missed = evaluate_almost_perfectly(run, tiny_source)
    parsed, text, headings = report(run, "--pictures=2")
    assert headings == [name for name in HEADINGS[:9] if name != "Detections"]
    assert f"{metrics.AP:.3f}, at step 6" in text
    assert "finished, 6 steps" in text
    assert "focaljax train --config" in text
    assert "jax " in text
    assert "images/s (median)" in text
    for name, of_class in metrics.per_class.items():
        cells = [name, *(f"{value:.3f}" for value in (of_class.AP, of_class.AP50, of_class.AP75))]
        first = parsed.words.index(name)
        assert parsed.words[first : first + 5] == [*cells, str(of_class.ground_truths)]
    # The image with the missed object is the only one with errors; then the two best.
    worst, *best = (picture["alt"] for picture in parsed.named("img"))
    assert f"(image {missed['image_id']})" in worst
    assert "1 missed, 1 wrong" in worst
    assert [name.partition(":")[0] for name in best] == ["best 1", "best 2"]
    assert all("0 missed, 0 wrong: F1 1.000" in name for name in best)
    # Beside the objects of the class that lacks one: the highest F1, without the wrong box, and its score.
    place = parsed.words.index(class_name(tiny_source, missed["category_id"]))
    objects = int(parsed.words[place + 4])
    assert parsed.words[place + 5 : place + 7] == [f"{2 * (objects - 1) / (2 * objects - 1):.3f}", "0.900"]
    assert len(parsed.named("svg")) == 4
    # In the settings: one that differs, beside its default.
    place = parsed.words.index("model.backbone")
    assert parsed.words[place : place + 3] == ["model.backbone", "resnet_tiny", "resnet50"]
    for _, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes


def test_every_file_and_every_number_is_on_the_page_about_runs(finished_run):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    names = {name for record in read_metrics(finished_run) + read_timings(finished_run) for name in record}
    assert "positive_share" in names
    missing = [name for name in names - {"step", "split"} if name not in page]
    files = {re.sub("_(train|val|test)", "_SPLIT", path.name) for path in finished_run.iterdir()}
    assert not [*missing, *(name for name in files if f"`{name}" not in page)]


def test_score_threshold_is_that_of_the_flag(run, tiny_source):
    _, missed = evaluate_almost_perfectly(run, tiny_source)
    worst = report(run, "--pictures=1", "--min_score=0.85")[0].named("img")[0]["alt"]
    assert f"(image {missed['image_id']})" in worst
    assert "1 missed, 0 wrong" in worst  # the wrong one has 0.8


def test_confusions_are_of_the_detections_from_the_score_on(run, tiny_source, monkeypatch):
    drawn = []
    monkeypatch.setattr(report_run, "confusion_figure", lambda counts, names: drawn.append(counts) or Figure())
    _, missed = evaluate_almost_perfectly(run, tiny_source)
    row = tiny_source.category_ids.index(missed["category_id"])
    for score, wrong in (("0.3", 1), ("0.85", 0)):
        report(run, f"--min_score={score}", "--pictures=0")
        assert drawn[-1][row, -1] == 1
        assert drawn[-1][-1, row] == drawn[-1][-1].sum() == wrong


def test_of_many_classes_the_confused_pairs_are_listed(run, tiny_source, monkeypatch):
    evaluate_almost_perfectly(run, tiny_source)
    monkeypatch.setattr(report_run, "MOST_CELLS", 2)
    truth = tiny_source.ground_truth()["annotations"][1:]
    first, second = (next(one for one in truth if one["category_id"] == key) for key in tiny_source.category_ids[:2])
    results = json.loads((run / "detections_val.json").read_text())
    for result in results:
        if result["image_id"] == first["image_id"] and result["bbox"] == first["bbox"]:
            result["category_id"] = second["category_id"]
    results.append(
        {"image_id": first["image_id"], "category_id": first["category_id"], "bbox": [9, 9, 1, 1], "score": 1}
    )
    write_coco_results(run / "detections_val.json", results)
    words = report(run, "--pictures=0")[0].words
    place = words.index("seen as", words.index("Confusions"))
    assert words[place + 1] == "times"
    rows = [word for word in words[place + 2 : words.index("Settings", place)] if word.strip()]
    # Neither what was missed, nor background: they are in other tables.
    assert rows == [class_name(tiny_source, first["category_id"]), class_name(tiny_source, second["category_id"]), "1"]


def test_detections_have_the_labels_of_the_source():
    """The tables count classes in the order of their ids, a source in its own."""
    source = types.SimpleNamespace(category_ids=(9, 2, 5))
    detections = DetectionTable(
        images=np.array([1, 2, 1]),
        classes=np.array([1, 1, 3]),
        scores=np.array([0.5, 0.6, 0.7]),
        boxes_xywh=np.array([[0.0, 0, 2, 2], [1, 1, 1, 1], [3, 4, 5, 6]]),
    )
    found = report_run.Found(source, None, detections, ("two", "five", "nine"), 2)
    of_image = report_run.detections_of_image(found, 1, 70)
    assert of_image.labels.tolist() == [1, 0]
    assert of_image.boxes_xyxy.tolist() == [[0, 0, 2, 2], [3, 4, 8, 10]]
    assert of_image.scores.tolist() == [0.5, 0.7]


def test_evaluation_with_overrides_is_shown_with_their_data(run, tiny, tiny_source):
    evaluate_almost_perfectly(run, tiny_source)
    document = json.loads((run / "evaluation_val.json").read_text())
    # Noted of other data, without a word: no curves of one beside numbers of the other.
    for numbers in document["per_class"].values():
        numbers["ground_truths"] += 1
    (run / "evaluation_val.json").write_text(json.dumps(document))
    _, text, headings = report(run)
    assert "Confusions" not in headings
    assert "the evaluation is of other data than val is now" in text
    assert f"focaljax evaluate --workdir {run} --split val` makes both anew" in text
    # Noted with the override that made it so: all of it.
    override = "--config.data.val.limit=2"
    limited = datasets.make_source(load_config([f"--config={tiny[1]}", *tiny[2:], override]), "val")
    evaluate_almost_perfectly(run, limited, overrides=[override])
    parsed, text, headings = report(run, "--pictures=9")
    assert "Confusions" in headings
    assert f"at step 6, {override}" in text
    assert len([one for one in parsed.named("img") if one["alt"].startswith("best")]) == 2


def test_missing_detections_are_named_with_the_command_that_makes_them(run, tiny_source):
    evaluate_almost_perfectly(run, tiny_source)
    (run / "detections_val.json").unlink()
    _, text, headings = report(run)
    assert "Classes" in headings
    assert "the detections are not to be had" in text
    assert f"`focaljax evaluate --workdir {run} --split val` makes both anew" in text


def test_run_without_an_evaluation_says_so_and_how_to_get_one(run):
    records = (run / "metrics.jsonl").read_text().splitlines()[:3]
    (run / "metrics.jsonl").write_text("\n".join(records) + '\n{"step": 4, "spl')
    (run / "running.json").write_text(json.dumps({"process": 77, "host": "h", "since": "noon"}))
    _, text, headings = report(run)
    assert headings == ["Summary", "Curves", "Detections", "Settings"]
    assert "step 3 of 6, process 77 on h, since noon is gone without an end; the same command goes on" in text
    with only_run_in(run):
        assert f"step 3 of 6, in use by process {os.getpid()} on" in report(run)[1]
    assert "step 3 of 6, not finished; the same command goes on" in report(run)[1]
    assert f"focaljax evaluate --workdir {run} --split val" in text


def test_run_is_finished_with_its_last_evaluation(run):
    records = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"val"' not in line]
    (run / "metrics.jsonl").write_text("\n".join(records) + "\n")
    assert "step 6 of 6, without the evaluation at the end; the same command makes it" in report(run)[1]


def test_starts_that_were_cut_off_are_left_out(run):
    whole = (run / "starts.jsonl").read_text().splitlines(keepends=True)[0]
    start = json.loads(whole)
    (run / "starts.jsonl").write_text(f'{{"step": 5}}\n[]\n{whole}{whole[: whole.index("}") + 1]}')
    note_start(run, step=4, devices="2 x tpu", command=("train", "--config=x.py"))
    _, text, _ = report(run)
    assert f"started after step {start['step']}" in text
    assert "started after step 4" in text
    assert "2 x tpu" in text
    assert re.search(r"started after step 4\s?20\d\d-\d\d-\d\d \d\d:\d\d:\d\d, 2 x tpu", text)
    assert text.count("started after step") == 2


def test_run_that_has_just_begun_has_a_page(run):
    for name in ("metrics.jsonl", "timings.jsonl", "starts.jsonl"):
        (run / name).unlink()
    _, text, _ = report(run)
    assert "step 0 of 6, not finished" in text
    assert "Nothing is recorded yet" in text
    assert "of an older version" in text


def test_run_whose_data_are_gone_has_a_page_without_pictures(run, tiny_source, tmp_path):
    evaluate_almost_perfectly(run, tiny_source)
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"source": "coco", "root": str(tmp_path / "gone")}
    config["data"]["val"] |= {"images": "images", "annotations": "truth.json"}
    (run / "config.json").write_text(json.dumps(config))
    parsed, text, headings = report(run)
    assert headings == ["Summary", "Curves", "Classes", "Detections", "Settings"]
    assert "There are no curves, no confusions and no pictures: the data of val are not to be had" in text
    assert "truth.json" in text
    assert not parsed.named("img")
    assert "triangle" in parsed.words


def test_results_of_other_data_are_named_as_such(run, tiny_source):
    evaluate_almost_perfectly(run, tiny_source)
    (run / "detections_val.json").write_text('[{"image_id": 999, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    assert "999" in report(run)[1]


def test_broken_evaluation_is_one_line(run, capsys):
    of_no_class = json.dumps({**dict.fromkeys(MEANINGS, 0.5), "per_class": None})
    for content in ('{"AP": ', '{"AP": 0.5}', "[]", of_no_class):
        (run / "evaluation_val.json").write_text(content)
        assert main(["report", "--workdir", str(run)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("focaljax: ")
        assert error.count("\n") == 1
        assert "evaluation_val.json cannot be read" in error


def test_class_names_are_no_markup(run, tiny_source):
    evaluate_almost_perfectly(run, tiny_source)
    names = ["<b>$x_{1$", "_hidden", "plain"]
    document = json.loads((run / "evaluation_val.json").read_text())
    document["per_class"] = dict(zip(names, document["per_class"].values(), strict=True))
    (run / "evaluation_val.json").write_text(json.dumps(document))
    parsed = report(run)[0]
    assert set(names) <= set(parsed.words)
    assert not parsed.named("b")


def test_settings_that_are_none_are_one_line(run, capsys):
    (run / "config.json").write_text("[]")
    assert main(["report", "--workdir", str(run)]) == 2
    assert "config.json holds list, expected an object of settings" in capsys.readouterr().err


def test_page_of_a_sweep_lists_its_runs(run, tmp_path_factory):
    sweep = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1):
        shutil.copytree(run, sweep / "tiny" / "gamma 2" / f"seed{seed}")
    results = [{"data": "tiny", "row": "gamma 2", "seed": seed, "AP": 0.1 + 0.2 * seed} for seed in (0, 1)]
    table = Sweep("a sweep", {"tiny": "tiny.py"}, [Row("gamma 2", {})], seeds=(0, 1), metrics=("AP",))
    write_report(sweep, table, "tiny", results)
    (sweep / "notes.md").write_text("what I saw\n")
    (sweep / "empty.md").write_text("")
    broken = sweep / "tiny" / "gamma 5" / "seed0"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text('{"optim": ')
    parsed, text, headings = report(sweep)
    assert headings == ["Table, tiny", "Runs", "Curves"]
    assert "a sweep, tiny AP seeds gamma 2 0.200 ± 0.141 2 of 2" in " ".join(" ".join(parsed.words).split())
    assert len(parsed.named("img")) == 1  # the plot of the table
    assert {"tiny/gamma 2/seed0", "tiny/gamma 2/seed1", "tiny/gamma 5/seed0"} <= set(parsed.words)
    assert text.count("finished, 6 steps") == 2
    assert "cannot be read: " in text
    assert "what I saw" not in text
    assert f"focaljax report --workdir '{sweep}/tiny/gamma 2/seed0'" in text


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)], ids=["desk", "narrow and dark"])
def test_page_in_a_browser(run, tiny_source, tmp_path_factory, width, dark):
    evaluate_almost_perfectly(run, tiny_source)
    report(run, "--pictures=2")
    seen = look_at(run / "page.html", tmp_path_factory.mktemp("browser"), width=width, dark=dark)
    assert_fit_to_be_read(seen)
    assert len(seen.images) == 3
    assert len(seen.plots) == 4
    for heading in ("Summary", "Curves", "Classes", "Precision and recall", "Confusions", "Settings"):
        assert f"\n{heading}\n" in seen.text
    assert "model.backbone\tresnet_tiny\tresnet50" in seen.text

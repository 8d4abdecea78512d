"""focaljax report: what is on the page, of a run that is finished, that is not, that lost its data, and of a sweep."""

import json
import pathlib
import re
import shutil

import pytest

from focaljax.cli import datasets
from focaljax.cli.config import load_config
from focaljax.cli.main import main
from focaljax.cli.sweep_report import write_report
from focaljax.evaluation.coco_metrics import evaluate_detections, write_coco_results, write_evaluation
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


def evaluate_almost_perfectly(workdir, tiny_source):
    """Writes an evaluation and detections that are the truth, but for two: one object is missed, one box is wrong."""
    truth = tiny_source.ground_truth()
    keys = ("image_id", "category_id", "bbox")
    results = [{**{key: one[key] for key in keys}, "score": 0.9} for one in truth["annotations"]]
    missed = results.pop(0)
    results.append({**missed, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.8})
    metrics = evaluate_detections(truth, results)
    write_evaluation(workdir / "evaluation_val.json", metrics, details={"split": "val", "step": 6})
    write_coco_results(workdir / "detections_val.json", results)
    return metrics, missed


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
    # The worst image is the one with the missed object; two pictures of the worst and two of the best.
    assert len(parsed.named("img")) == 4
    worst = parsed.named("img")[0]["alt"]
    assert f"(image {missed['image_id']})" in worst
    assert "1 missed, 1 wrong" in worst
    assert "0 missed, 0 wrong: F1 1.000" in parsed.named("img")[2]["alt"]
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


def test_run_without_an_evaluation_says_so_and_how_to_get_one(run):
    records = (run / "metrics.jsonl").read_text().splitlines()[:3]
    (run / "metrics.jsonl").write_text("\n".join(records) + '\n{"step": 4, "spl')
    (run / "running.json").write_text(json.dumps({"process": 77, "host": "h", "since": "noon"}))
    _, text, headings = report(run)
    assert headings == ["Summary", "Curves", "Detections", "Settings"]
    assert "step 3 of 6, in use by process 77 on h, since noon" in text
    assert f"focaljax evaluate --workdir {run} --split val" in text


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
    assert "Without the data of val there are no curves, no confusions and no pictures" in text
    assert "truth.json" in text
    assert not parsed.named("img")
    assert "triangle" in parsed.words


def test_results_of_other_data_are_named_as_such(run, tiny_source):
    evaluate_almost_perfectly(run, tiny_source)
    (run / "detections_val.json").write_text('[{"image_id": 999, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    assert "999" in report(run)[1]


def test_broken_evaluation_is_one_line(run, capsys):
    for content in ('{"AP": ', '{"AP": 0.5}', "[]"):
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


def test_page_of_a_sweep_lists_its_runs(run, tmp_path_factory):
    sweep = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1):
        shutil.copytree(run, sweep / "tiny" / "gamma 2" / f"seed{seed}")
    results = [{"data": "tiny", "row": "gamma 2", "seed": seed, "AP": 0.1 + 0.2 * seed} for seed in (0, 1)]
    table = Sweep("a sweep", {"tiny": "tiny.py"}, [Row("gamma 2", {})], seeds=(0, 1), metrics=("AP",))
    write_report(sweep, table, "tiny", results)
    parsed, text, headings = report(sweep)
    assert headings == ["Table, tiny", "Runs", "Curves"]
    assert "a sweep, tiny AP seeds gamma 2 0.200 ± 0.141 2 of 2" in " ".join(" ".join(parsed.words).split())
    assert len(parsed.named("img")) == 1  # the plot of the table
    assert {"tiny/gamma 2/seed0", "tiny/gamma 2/seed1"} <= set(parsed.words)
    assert f"focaljax report --workdir '{sweep}/tiny/gamma 2/seed0'" in text


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)], ids=["desk", "narrow and dark"])
def test_page_in_a_browser(run, tiny_source, tmp_path_factory, width, dark):
    evaluate_almost_perfectly(run, tiny_source)
    report(run, "--pictures=2")
    seen = look_at(run / "page.html", tmp_path_factory.mktemp("browser"), width=width, dark=dark)
    assert_fit_to_be_read(seen)
    assert len(seen.images) == 4
    assert len(seen.plots) == 4
    for heading in ("Summary", "Curves", "Classes", "Precision and recall", "Confusions", "Settings"):
        assert f"\n{heading}\n" in seen.text
    assert "model.backbone\tresnet_tiny\tresnet50" in seen.text

"""The verb that trains a table: what it runs, what it leaves out, how it goes on, and the table."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import cv2
import pytest

from focaljax.cli.main import main
from focaljax.cli.sweep import load_sweep
from focaljax.cli.sweep_report import read_results, table, write_report
from focaljax.sweeps import Row, Sweep
from focaljax.training.metrics import read_metrics
from tests.cli.conftest import TINY
from tests.cli.test_usage import fails

SWEEP = """
from focaljax.sweeps import Row, Sweep

def get_sweep():
    rows = [
        Row("gamma 0", {{"loss.gamma": 0.0}}, paper={{"AP": 0.31}}),
        Row("gamma 2, alpha .5", {{"loss.gamma": 2.0, "loss.alpha": 0.5}}),
    ]
    return Sweep("a table", {{"small": "{config}", "other": "{config}"}}, rows, seeds=(0, 7))
"""


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "sweep.py"
    path.write_text(SWEEP.format(config=os.path.relpath(TINY, tmp_path)))
    return str(path)


@pytest.fixture
def fast(data_root):
    return [f"--config.data.root={data_root}", "--config.optim.steps=3", "--config.checkpoint.every=1"]


def test_dry_run_prints_the_commands_of_all_runs(sweep_file, tmp_path, capsys):
    workdir = str(tmp_path / "runs")
    assert main(["sweep", sweep_file, "--workdir", workdir, "--dry-run", "--config.optim.steps=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["0", "1", "2", "3"]
    for word in ("focaljax train --config ", "--config.loss.alpha=0.5", "--config.seed=7", "--config.optim.steps=5"):
        assert word in lines[3]
    assert lines[3].endswith(f"--workdir {workdir}/small/gamma_2_alpha_.5/seed7")
    assert not (tmp_path / "runs").exists()
    assert main(["sweep", sweep_file, "--workdir", workdir, "--dry-run", "--index=2", "--config.data=other"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("2:")
    assert "/other/gamma_0/seed7" in line


def test_what_is_missing_is_run_and_the_table_is_made(sweep_file, fast, tmp_path, capsys):
    command = ["sweep", sweep_file, "--workdir", str(tmp_path / "runs"), *fast]
    assert main([*command, "--seeds=0", "--jobs=2"]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 0 of them finished" in said
    assert "run 1: gamma 2, alpha .5, seed 0: val AP 0." in said
    folder = tmp_path / "runs"
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["seed"], row["step"]) for row in rows] == [
        ("gamma 0", "0", "3"),
        ("gamma 2, alpha .5", "0", "3"),
    ]
    assert all(row["AP"] and row["commit"] and "jax " in row["versions"] and row["devices"] for row in rows)
    assert "1 of 2" in (folder / "small.md").read_text()
    assert cv2.imread(str(folder / "small.png")).std() > 5
    # Nothing is run again but what was removed, and one job of an array runs one.
    assert main([*command, "--index=1"]) == 0
    assert "1 runs, 1 of them finished" in capsys.readouterr().out
    assert main([*command, "--seeds=0"]) == 0
    assert "2 runs, 2 of them finished" in capsys.readouterr().out
    shutil.rmtree(folder / "small" / "gamma_0")
    assert main([*command, "--seeds=0"]) == 0
    assert "2 runs, 1 of them finished" in capsys.readouterr().out


def test_run_with_the_settings_of_another_sweeps_is_not_run_again(sweep_file, fast, tmp_path, capsys):
    assert main(["sweep", sweep_file, "--workdir", str(tmp_path / "first"), *fast, "--index=0"]) == 0
    other = tmp_path / "other.py"
    text = SWEEP.format(config=os.path.relpath(TINY, tmp_path))
    other.write_text(text.replace('"gamma 0"', '"another name"').replace('"loss.alpha": 0.5', '"loss.alpha": 0.75'))
    command = ["sweep", str(other), "--workdir", str(tmp_path / "second"), *fast, "--seeds=0"]
    capsys.readouterr()
    assert main([*command, "--reuse", str(tmp_path / "first")]) == 0
    said = capsys.readouterr().out
    first = tmp_path / "first" / "small" / "gamma_0" / "seed0"
    assert f"run 0: another name, seed 0: the same as {first}" in said
    assert "2 runs, 1 of them finished" in said
    assert "run 1: gamma 2, alpha .5, seed 0: val AP" in said
    taken, trained = read_results(tmp_path / "second" / "results.csv")
    (original,) = (json.loads(path.read_text()) for path in (tmp_path / "first").rglob("result.json"))
    assert taken["row"] == "another name"
    assert taken["AP"] == original["AP"]
    assert taken["date"] == original["date"]
    assert trained["row"] == "gamma 2, alpha .5"
    assert not (tmp_path / "second" / "small" / "another_name" / "seed0" / "log.txt").exists()
    # One that has only taken over is no mistake either, but there is nothing in it.
    third = ["sweep", str(other), "--workdir", str(tmp_path / "third"), *fast, "--index=0"]
    shutil.copytree(tmp_path / "second" / "small" / "another_name", tmp_path / "taken" / "another_name")
    assert main([*third, "--reuse", f"{tmp_path / 'taken'},{tmp_path / 'first'}"]) == 0
    assert f"the same as {first}" in capsys.readouterr().out
    # Other settings for all runs: nothing fits.
    assert main([*command, "--reuse", str(tmp_path / "first"), "--config.optim.steps=4", "--index=0"]) == 0
    assert "1 runs, 0 of them finished" in capsys.readouterr().out


def test_run_that_stands_in_the_results_is_finished_wherever_it_was_run(sweep_file, fast, tmp_path, capsys):
    command = ["sweep", sweep_file, *fast, "--out", str(tmp_path / "out"), "--seeds=0"]
    assert main([*command, "--workdir", str(tmp_path / "here")]) == 0
    before = read_results(tmp_path / "out" / "results.csv")
    # Elsewhere, where one of the two is missing from the file.
    write_report(tmp_path / "out", load_sweep(pathlib.Path(sweep_file)), "small", before[:1])
    capsys.readouterr()
    assert main([*command, "--workdir", str(tmp_path / "there")]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 1 of them finished" in said
    assert "run 1: gamma 2, alpha .5, seed 0: val AP" in said
    assert not (tmp_path / "there" / "small" / "gamma_0").exists()
    kept, trained = read_results(tmp_path / "out" / "results.csv")
    assert kept == before[0]
    assert trained["AP"] == before[1]["AP"]
    # With other settings it is another run.
    assert main([*command, "--workdir", str(tmp_path / "there"), "--config.optim.steps=4", "--index=0"]) == 0
    assert "1 runs, 0 of them finished" in capsys.readouterr().out


def test_run_that_fails_is_named_with_its_last_line_and_the_others_are_run(sweep_file, fast, tmp_path, capsys):
    broken = tmp_path / "runs" / "small" / "gamma_0" / "seed0"
    broken.mkdir(parents=True)
    (broken / "checkpoints").write_text("a file where a folder belongs")
    assert main(["sweep", sweep_file, "--workdir", str(tmp_path / "runs"), *fast, "--seeds=0"]) != 0
    said = capsys.readouterr().out
    assert "run 0: gamma 0, seed 0: FAILED with" in said
    assert "run 1: gamma 2, alpha .5, seed 0: val AP" in said
    assert "1 of 4 runs" in said


def test_interrupted_sweep_goes_on_where_its_run_stopped(sweep_file, data_root, tmp_path, users_env):
    long = [f"--config.data.root={data_root}", "--config.optim.steps=100000", "--config.checkpoint.every=5"]
    command = [sys.executable, "-m", "focaljax", "sweep", sweep_file, "--workdir", str(tmp_path / "runs"), "--seeds=0"]
    sweep = subprocess.Popen([*command, *long], env=users_env, stdout=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "small" / "gamma_0" / "seed0"
    end = time.monotonic() + 120
    while not read_metrics(run) and time.monotonic() < end:
        time.sleep(0.1)
    sweep.send_signal(signal.SIGINT)
    said, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert "stopped by SIGINT; the same command goes on" in said
    assert "is saved; the same command goes on" in (run / "log.txt").read_text()
    assert not (run.parent.parent / "gamma_2_alpha_.5").exists()
    assert not (run / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.py"], ("no sweep file missing.py",)),
        ([], ("one sweep file is needed",)),
        (["FILE", "--config.data=smal"], ("this sweep has small, other", "did you mean 'small'?")),
        (["FILE", "--seeds=1"], ("this sweep has 0, 7",)),
        (["FILE", "--index=4"], ("the runs 0 to 3",)),
        (["FILE", "--reuse=nowhere"], ("--reuse=nowhere", "no finished run of a sweep")),
        (["FILE", "--config.loss.gama=1"], ("loss.gama", "did you mean")),
    ],
)
def test_mistake_is_one_line(sweep_file, tmp_path, capsys, arguments, words):
    arguments = [sweep_file if argument == "FILE" else argument for argument in arguments]
    fails(capsys, ["sweep", *arguments, "--workdir", str(tmp_path / "runs")], *words)
    assert not (tmp_path / "runs").exists()


def test_setting_of_a_row_that_does_not_exist_is_said_before_anything_runs(tmp_path, capsys):
    path = tmp_path / "sweep.py"
    text = SWEEP.format(config=os.path.relpath(TINY, tmp_path))
    path.write_text(text.replace("loss.alpha", "loss.alhpa"))
    fails(capsys, ["sweep", str(path), "--workdir", str(tmp_path / "runs")], "loss.alhpa", "did you mean")
    path.write_text(text.replace("rows = [", "rows = 1 / 0, ["))
    fails(capsys, ["sweep", str(path), "--workdir", str(tmp_path / "runs")], "ZeroDivisionError")


def test_table_has_mean_spread_and_the_papers_column():
    rows = [Row("a", {}, paper={"AP": 0.3}), Row("b", {}), Row("c", {})]
    sweep = Sweep("losses", {"small": "c.py"}, rows, seeds=(0, 1), metrics=("AP", "APs"))
    results = [
        {"row": "a", "seed": 0, "AP": 0.2, "APs": None},
        {"row": "a", "seed": 1, "AP": 0.4, "APs": 0.1},
        {"row": "b", "seed": 0, "AP": 0.5, "APs": None},
    ]
    assert table(sweep, "small", results).splitlines() == [
        "| losses, small | AP | APs | seeds | paper's AP |",
        "|---|---:|---:|---:|---:|",
        "| a | 0.300 ± 0.141 | 0.100 | 2 of 2 | 0.300 |",
        "| b | 0.500 |  | 1 of 2 |  |",
        "| c |  |  | 0 of 2 |  |",
    ]


def test_results_of_two_data_sets_stand_in_one_file(tmp_path):
    sweep = Sweep("losses", {"small": "c.py", "large": "c.py"}, [Row("a", {})], seeds=(0, 1), metrics=("AP",))
    small, large, again = (
        [{"data": data, "row": "a", "seed": "0", "AP": AP, "APs": None, "flags": ["x"]}]
        for data, AP in (("small", 0.25), ("large", 0.5), ("small", 0.75))
    )
    for data, results in (("small", small), ("large", large), ("small", again)):
        write_report(tmp_path, sweep, data, results)
    read = read_results(tmp_path / "results.csv")
    assert [(result["data"], result["AP"], result["APs"]) for result in read] == [
        ("large", 0.5, None),
        ("small", 0.75, None),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "large.md", "large.png", "results.csv", "small.md", "small.png",
    ]  # fmt: skip


def test_rows_of_the_same_name_are_refused():
    with pytest.raises(ValueError, match="same name: a_1"):
        Sweep("t", {"small": "c.py"}, [Row("a 1", {}), Row("a, 1", {})])
    with pytest.raises(ValueError, match="at least one row"):
        Sweep("t", {"small": "c.py"}, [])


def test_rows_for_other_data_sets_are_left_out():
    rows = [Row("a", {}), Row("b", {}, data=("coco",))]
    sweep = Sweep("t", {"small": "c.py", "coco": "c.py"}, rows, seeds=(0,))
    assert [run.row.name for run in sweep.runs("small")] == ["a"]
    assert [run.row.name for run in sweep.runs("coco")] == ["a", "b"]
    assert "| b |" not in table(sweep, "small", [])
    with pytest.raises(ValueError, match="without a config: cocoo"):
        Sweep("t", {"small": "c.py"}, [Row("b", {}, data=("cocoo",))])


SWEEPS = sorted((pathlib.Path(__file__).parents[2] / "experiments").glob("*/sweep.py"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("data", ["shapes", "bccd", "coco"])
def test_experiment_is_one_that_can_be_run(path, data, tmp_path, capsys):
    assert main(["sweep", str(path), f"--config.data={data}", "--workdir", str(tmp_path), "--dry-run"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) >= 3 * len(load_sweep(path).rows_of(data)) > 0
    assert {command.count("focaljax train") for command in commands} == {1}


def test_there_are_experiments():
    assert len(SWEEPS) >= 9

"""The verb that trains a table: what it runs, what it leaves out, how it goes on, and the table."""

import csv
import json
import os
import pathlib
import shlex
import shutil
import types

import cv2
import pytest

from focaljax.cli import sweep_runs
from focaljax.cli.config import load_config, save_config
from focaljax.cli.main import main
from focaljax.cli.sweep import load_sweep
from focaljax.cli.sweep_report import read_results, table, write_report
from focaljax.sweeps import Row, Sweep
from tests.cli.conftest import SWEEP, TINY
from tests.cli.test_usage import fails


@pytest.fixture
def fast(data_root):
    return [f"--config.data.root={data_root}", "--config.optim.steps=3", "--config.checkpoint.every=1"]


@pytest.fixture
def fake_runs(monkeypatch):
    """Runs take no time: each gives its seed as AP, or what is said for its seed, after what is to happen meanwhile."""
    fake = types.SimpleNamespace(commands=[], AP_of={}, meanwhile=lambda: None)

    def run(_, command, log):
        fake.commands.append(command)
        fake.meanwhile()
        seed = int(next(word for word in command if word.startswith("--config.seed=")).partition("=")[2])
        AP = fake.AP_of.get(seed, seed / 100)
        workdir = pathlib.Path(command[command.index("--workdir") + 1])
        save_config(
            load_config([f"--config={TINY}", *(word for word in command if word.startswith("--config."))]), workdir
        )
        (workdir / "evaluation_val.json").write_text(json.dumps({"AP": AP, "AP50": AP, "AP75": AP, "step": 3}))
        return 0

    monkeypatch.setattr(sweep_runs.Children, "run", run)
    return fake


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


def test_run_with_the_settings_of_another_sweeps_is_not_run_again(sweep_file, fast, tmp_path, capsys, fake_runs):
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
    # The first sweep's run, and of the second what it did not take over.
    assert len(fake_runs.commands) == 2
    assert str(tmp_path / "second" / "small" / "gamma_2_alpha_.5" / "seed0") in fake_runs.commands[1]
    # One that has only taken over is no mistake either, but there is nothing in it.
    third = ["sweep", str(other), "--workdir", str(tmp_path / "third"), *fast, "--index=0"]
    shutil.copytree(tmp_path / "second" / "small" / "another_name", tmp_path / "taken" / "another_name")
    assert main([*third, "--reuse", f"{tmp_path / 'taken'},{tmp_path / 'first'}"]) == 0
    assert f"the same as {first}" in capsys.readouterr().out
    # Other settings for all runs: nothing fits.
    fourth = ["sweep", str(other), "--workdir", str(tmp_path / "fourth"), *fast, "--config.optim.steps=4", "--index=0"]
    assert main([*fourth, "--reuse", str(tmp_path / "first")]) == 0
    assert "1 runs, 0 of them finished" in capsys.readouterr().out


def test_run_that_stands_in_the_results_is_finished_wherever_it_was_run(sweep_file, fast, tmp_path, capsys, fake_runs):
    command = ["sweep", sweep_file, *fast, "--out", str(tmp_path / "out"), "--seeds=0"]
    assert main([*command, "--workdir", str(tmp_path / "here")]) == 0
    before = read_results(tmp_path / "out" / "results.csv")
    # Elsewhere, where one of the two is missing from the file.
    (tmp_path / "out" / "results.csv").unlink()
    write_report(tmp_path / "out", load_sweep(pathlib.Path(sweep_file)), "small", before[:1])
    capsys.readouterr()
    assert main([*command, "--workdir", str(tmp_path / "there")]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 1 of them finished" in said
    assert "run 1: gamma 2, alpha .5, seed 0: val AP" in said
    assert not (tmp_path / "there" / "small" / "gamma_0").exists()
    assert len(fake_runs.commands) == 3
    kept, trained = read_results(tmp_path / "out" / "results.csv")
    assert kept == before[0]
    assert trained["AP"] == before[1]["AP"]
    # With other settings it is another run, which does not belong in this table.
    text = (tmp_path / "out" / "results.csv").read_text()
    other = [*command, "--workdir", str(tmp_path / "elsewhere"), "--config.optim.steps=4"]
    fails(capsys, other, "results.csv holds runs with the overrides", "optim.steps=3", "name another folder")
    assert (tmp_path / "out" / "results.csv").read_text() == text
    assert not (tmp_path / "elsewhere").exists()


def test_run_that_fails_is_named_with_its_last_line_and_the_others_are_run(sweep_file, fast, tmp_path, capsys):
    broken = tmp_path / "runs" / "small" / "gamma_0" / "seed0"
    broken.mkdir(parents=True)
    (broken / "checkpoints").write_text("a file where a folder belongs")
    assert main(["sweep", sweep_file, "--workdir", str(tmp_path / "runs"), *fast, "--seeds=0"]) != 0
    said = capsys.readouterr().out
    assert "run 0: gamma 0, seed 0: FAILED with" in said
    assert "run 1: gamma 2, alpha .5, seed 0: val AP" in said
    assert "1 of 4 runs" in said


def rows_in(folder):
    return [(row["row"], row["seed"], row["AP"]) for row in read_results(folder / "results.csv")]


def test_sweeps_that_share_a_table_keep_each_others_rows(sweep_file, tmp_path, fake_runs):
    out = tmp_path / "out"
    assert main(["sweep", sweep_file, "--workdir", str(tmp_path / "other"), "--seeds=7"]) == 0
    ended = read_results(tmp_path / "other" / "results.csv")
    fake_runs.meanwhile = lambda: write_report(out, load_sweep(pathlib.Path(sweep_file)), "small", ended)
    command = ["sweep", sweep_file, "--workdir", str(tmp_path / "runs"), "--out", str(out)]
    assert main([*command, "--seeds=0"]) == 0
    everything = [(row, str(seed), seed / 100) for seed in (0, 7) for row in ("gamma 0", "gamma 2, alpha .5")]
    assert rows_in(out) == everything
    assert "| gamma 0 | 0.035 ± 0.049 |" in (out / "small.md").read_text()
    assert len(fake_runs.commands) == 4
    assert main(command) == 0
    assert len(fake_runs.commands) == 4


def test_row_with_another_name_is_the_same_run(sweep_file, tmp_path, fake_runs):
    command = ["sweep", sweep_file, "--workdir", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--seeds=7"]
    assert main(command) == 0
    path = pathlib.Path(sweep_file)
    path.write_text(path.read_text().replace('"gamma 0"', '"cross entropy"'))
    assert main(command) == 0
    assert len(fake_runs.commands) == 2
    assert rows_in(tmp_path / "out") == [("cross entropy", "7", 0.07), ("gamma 2, alpha .5", "7", 0.07)]


def test_run_of_a_config_that_has_changed_is_not_finished(sweep_file, tmp_path, fake_runs, capsys):
    config = tmp_path / "config.py"
    config.write_text(pathlib.Path(TINY).read_text())
    path = pathlib.Path(sweep_file)
    path.write_text(SWEEP.format(config="config.py"))
    command = ["sweep", sweep_file, "--workdir", str(tmp_path / "runs"), "--seeds=0"]
    assert main(command) == 0
    config.write_text(config.read_text().replace("    return config", "    config.eval.every = 77\n    return config"))
    assert main(command) == 0
    assert "2 runs, 2 of them finished" in capsys.readouterr().out  # it trains the same
    config.write_text(config.read_text().replace("    return config", "    config.optim.steps = 77\n    return config"))
    assert main([*command, "--table"]) == 0
    assert "0 of 4 runs" in capsys.readouterr().out
    assert main(command) == 0
    assert "2 runs, 0 of them finished" in capsys.readouterr().out
    assert len(rows_in(tmp_path / "runs")) == 2


def test_damaged_result_is_that_of_no_finished_run(sweep_file, tmp_path, fake_runs, capsys):
    command = ["sweep", sweep_file, "--workdir", str(tmp_path / "runs"), "--seeds=0"]
    assert main(command) == 0
    first = tmp_path / "runs" / "small" / "gamma_0" / "seed0" / "result.json"
    for content in ("", '{"AP": 0.5', "[]"):
        first.write_text(content)
        capsys.readouterr()
        assert main(command) == 0
        assert "2 runs, 1 of them finished" in capsys.readouterr().out
    table = tmp_path / "runs" / "results.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], lines[1].replace("0.0,", "0.x,", 1)]))
    fails(capsys, command, "results.csv is not what a sweep writes", "mend it or move it away")


def test_undefined_AP_is_no_crash(sweep_file, tmp_path, fake_runs, capsys):  # noqa: N802
    fake_runs.AP_of[7] = None
    assert main(["sweep", sweep_file, "--workdir", str(tmp_path / "runs"), "--jobs=2"]) == 0
    assert "run 2: gamma 0, seed 7: val AP undefined in" in capsys.readouterr().out
    assert "| gamma 0 | 0.000 | 0.000 | 0.000 | 2 of 2 |" in (tmp_path / "runs" / "small.md").read_text()


def test_run_without_an_evaluation_fails_alone(sweep_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep_runs.Children, "run", lambda *_: 0)
    assert main(["sweep", sweep_file, "--workdir", str(tmp_path / "runs"), "--seeds=0"]) == 1
    said = capsys.readouterr().out
    assert said.count("FAILED: FileNotFoundError") == 2
    assert "0 of 4 runs" in said


def test_table_of_what_is_finished_runs_nothing(sweep_file, tmp_path, fake_runs, capsys):
    command = ["sweep", sweep_file, "--workdir", str(tmp_path / "runs")]
    assert main([*command, "--index=3"]) == 0
    assert not (tmp_path / "runs" / "results.csv").exists()
    assert main([*command, "--table"]) == 0
    assert "1 of 4 runs" in capsys.readouterr().out
    assert rows_in(tmp_path / "runs") == [("gamma 2, alpha .5", "7", 0.07)]
    assert main([*command, "--dry-run"]) == 0
    finished = [line.endswith("  (finished)") for line in capsys.readouterr().out.splitlines()]
    assert finished == [False, False, False, True]
    assert len(fake_runs.commands) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.py"], ("no sweep file missing.py",)),
        ([], ("one sweep file is needed",)),
        (["FILE", "--config.data=smal"], ("this sweep has small, other", "did you mean 'small'?")),
        (["FILE", "--seeds=1"], ("this sweep has 0, 7",)),
        (["FILE", "--index=4"], ("the runs 0 to 3",)),
        (["FILE", "--seeds="], ("this sweep has 0, 7",)),
        (["FILE", "--index=1", "--seeds=0"], ("an index is of one row and seed",)),
        (["FILE", "--config=x.py"], ("--config=x.py: a sweep names its own configs", "--config.data=NAME")),
        (["FILE", "--config.seed=5"], ("--config.seed=5: the sweep's rows or seeds set this",)),
        (["FILE", "--config.loss.gamma=1"], ("--config.loss.gamma=1: the sweep's rows or seeds set this",)),
        (["FILE", "--config.eval.split=test"], ("--config.eval.split=test: the sweep's rows",)),
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
    path.write_text(text.replace("seeds=(0, 7)", 'seeds=(0, 7), metrics=("AP", "AP57")'))
    fails(capsys, ["sweep", str(path), "--workdir", str(tmp_path / "runs")], "no metric 'AP57'", "did you mean 'AP75'")
    path.write_text(text.replace("rows = [", "rows = 1 / 0, ["))
    fails(capsys, ["sweep", str(path), "--workdir", str(tmp_path / "runs")], "ZeroDivisionError")


def test_rows_of_the_same_name_are_refused():
    with pytest.raises(ValueError, match="same name: a_1"):
        Sweep("t", {"small": "c.py"}, [Row("a 1", {}), Row("a, 1", {})])
    with pytest.raises(ValueError, match="the same seed twice: 0, 1, 0"):
        Sweep("t", {"small": "c.py"}, [Row("a", {})], seeds=(0, 1, 0))
    with pytest.raises(ValueError, match="without a config: large"):
        Sweep("t", {"small": "c.py"}, [Row("a", {})], settings={"large": {}})
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
    if data == "coco":  # weights are those of the backbone
        for command in commands:
            words = shlex.split(command)
            flags = [f"--config={words[words.index('--config') + 1]}", *(w for w in words if w.startswith("--config."))]
            config = load_config(flags)
            assert config.init.weights.startswith(f"{config.model.backbone}-")


def test_there_are_experiments():
    assert len(SWEEPS) >= 9

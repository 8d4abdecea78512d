"""The verb that runs the benchmarks of the repository."""

import subprocess

import pytest

from focaljax.cli import bench
from focaljax.cli.main import main


@pytest.fixture
def started(monkeypatch):
    """The commands that would have been started; each ends with the code of its place here."""
    commands, codes = [], []

    def run(command):
        commands.append(command[1:])
        return subprocess.CompletedProcess(command, codes.pop(0) if codes else 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    return commands, codes


def script_and_flags(command):
    path, *flags = command
    return path.rpartition("/")[2], flags


def test_flags_and_exit_code_go_through(started):
    commands, codes = started
    codes.append(3)
    assert main(["bench", "eval", "--images", "5"]) == 3
    assert [script_and_flags(command) for command in commands] == [("evaluate.py", ["--images", "5"])]


def test_all_runs_each_and_fails_if_one_does(started):
    commands, codes = started
    codes += [0, 1, 0]
    assert main(["bench", "all", "--python-with-torch=/other/python"]) == 1
    torch = ["--python-with-torch=/other/python"]
    assert [script_and_flags(command) for command in commands] == [
        ("loss.py", torch), ("train.py", torch), ("input.py", torch), ("nms.py", torch), ("evaluate.py", []),
        ("predict.py", torch),
    ]  # fmt: skip


@pytest.mark.parametrize("name", bench._SCRIPTS)
def test_every_name_is_a_script_that_explains_itself(name, capfd):
    assert main(["bench", name, "--help"]) == 0
    shown = capfd.readouterr().out
    assert shown.startswith("usage: ")
    assert "--out" in shown or name == "step"


def test_help_of_the_verb_names_them_all(capsys):
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in bench._SCRIPTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a benchmark: loss, train, step"),
        (["trian"], "no benchmark 'trian' (did you mean 'train'?)"),
        (["all", "--rounds=3"], "--rounds=3: `focaljax bench all` takes --python-with-torch=PATH only"),
    ],
)
def test_mistakes_are_named(started, capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not started[0]


def test_package_without_the_repository_says_where_they_are(started, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.focaljax, "__file__", str(tmp_path / "focaljax" / "__init__.py"))
    assert main(["bench", "nms"]) == 2
    assert "the benchmarks are in the repository" in capsys.readouterr().err
    assert not started[0]

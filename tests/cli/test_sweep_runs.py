"""The processes of a sweep's runs: interrupted, stopped while they begin, and what is noted of them."""

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from focaljax.cli import sweep_runs
from focaljax.training.metrics import read_metrics


def test_interrupted_sweep_goes_on_where_its_run_stopped(sweep_file, data_root, tmp_path, users_env):
    long = [f"--config.data.root={data_root}", "--config.optim.steps=80", "--config.checkpoint.every=5"]
    command = [sys.executable, "-m", "focaljax", "sweep", sweep_file, "--workdir", str(tmp_path / "runs"), *long]
    sweep = subprocess.Popen([*command, "--seeds=0"], env=users_env, stdout=subprocess.PIPE, text=True)
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
    first = read_metrics(run)[-1]["step"]
    assert 0 < first < 80
    subprocess.run([*command, "--index=0"], env=users_env, check=True)
    again = int(re.findall(r"done: 80 steps, (\d+) of them now", (run / "log.txt").read_text())[-1])
    assert 0 < again <= 80 - first
    # Both of its parts count.
    parts = [float(line) for line in (run / "seconds.txt").read_text().split()]
    assert len(parts) == 2
    assert json.loads((run / "result.json").read_text())["seconds"] == pytest.approx(sum(parts), abs=0.2)


def test_run_that_begins_while_a_signal_arrives_is_stopped(monkeypatch):
    begin = subprocess.Popen
    with sweep_runs.Children() as children:

        def begin_and_stop(*arguments, **options):
            child = begin(*arguments, **options)
            children._stop(signal.SIGTERM, None)
            return child

        monkeypatch.setattr(subprocess, "Popen", begin_and_stop)
        assert children.run(["sleep", "60"], subprocess.DEVNULL) == -signal.SIGTERM
        assert children.run(["sleep", "60"], subprocess.DEVNULL) == 0


@pytest.fixture
def hangup():
    """SIGHUP ends a process, also where nohup began the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
def test_second_signal_ends_a_run_that_saves_for_long(tmp_path):
    code = "import pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)"
    with sweep_runs.Children() as children, concurrent.futures.ThreadPoolExecutor(1) as pool:
        ended = pool.submit(children.run, [sys.executable, "-c", code], subprocess.DEVNULL)
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGHUP)  # of a terminal that is gone
        assert children.stopped_by is signal.SIGHUP
        time.sleep(0.2)
        assert not ended.done()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.result(timeout=20) != 0


def test_commit_is_that_of_the_packages_own_repository(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    for folder, is_own in ((tmp_path, True), (tmp_path / "vendored", False)):
        file = folder / "focaljax" / "cli" / "sweep_runs.py"
        file.parent.mkdir(parents=True)
        monkeypatch.setattr(sweep_runs, "__file__", str(file))
        assert bool(re.fullmatch("[0-9a-f]{7,}", sweep_runs._commit())) == is_own
    # Results that were written are no change of what is run; code is.
    monkeypatch.setattr(sweep_runs, "__file__", str(tmp_path / "focaljax" / "cli" / "sweep_runs.py"))
    for name, is_changed in (("experiments.csv", False), ("focaljax/code.py", True)):
        (tmp_path / name).write_text("first\n")
        for command in (["add", name], ["commit", "-q", "-m", "second"]):
            subprocess.run([*git, *command], check=True)
        (tmp_path / name).write_text("second\n")
        assert sweep_runs._commit().endswith("+") == is_changed

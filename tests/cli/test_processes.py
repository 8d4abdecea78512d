"""Verbs as several processes, and several runs beside each other."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from focaljax.cli.main import main
from focaljax.cli.runtime import only_run_in
from focaljax.training.metrics import read_metrics
from tests.cli.conftest import devices_of_runs


def free_address():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{unused.getsockname()[1]}"


def run_two(env, *command):
    """Runs a command of focaljax as two processes; returns what each of them said."""
    command = [sys.executable, "-m", "focaljax", *command, f"--coordinator={free_address()}", "--processes=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([*command, f"--process={index}"], env=env, **pipes) for index in range(2)]
    ends = [worker.communicate(timeout=600) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ends
    # One of them is enough to speak (but Gloo, below Python, of its connections).
    assert re.search("images", ends[0][0])
    assert not re.search("images|step|run", ends[1][0])
    return ends[0][0]


def test_two_processes_train_and_evaluate_as_one_does(tiny, finished_run, users_env, tmp_path):
    # 9 images to evaluate, in batches of 8: the processes have 5 and 4 of them.
    workdir = tmp_path / "run"
    env = {**users_env, "JAX_NUM_CPU_DEVICES": "2"}
    assert "of 2 processes, batch 8" in run_two(env, "train", *tiny, f"--workdir={workdir}")
    found, expected = read_metrics(workdir), read_metrics(finished_run)
    assert [(r["step"], r["split"]) for r in found] == [(r["step"], r["split"]) for r in expected]
    for mine, other in zip(found, expected):
        if mine["split"] == "train":
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)  # Adam enlarges rounding
    assert found[-1]["AP"] == pytest.approx(expected[-1]["AP"], abs=1e-3)
    in_training = json.loads((workdir / "detections_val.json").read_text())
    # The same weights, looked at by two processes and by one.
    assert "evaluating step 6" in run_two(env, "evaluate", f"--workdir={workdir}", "--sheets=1")
    assert (workdir / "sheets_val" / "sheet_01.jpg").exists()
    by_two = json.loads((workdir / "detections_val.json").read_text())
    with devices_of_runs(1):
        assert main(["evaluate", "--workdir", str(workdir), "--sheets=0"]) == 0
    expected = json.loads((workdir / "detections_val.json").read_text())
    scores = lambda detections: sorted(found["score"] for found in detections)  # noqa: E731
    for mine in (in_training, by_two):
        assert [found["image_id"] for found in mine] == [found["image_id"] for found in expected]
        np.testing.assert_allclose(scores(mine), scores(expected), rtol=1e-4)


def test_evaluation_batch_that_the_devices_cannot_share_is_one_line(finished_run, capsys):
    assert main(["evaluate", "--workdir", str(finished_run), "--config.eval.batch_size=7"]) == 2
    assert "--config.eval.batch_size: batch size 7 must be a positive multiple of" in capsys.readouterr().err


FAULTY = """
import sys, time
from focaljax.cli import evaluate, main
from focaljax.cli.runtime import join_processes

def faulty(arguments):
    index = int(arguments[1])
    join_processes(arguments[0], 2, index, notes_sigterm=False)
    print("joined", file=sys.stderr, flush=True)
    if index == 1:
        raise RuntimeError("a fault")
    time.sleep(600)

evaluate.main = faulty
main.program()
"""


def test_fault_in_one_process_ends_it_at_once_and_sigterm_one_that_saves_nothing(users_env):
    command = [sys.executable, "-c", FAULTY, "evaluate", free_address()]
    pipes = {"stderr": subprocess.PIPE, "text": True, "env": users_env}
    first, second = (subprocess.Popen([*command, str(index)], **pipes) for index in range(2))
    try:
        assert "RuntimeError: a fault" in second.communicate(timeout=60)[1]
        assert second.returncode == 1
        assert any("joined" in line for line in first.stderr)
        first.terminate()
        assert first.wait(timeout=60) == -signal.SIGTERM
    finally:
        first.kill()
        second.kill()


@pytest.mark.parametrize(
    "flags",
    [["--coordinator=localhost:1"], ["--processes=2"], ["--coordinator=localhost:1", "--processes=2", "--process=2"]],
)
def test_flags_of_processes_that_do_not_go_together_are_refused(tiny, tmp_path, flags, capsys):
    assert main(["train", *tiny, "--workdir", str(tmp_path / "run"), *flags]) == 2
    assert re.search(r"--processes.* with --coordinator|--coordinator=HOST:PORT goes with", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_second_run_on_a_workdir_is_refused_and_told_of_the_first(tiny, tmp_path, capsys):
    with only_run_in(tmp_path):
        assert main(["train", *tiny, "--workdir", str(tmp_path)]) == 2
        assert f"{tmp_path} is in use by process {os.getpid()} on " in capsys.readouterr().err
    # The lock goes with the run.
    with only_run_in(tmp_path):
        pass
    assert not (tmp_path / "running.json").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_said_and_no_obstacle(tmp_path, number, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".lock").write_text("")  # of a run that was killed
    with only_run_in(tmp_path):
        assert (tmp_path / "running.json").exists()
    assert f"the file system of {tmp_path}/.lock knows no locks" in capsys.readouterr().out


def test_lock_goes_with_a_process_that_was_killed(tmp_path, users_env):
    holder = """
import os, pathlib, signal, sys
from focaljax.cli.runtime import only_run_in
with only_run_in(pathlib.Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", holder, str(tmp_path)], env=users_env, check=False).returncode == -9
    assert (tmp_path / "running.json").exists()
    with only_run_in(tmp_path):
        assert json.loads((tmp_path / "running.json").read_text())["process"] == os.getpid()


def test_workdir_that_cannot_be_made_is_one_line(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", *tiny, "--workdir", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written to: Not a directory" in capsys.readouterr().err


FULL_DISK = """
import resource
from focaljax.cli.main import program
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
program()
"""


def test_full_disk_is_one_line_of_the_program(tiny, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, "train", *tiny, f"--workdir={tmp_path / 'run'}"]
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}  # which needs larger files
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    expected = r"focaljax: the checkpoint of step 2 could not be saved in [^:]*: File too large; there is none .*\n"
    assert re.fullmatch(expected, ended.stderr)

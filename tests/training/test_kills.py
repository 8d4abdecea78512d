"""kill -9 at any moment, in the middle of saving too: the run ends as if nothing had been."""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

KILLS = 30
STEPS = 400

# Forked from a process that has imported everything and started nothing, a run begins in a fraction of a second.
NURSERY = """
import os, pathlib, sys
from tests.training import test_loop
from focaljax.training.loop import Intervals
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        state, _ = test_loop.run(pathlib.Path(line.strip()), steps=int(sys.argv[1]), keep=2,
                                 intervals=Intervals(record=1, evaluate=20, save=3))
        pathlib.Path(line.strip(), "final").write_bytes(state.params["w"].tobytes() + state.step.tobytes())
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Nursery:
    def __init__(self, env):
        command = [sys.executable, "-c", NURSERY, str(STEPS)]
        self._process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, workdir):
        self._write(workdir)
        return int(self._process.stdout.readline())

    def exit_code(self):
        return int(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _write(self, workdir):
        self._process.stdin.write(f"{workdir}\n")
        self._process.stdin.flush()


@pytest.fixture
def nursery(users_env):
    env = {**users_env, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    nursery = Nursery(env)
    yield nursery
    nursery.close()


def unfinished_saves(workdir):
    folder = workdir / "checkpoints"
    return [name for name in os.listdir(folder) if "tmp" in name] if folder.is_dir() else []


def num_records(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(is_time):
    deadline = time.monotonic() + 30
    while not is_time() and time.monotonic() < deadline:
        time.sleep(0.001)


def test_thirty_kills_change_nothing(nursery, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for workdir in (undisturbed, killed):
        workdir.mkdir()
    nursery.start(undisturbed)
    assert nursery.exit_code() == 0
    rng = random.Random(0)
    in_saving = 0
    for kill in range(KILLS):
        child = nursery.start(killed)
        if kill % 2:
            most = num_records(killed) + rng.randint(0, 8)
            wait_until(lambda: num_records(killed) >= most)  # noqa: B023
        else:
            wait_until(lambda: unfinished_saves(killed))
        with contextlib.suppress(ProcessLookupError):  # as the assertion says
            os.kill(child, signal.SIGKILL)
        assert nursery.exit_code() == -signal.SIGKILL, "the run was over before it could be killed: take more steps"
        in_saving += bool(unfinished_saves(killed))
    assert in_saving >= KILLS // 4, "hardly any kill met a save"
    nursery.start(killed)
    assert nursery.exit_code() == 0
    assert (killed / "final").read_bytes() == (undisturbed / "final").read_bytes()
    assert (killed / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    records = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    steps = [(record["step"], record["split"]) for record in records]
    assert len(set(steps)) == len(steps) == STEPS + STEPS // 20
    assert sorted(map(int, os.listdir(killed / "checkpoints"))) == sorted(
        map(int, os.listdir(pathlib.Path(undisturbed, "checkpoints")))
    )

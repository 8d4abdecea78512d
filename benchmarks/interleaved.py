"""Fair timing of contestants that live in several processes, maybe in several Python environments.

All processes start first. Then one call at a time is timed, round by round, every contestant once a round and in a new
order each time, while the others sleep: what disturbs the machine disturbs all alike.
"""

import dataclasses
import json
import os
import pathlib
import random
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, Self

# Processor cores that others may use during a turn that counts as undisturbed.
CORES_OF_OTHERS = 0.2
# With fewer undisturbed turns than this, all count: a median of two says little.
FEWEST_UNDISTURBED = 3

_WORKER = pathlib.Path(__file__).parent / "peers" / "worker.py"
_LINES_OF_ERROR = 15


class WorkerError(RuntimeError):
    """A worker ended before its time."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one contestant took for one part of the work.

    Attributes:
        seconds: a call, one number a round.
        others: processor cores that other processes used in each round; None where the system does not tell.
    """

    seconds: tuple[float, ...]
    others: tuple[float | None, ...]

    @property
    def undisturbed(self) -> int:
        """How many rounds no other process disturbed; where the system does not tell, all."""
        return len(self._undisturbed())

    @property
    def median(self) -> float:
        """The median of the undisturbed rounds, of all if there are fewer than 3 such."""
        seconds = self._undisturbed()
        return statistics.median(seconds if len(seconds) >= FEWEST_UNDISTURBED else self.seconds)

    @property
    def fastest(self) -> float:
        """The shortest of all rounds."""
        return min(self.seconds)

    def _undisturbed(self) -> list[float]:
        return [
            seconds for seconds, others in zip(self.seconds, self.others) if others is None or others < CORES_OF_OTHERS
        ]


class Worker:
    """A process that builds contestants and runs them one at a time; a context manager, which ends it.

    Args:
        python: the interpreter of the environment that has the contestants' packages.
        settings: for peers/worker.py: module, contestants, and what the module's Library takes.
    """

    def __init__(self, python: str, settings: dict[str, Any]) -> None:
        self._name = settings["module"]
        threads = str(settings["threads"])
        root = str(pathlib.Path(__file__).resolve().parent.parent)
        env = os.environ | {
            # Threads that wait in a loop would take a core from whoever has the turn.
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        }
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        try:
            self._process = subprocess.Popen(
                [python, str(_WORKER), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                bufsize=1,
                env=env,
            )
        except OSError as error:
            self._errors.close()
            raise WorkerError(
                f"no Python interpreter at {python!r} ({error.strerror}): pass the path of one"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def answer(self) -> dict[str, Any]:
        """Returns the next answer; the first comes unasked when all contestants are built.

        Raises:
            WorkerError: the process has ended; with the end of what it wrote.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            written = "".join(self._errors.readlines()[-_LINES_OF_ERROR:])
            raise WorkerError(f"the worker {self._name} ended with status {code}:\n{written}")
        return json.loads(line)

    def time(self, contestant: str, part: str, calls: int) -> tuple[float, float | None]:
        """Returns the seconds a call, and how many cores other processes used meanwhile."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"contestant": contestant, "part": part, "calls": calls}) + "\n")
        answer = self.answer()
        return answer["seconds"], answer["others"]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One contestant's part of the work, as it comes once a round."""

    worker: Worker
    contestant: str
    part: str
    calls: int


def time_in_rounds(turns: Sequence[Turn], rounds: int, seed: int) -> dict[tuple[str, str], Timing]:
    """Returns the timing of each turn by (contestant, part).

    Args:
        turns: what is timed once a round.
        rounds: at least 1.
        seed: of the order in each round; one that is always the same would give each the same predecessor.
    """
    seconds: dict[tuple[str, str], list[float]] = {(turn.contestant, turn.part): [] for turn in turns}
    others: dict[tuple[str, str], list[float | None]] = {key: [] for key in seconds}
    order = random.Random(seed)
    for _ in range(rounds):
        for turn in order.sample(list(turns), len(turns)):
            taken, used = turn.worker.time(turn.contestant, turn.part, turn.calls)
            seconds[turn.contestant, turn.part].append(taken)
            others[turn.contestant, turn.part].append(used)
    return {key: Timing(tuple(seconds[key]), tuple(others[key])) for key in seconds}

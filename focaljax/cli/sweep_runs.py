"""The runs of a sweep as processes: begun, stopped, and what each has given."""

import concurrent.futures
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import pathlib
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from focaljax.cli.console import duration, say
from focaljax.cli.sweep_plan import Plan, identity, shown_AP, write_result
from focaljax.sweeps import Run

_TIME = "%Y-%m-%d %H:%M"


def run_all(plan: Plan, runs: Sequence[Run], *, jobs: int) -> int:
    """Runs what is missing; returns the exit code of the first run that failed."""
    missing = [run for run in runs if plan.result(run) is None]
    say(f"{plan.sweep.title}, {plan.data}: {len(runs)} runs, {len(runs) - len(missing)} of them finished")
    with Children() as children, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda run: _run_one(plan, run, children), missing))
    if children.stopped_by is not None:
        say(f"stopped by {children.stopped_by.name}; the same command goes on")
        return 128 + children.stopped_by
    return next((code for code in codes if code), 0)


def _run_one(plan: Plan, run: Run, children: "Children") -> int:
    if children.stopped_by is not None:
        return 0
    folder = plan.workdir / run.folder
    name = f"run {run.index}: {run.row.name}, seed {run.seed}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made_with = provenance()
        start = time.perf_counter()
        with (folder / "log.txt").open("a") as log:
            code = children.run([sys.executable, "-m", "focaljax", *plan.command(run)], log)
        with (folder / "seconds.txt").open("a") as file:  # a line a start
            file.write(f"{time.perf_counter() - start:.1f}\n")
        if children.stopped_by is not None:
            return code
        if code:
            last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
            how = f"was killed by {signal.Signals(-code).name} after" if code < 0 else f"FAILED with {code}:"
            say(f"{name}: {how} {''.join(last)} (see {folder}/log.txt)")
            return code
        result = _result_of(plan, run, folder, made_with)
        write_result(folder, result)
    except (OSError, ValueError, KeyError) as error:
        say(f"{name}: FAILED: {type(error).__name__}: {error}")
        return 1
    say(f"{name}: {plan.sweep.split} AP {shown_AP(result['AP'])} in {duration(result['seconds'])}")
    return 0


def _result_of(plan: Plan, run: Run, folder: pathlib.Path, made_with: dict[str, str]) -> dict[str, Any]:
    """Returns the row of a run that is finished; its devices are those of its last start."""
    evaluation = json.loads((folder / f"evaluation_{plan.sweep.split}.json").read_text())
    log = (folder / "log.txt").read_text(errors="replace")
    devices = re.findall(r"^(.*), batch \d+, learning rate", log, re.MULTILINE)
    own = identity(plan, run)
    return {
        "data": own.pop("data"),
        "row": own.pop("row"),
        "seed": run.seed,
        **{key: value for key, value in evaluation.items() if key.startswith("A")},
        "step": evaluation["step"],
        "seconds": round(sum(map(float, (folder / "seconds.txt").read_text().split())), 1),
        "devices": devices[-1] if devices else "",
        **made_with,
        **own,
    }


class Children:
    """The processes of the runs; a signal to stop is passed on to them, and no other is started.

    The first lets them save their state, the next ends them at once.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def __enter__(self) -> "Children":
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._stop) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str], log: Any) -> int:
        """Runs a command to its end; returns its exit code, 0 if it was not begun."""
        with self._lock:
            if self.stopped_by is not None:
                return 0
            # In a session of its own, so that Ctrl-C reaches it through `_stop` alone, once.
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            self._running.add(child)
            if self.stopped_by is not None:  # the signal came while it was begun
                child.terminate()
        try:
            return child.wait()
        finally:
            self._running.discard(child)

    def _stop(self, number: int, _: Any) -> None:
        # The second SIGINT that a run gets ends it at once.
        numbers = [signal.SIGTERM] if self.stopped_by is None else [signal.SIGINT, signal.SIGINT]
        self.stopped_by = signal.Signals(number)
        for child, number in itertools.product(list(self._running), numbers):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)


def provenance() -> dict[str, str]:
    """Returns where and with what a run is made that begins now."""
    packages = ("focaljax", "jax", "jaxlib", "flax", "optax")
    return {
        "processor": _processor(),
        "versions": " ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime(_TIME),
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Returns the commit of the package's own repository, with '+' if its code or configs differ; '' outside one."""
    here = pathlib.Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != here:
            return ""
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no", "--", "focaljax", "configs") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""

"""focaljax sweep: train the rows of a table, each with several seeds, and make the table and its plot.

Usage: focaljax sweep FILE --workdir DIR [--config.data=NAME] [--jobs N] [--dry-run] [--config.KEY=VALUE ...]

  FILE                  a Python file with get_sweep(), such as experiments/table1b/sweep.py
  --workdir DIR         where everything goes; the same command again runs what is missing
  --config.data=NAME    one of the sweep's data sets, such as shapes, bccd or coco (default: its first)
  --config.KEY=VALUE    for every run, e.g. --config.optim.steps=200
  --seeds 0,1,2         (default: the sweep's)
  --jobs N              runs at a time (default 1)
  --index I             only run I, counted from 0: one job of a cluster's array; no table is made
  --table               run nothing: make the table of what is finished
  --reuse DIR,DIR       sweeps that share runs with this one: theirs with the same settings are not run again
  --dry-run             print the commands instead of running them, and which runs are finished
  --out DIR             for table, plot and results.csv (default: that of --workdir)

Every run is a `focaljax train` in DIR/NAME/ROW/seedS with its log.txt; an interrupted one goes on from its checkpoint.
Then, from all runs that are finished, results.csv (one row a run, of all data sets), NAME.md (mean and standard
deviation over the seeds, beside what the paper has) and NAME.png. A run that has its row in the results.csv of --out is
finished, wherever it was run: with --out=experiments/table1b what others have run is not run again, and its row stays.
One table holds runs of the same overrides: others are refused.

Example:
  focaljax sweep experiments/table1b/sweep.py --workdir runs/table1b --seeds 0
"""

import concurrent.futures
import contextlib
import datetime
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from focaljax.cli.config import (
    default_config,
    flatten,
    is_free_on_resume,
    load_config,
    load_saved_config,
    parse_flags,
    split_config_flags,
)
from focaljax.cli.console import duration, say
from focaljax.cli.main import UsageError, nearest
from focaljax.cli.sweep_report import read_results, write_report, write_whole
from focaljax.evaluation.coco_metrics import MEANINGS
from focaljax.sweeps import Run, Sweep

_DATA = "--config.data="
_TIME = "%Y-%m-%d %H:%M"


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    config_arguments, others = split_config_flags(arguments)
    if files := [argument for argument in config_arguments if argument.startswith("--config=")]:
        raise UsageError(f"{files[0]}: a sweep names its own configs; choose one with {_DATA}NAME")
    flag_values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "where everything goes", flag_values=flag_values)
    flags.DEFINE_list("seeds", None, "of the runs", flag_values=flag_values)
    flags.DEFINE_integer("jobs", 1, "runs at a time", lower_bound=1, flag_values=flag_values)
    flags.DEFINE_integer("index", None, "the only run", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_boolean("table", False, "run nothing", flag_values=flag_values)
    flags.DEFINE_list("reuse", [], "workdirs of other sweeps", flag_values=flag_values)
    flags.DEFINE_boolean("dry-run", False, "print the commands", flag_values=flag_values)
    flags.DEFINE_string("out", "", "of the table", flag_values=flag_values)
    files = parse_flags(others, flag_values)
    if len(files) != 1:
        raise UsageError(f"one sweep file is needed, such as experiments/table1b/sweep.py; got {len(files)}")
    if not flag_values.workdir:
        raise UsageError("--workdir=DIR is needed: the folder for all runs and the table")
    sweep = load_sweep(pathlib.Path(files[0]))
    data = [argument.removeprefix(_DATA) for argument in config_arguments if argument.startswith(_DATA)] or [
        next(iter(sweep.configs))
    ]
    if data[-1] not in sweep.configs:
        raise UsageError(
            f"{_DATA}{data[-1]}: this sweep has {', '.join(sweep.configs)}{nearest(data[-1], list(sweep.configs))}"
        )
    overrides = [argument for argument in config_arguments if not argument.startswith(_DATA)]
    config = pathlib.Path(files[0]).parent / sweep.configs[data[-1]]
    out = pathlib.Path(flag_values.out or flag_values.workdir)
    workdir = pathlib.Path(flag_values.workdir) / data[-1]
    # A folder below --workdir that was removed is to be run again, though the table there still has its row.
    known = _rows(out / "results.csv", data[-1]) if flag_values.out else []
    _check_overrides(sweep, overrides, _rows(out / "results.csv", data[-1]), out)
    plan = _Plan(sweep, os.path.relpath(config), data[-1], workdir, overrides, known)
    runs = _chosen(sweep, data[-1], flag_values.seeds, flag_values.index)
    # A misspelt setting of a row shows now, not after hours.
    for run in {run.row.name: run for run in runs}.values():
        plan.settings_of(run)
    if flag_values["dry-run"].value:
        for run in runs:
            is_finished = "" if plan.result(run) is None else "  (finished)"
            say(f"{run.index}: {shlex.join(['focaljax', *plan.command(run)])}{is_finished}")
        return 0
    _take_over(plan, runs, [pathlib.Path(folder) for folder in flag_values.reuse])
    code = 0 if flag_values.table else _run_all(plan, runs, jobs=flag_values.jobs)
    if flag_values.index is None:
        count = write_report(out, sweep, data[-1], list(plan.results()), is_stale=plan.is_stale)
        number = len(sweep.runs(data[-1]))
        say(f"wrote {out}/results.csv, {data[-1]}.md and {data[-1]}.png: {count} of {number} runs")
    return code


def load_sweep(path: pathlib.Path) -> Sweep:
    """Returns the sweep of a file.

    Raises:
        UsageError: there is no such file, it fails, or its `get_sweep` gives no `Sweep`.
    """
    if not path.is_file():
        raise UsageError(f"no sweep file {path}")
    spec = importlib.util.spec_from_file_location("sweep", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        sweep = module.get_sweep()
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(sweep, Sweep):
        raise UsageError(f"{path}: get_sweep() must return a focaljax.sweeps.Sweep, got {type(sweep).__name__}")
    for name in sweep.metrics:
        if name not in MEANINGS:
            raise UsageError(f"{path}: no metric {name!r}{nearest(name, list(MEANINGS))}; expected some of COCO's 12")
    return sweep


def _check_overrides(
    sweep: Sweep, overrides: Sequence[str], known: Sequence[Mapping[str, Any]], out: pathlib.Path
) -> None:
    """Raises a UsageError for overrides that would make the table say what is not so."""
    of_rows = {"seed", "eval.split", *(name for row in sweep.rows for name in row.overrides)}
    for override in overrides:
        if override.removeprefix("--config.").partition("=")[0] in of_rows:
            raise UsageError(
                f"{override}: the sweep's rows or seeds set this themselves; change the sweep's file instead"
            )
    for row in known:
        if row["overrides"] != shlex.join(overrides):
            raise UsageError(
                f"{out}/results.csv holds runs with the overrides '{row['overrides']}', which would stand in one table "
                f"with those of '{shlex.join(overrides)}': give the same, or name another folder"
            )


class _Plan:
    """What is run, where, and what of it is finished."""

    def __init__(
        self,
        sweep: Sweep,
        config: str,
        data: str,
        workdir: pathlib.Path,
        overrides: Sequence[str],
        known: Sequence[Mapping[str, Any]],
    ) -> None:
        self.sweep, self.config, self.data, self.workdir = sweep, config, data, workdir
        self.overrides = list(overrides)
        self._known = {row["flags"]: dict(row) for row in known}
        self._digests: dict[int, str] = {}

    def flags_of(self, run: Run) -> list[str]:
        """Returns the settings of a run; those for all runs come last, so that they win."""
        of_data = self.sweep.settings.get(self.data, {})
        own = {"eval.split": self.sweep.split, "seed": run.seed, **of_data, **run.row.overrides}
        return [*(f"--config.{name}={value}" for name, value in own.items()), *self.overrides]

    def settings_of(self, run: Run) -> dict[str, Any]:
        """Returns every setting of a run, by its name."""
        return dict(flatten(load_config([f"--config={self.config}", *self.flags_of(run)])))

    def digest(self, run: Run) -> str:
        """Returns what changes if a config file changes what is trained, wherever the data are.

        Defaults do not count, so that new settings leave it.
        """
        if run.index not in self._digests:
            defaults = dict(flatten(default_config()))
            own = {
                name: value
                for name, value in self.settings_of(run).items()
                if value != defaults.get(name) and name != "data.root" and not is_free_on_resume(name)
            }
            text = json.dumps(own, sort_keys=True)
            self._digests[run.index] = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._digests[run.index]

    def command(self, run: Run) -> list[str]:
        """Returns the arguments of `focaljax`."""
        folder = str(self.workdir / run.folder)
        return ["train", "--config", self.config, *self.flags_of(run), "--workdir", folder]

    def result(self, run: Run) -> dict[str, Any] | None:
        """Returns what a finished run gave; None if it is not finished, or was one of other settings."""
        flags_of_run = shlex.join(self.flags_of(run))
        for result in (_read_result(self.workdir / run.folder), self._known.get(flags_of_run)):
            if result and result["flags"] == flags_of_run and self._is_of_now(result, run):
                return {**result, "row": run.row.name}
        return None

    def is_stale(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of a table is of a run whose config has changed since."""
        run = next(
            (run for run in self.sweep.runs(self.data) if shlex.join(self.flags_of(run)) == row.get("flags")), None
        )
        return row["data"] == self.data and run is not None and not self._is_of_now(row, run)

    def _is_of_now(self, result: Mapping[str, Any], run: Run) -> bool:
        return result.get("settings") in (None, "", self.digest(run))  # none: of an older version

    def results(self) -> Iterator[dict[str, Any]]:
        """Yields what the finished runs gave, in their order."""
        for run in self.sweep.runs(self.data):
            result = self.result(run)
            if result is not None:
                yield result


def _rows(table: pathlib.Path, data: str) -> list[dict[str, Any]]:
    try:
        return [row for row in read_results(table) if row["data"] == data and row.get("flags")]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{table} is not what a sweep writes ({error}): mend it or move it away") from None


def _chosen(sweep: Sweep, data: str, seeds: Sequence[str] | None, index: int | None) -> list[Run]:
    runs = sweep.runs(data)
    if index is not None:
        if seeds is not None:
            raise UsageError(
                f"--index={index} and --seeds={','.join(seeds)}: an index is of one row and seed, give one"
            )
        if index >= len(runs):
            raise UsageError(f"--index={index}: this sweep has the runs 0 to {len(runs) - 1}")
        return [runs[index]]
    if seeds is None:
        return runs
    if not seeds or any(seed not in map(str, sweep.seeds) for seed in seeds):
        raise UsageError(f"--seeds={','.join(seeds)}: this sweep has {', '.join(map(str, sweep.seeds))}")
    return [run for run in runs if str(run.seed) in seeds]


def _take_over(plan: _Plan, runs: Sequence[Run], sweeps: Sequence[pathlib.Path]) -> None:
    """Writes down for what is missing what finished runs of other sweeps gave that were made with the same settings.

    Raises:
        UsageError: a folder holds no finished run of a sweep.
    """
    known: list[tuple[dict[str, Any], pathlib.Path]] = []
    for sweep in sweeps:
        paths = sorted(sweep.rglob("result.json"))
        if not paths:
            raise UsageError(f"--reuse={sweep}: no finished run of a sweep is there; name the --workdir of one")
        # What was taken over itself has no config of its own.
        paths = [path for path in paths if (path.parent / "config.json").exists()]
        known += [(dict(flatten(load_saved_config(path.parent))), path) for path in paths]
    for run in runs:
        if plan.result(run) is not None:
            continue
        settings = plan.settings_of(run)
        path = next((path for other, path in known if other == settings), None)
        result = _read_result(path.parent) if path else None
        if path is None or result is None:
            continue
        folder = plan.workdir / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        _write_result(folder, {**result, **_identity(plan, run)})
        say(f"run {run.index}: {run.row.name}, seed {run.seed}: the same as {path.parent}, AP {_shown(result['AP'])}")


def _identity(plan: _Plan, run: Run) -> dict[str, Any]:
    return {
        "data": plan.data,
        "row": run.row.name,
        "overrides": shlex.join(plan.overrides),
        "flags": shlex.join(plan.flags_of(run)),
        "settings": plan.digest(run),
    }


def _write_result(folder: pathlib.Path, result: dict[str, Any]) -> None:
    write_whole(folder / "result.json", json.dumps(result, indent=1) + "\n")


def _read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the result of a finished run; None if it is not finished, or its file is damaged."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and {"AP", "flags"} <= result.keys() else None


def _shown(AP: float | None) -> str:
    return "undefined" if AP is None else f"{AP:.3f}"


def _run_all(plan: _Plan, runs: Sequence[Run], *, jobs: int) -> int:
    """Runs what is missing; returns the exit code of the first run that failed."""
    missing = [run for run in runs if plan.result(run) is None]
    say(f"{plan.sweep.title}, {plan.data}: {len(runs)} runs, {len(runs) - len(missing)} of them finished")
    with _Children() as children, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda run: _run_one(plan, run, children), missing))
    if children.stopped_by is not None:
        say(f"stopped by {children.stopped_by.name}; the same command goes on")
        return 128 + children.stopped_by
    return next((code for code in codes if code), 0)


def _run_one(plan: _Plan, run: Run, children: "_Children") -> int:
    if children.stopped_by is not None:
        return 0
    folder = plan.workdir / run.folder
    name = f"run {run.index}: {run.row.name}, seed {run.seed}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made_with = _provenance()
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
        _write_result(folder, result)
    except (OSError, ValueError, KeyError) as error:
        say(f"{name}: FAILED: {type(error).__name__}: {error}")
        return 1
    say(f"{name}: {plan.sweep.split} AP {_shown(result['AP'])} in {duration(result['seconds'])}")
    return 0


def _result_of(plan: _Plan, run: Run, folder: pathlib.Path, made_with: dict[str, str]) -> dict[str, Any]:
    """Returns the row of a run that is finished; its devices are those of its last start."""
    evaluation = json.loads((folder / f"evaluation_{plan.sweep.split}.json").read_text())
    log = (folder / "log.txt").read_text(errors="replace")
    devices = re.findall(r"^(.*), batch \d+, learning rate", log, re.MULTILINE)
    identity = _identity(plan, run)
    return {
        "data": identity.pop("data"),
        "row": identity.pop("row"),
        "seed": run.seed,
        **{key: value for key, value in evaluation.items() if key.startswith("A")},
        "step": evaluation["step"],
        "seconds": round(sum(map(float, (folder / "seconds.txt").read_text().split())), 1),
        "devices": devices[-1] if devices else "",
        **made_with,
        **identity,
    }


class _Children:
    """The processes of the runs; a signal to stop is passed on to them, and no other is started.

    The first lets them save their state, the next ends them at once.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def __enter__(self) -> "_Children":
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


def _provenance() -> dict[str, str]:
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

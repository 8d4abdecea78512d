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

import importlib.util
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from focaljax.cli.config import parse_flags, split_config_flags
from focaljax.cli.console import say
from focaljax.cli.main import UsageError, nearest
from focaljax.cli.sweep_plan import Plan, take_over
from focaljax.cli.sweep_report import read_results, write_report
from focaljax.cli.sweep_runs import run_all
from focaljax.evaluation.coco_metrics import MEANINGS
from focaljax.sweeps import Run, Sweep

_DATA = "--config.data="


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
    rows = _rows(out / "results.csv", data[-1])
    _check_overrides(sweep, overrides, rows, out)
    # A folder below --workdir that was removed is to be run again, though the table there still has its row.
    plan = Plan(sweep, os.path.relpath(config), data[-1], workdir, overrides, rows if flag_values.out else [])
    runs = _chosen(sweep, data[-1], flag_values.seeds, flag_values.index)
    # A misspelt setting of a row shows now, not after hours.
    for run in {run.row.name: run for run in runs}.values():
        plan.settings_of(run)
    if flag_values["dry-run"].value:
        for run in runs:
            is_finished = "" if plan.result(run) is None else "  (finished)"
            say(f"{run.index}: {shlex.join(['focaljax', *plan.command(run)])}{is_finished}")
        return 0
    take_over(plan, runs, [pathlib.Path(folder) for folder in flag_values.reuse])
    code = 0 if flag_values.table else run_all(plan, runs, jobs=flag_values.jobs)
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

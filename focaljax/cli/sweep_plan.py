"""What a sweep runs, where, and what of it is finished."""

import hashlib
import json
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from focaljax.cli.config import default_config, flatten, is_free_on_resume, load_config, load_saved_config
from focaljax.cli.console import say
from focaljax.cli.main import UsageError
from focaljax.evaluation.whole_files import write_whole
from focaljax.sweeps import Run, Sweep


class Plan:
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


def take_over(plan: Plan, runs: Sequence[Run], sweeps: Sequence[pathlib.Path]) -> None:
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
        write_result(folder, {**result, **identity(plan, run)})
        say(f"run {run.index}: {run.row.name}, seed {run.seed}: the same as {path.parent}, AP {shown_AP(result['AP'])}")


def identity(plan: Plan, run: Run) -> dict[str, Any]:
    """Returns what a row says of which run it is."""
    return {
        "data": plan.data,
        "row": run.row.name,
        "overrides": shlex.join(plan.overrides),
        "flags": shlex.join(plan.flags_of(run)),
        "settings": plan.digest(run),
    }


def write_result(folder: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes `result.json`, which makes a run a finished one."""
    write_whole(folder / "result.json", json.dumps(result, indent=1) + "\n")


def _read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the result of a finished run; None if it is not finished, or its file is damaged."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and {"AP", "flags"} <= result.keys() else None


def shown_AP(AP: float | None) -> str:  # noqa: N802 - its name
    """Returns AP in words."""
    return "undefined" if AP is None else f"{AP:.3f}"

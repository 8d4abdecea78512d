"""What the benchmarks report alike: machine, versions, commit and date; a contestant's times; the JSON file."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from interleaved import Timing


class DisagreementError(AssertionError):
    """Two contestants have computed different things, so that their times say nothing."""


def provenance(answers: Iterable[dict[str, Any]], device: str) -> dict[str, Any]:
    """Returns `machine`, `versions`, `commit` and `date` of a benchmark that runs now.

    Args:
        answers: the workers' first ones, with `device` (an accelerator's name or None) and `versions`; ours first,
            whose version counts where two have the same package.
        device: 'cpu' or 'gpu'.
    """
    answers = list(answers)
    versions: dict[str, str] = {}
    for answer in answers:
        versions = answer["versions"] | versions
    return {
        "machine": _machine([answer["device"] for answer in answers], device),
        "versions": versions,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def times(timing: Timing, *, ours: Timing, calls: int, digits: int) -> dict[str, Any]:
    """Returns a contestant's times as the JSON holds them: in ms, with the ratio to ours.

    Args:
        timing: the contestant's.
        ours: that of focaljax for the same work.
        calls: in each round.
        digits: of a millisecond, behind the point.
    """
    return {
        "median_ms": round(1e3 * timing.median, digits),
        "min_ms": round(1e3 * timing.fastest, digits),
        "times_focaljax": round(timing.median / ours.median, 3),
        "undisturbed_rounds": timing.undisturbed,
        "calls_a_round": calls,
        "ms": [round(1e3 * seconds, digits) for seconds in timing.seconds],
        "cores_used_by_others": [None if cores is None else round(cores, 2) for cores in timing.others],
    }


def publish(result: dict[str, Any], table: str, path: pathlib.Path, reports: dict[str, dict[str, Any]]) -> None:
    """Prints the table, writes the JSON, and ends the program as failed if a contestant did.

    Args:
        result: for the JSON.
        table: the same for a person.
        path: of the JSON.
        reports: of the workers, by contestant.
    """
    print(table)
    write(path, result)
    if any(one.get("error") for one in reports.values()):
        sys.exit("a contestant failed: see the table")


def write(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes the JSON, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def _machine(devices: list[str | None], device: str) -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    accelerator = next((name for name in devices if name), "") if device == "gpu" else ""
    return {
        "processor": accelerator or model,
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        # Elsewhere JAX uses every core there is.
        "threads_are_bound": device == "cpu" and hasattr(os, "sched_setaffinity"),
    }


def commit() -> str | None:
    """Returns the commit, with '+' if files differ from it; None outside a repository."""
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None

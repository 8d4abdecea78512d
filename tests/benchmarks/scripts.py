"""How the benchmarks' tests get at scripts: by import, as their modules find each other, and as processes."""

import contextlib
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


@contextlib.contextmanager
def imported(*names):
    """The modules of these names, from the folders that a script and its workers import from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS / "peers"))
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in names}


def not_installed(package):
    """The source of a package that cannot be imported."""
    return f"raise ModuleNotFoundError(name={package!r})"


def run_script(name, folder, *flags, stand_ins):
    """Runs benchmarks/NAME.py with `--out FOLDER/NAME.json`.

    Args:
        name: of the script.
        folder: for the result and the stand-ins.
        flags: of the script.
        stand_ins: package -> source of a module that takes its place.
    """
    for package, source in stand_ins.items():
        (folder / f"{package}.py").write_text(source)
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *flags, "--out", str(folder / f"{name}.json")],
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def finished_script(name, folder, *flags, stand_ins):
    """Like `run_script` of one that has to succeed; returns the process and the text of its result."""
    completed = run_script(name, folder, *flags, stand_ins=stand_ins)
    assert completed.returncode == 0, completed.stderr
    return completed, (folder / f"{name}.json").read_text()

"""Mutated files through every reader of foreign files: each is read, or refused by a documented error.

Usage: python benchmarks/fuzz.py [--files 10000] [--seed 0] [--kind KIND]

Kinds are COCO and VOC annotations, COCO results, and weights (.npz, .safetensors, .pkl, .pth) through `focaljax
convert`. Half of the files are mutated byte by byte, half in their structure: wrong types, huge numbers, deep nesting,
names that are paths, markup or terminal sequences, pickles that ask for code, archives that unpack to gigabytes. Each
kind runs in a process of its own, so that one that crashes is counted, and prints a row: files, accepted, refused by
a documented error, anything else (must be 0), the slowest file in seconds, and the most memory of the process above
that at its start. A file that takes longer than a minute counts as anything else; so does output that would steer a
terminal, and a file or folder that appears beside those that should be written. Ends with 1 if anything else occurred.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import command
from fuzz_annotations import Coco, Results, Voc
from fuzz_weights import Weights

SHARES = {"coco": 0.28, "voc": 0.24, "results": 0.2, "npz": 0.08, "safetensors": 0.08, "pkl": 0.09, "pth": 0.03}
SECONDS_A_FILE = 60


class StillRunningError(BaseException):
    """A file took longer than it may; not an `Exception`, so that no reader takes it for one of its own."""


def make_kind(kind: str, folder: pathlib.Path) -> Any:
    """Returns what mutates and reads files of one kind, with its files in a folder."""
    plain = {"coco": Coco, "voc": Voc, "results": Results}
    return plain[kind](folder) if kind in plain else Weights(folder, f".{kind}")


def run_kind(kind: str, files: int, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """Returns a row of the table, and the first of the faults with their tracebacks.

    Args:
        kind: a key of `SHARES`.
        files: how many.
        seed: of the mutations.
        folder: empty, for the files; a faulty file is kept there.
    """
    sandbox = folder / "sandbox" / "inside"
    sandbox.mkdir(parents=True)
    one = make_kind(kind, sandbox)
    path = sandbox / f"mutated{one.suffix}"
    rng = random.Random(f"{kind} {seed}")
    row: dict[str, Any] = {"kind": kind, "files": files, "accepted": 0, "refused": 0, "else": 0, "slowest": 0.0}
    faults: list[str] = []
    expected = _names_in(folder) | {path, sandbox / "converted.npz", sandbox / "xml" / "1.xml"}
    signal.signal(signal.SIGALRM, _stop)
    # What the first file imports and compiles is none of its doing. Without torch, no .pth is read.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(*one.documented if kind == "pth" else ()):
        one.read(_written(path, one.base))
    before = _peak_bytes()
    for number in range(files):
        _written(path, one.mutate(rng))
        shown = io.StringIO()
        start = time.perf_counter()
        signal.alarm(SECONDS_A_FILE)
        try:
            with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
                one.read(path)
            outcome = "accepted"
        except one.documented as error:
            outcome = "refused"
            from focaljax.cli.main import _fail

            with contextlib.redirect_stderr(shown):
                _fail(str(error), 1)
        except (Exception, StillRunningError):
            outcome = "else"
            faults.append(traceback.format_exc())
        finally:
            signal.alarm(0)
        row["slowest"] = max(row["slowest"], time.perf_counter() - start)
        steering = set(shown.getvalue()) & {chr(code) for code in range(32) if chr(code) != "\n"}
        unexpected = _names_in(folder) - expected
        if outcome != "else" and (steering or unexpected):
            outcome = "else"
            faults.append(f"steers the terminal: {steering}" if steering else f"wrote {unexpected}")
            expected |= unexpected
        if outcome == "else":
            kept = folder / f"fault_{number}{one.suffix}"
            kept.write_bytes(path.read_bytes())
            expected.add(kept)
        row[outcome] += 1
    row["memory_mb"] = (_peak_bytes() - before) / 1e6
    return row | {"faults": faults[:3]}


def _written(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path


def _names_in(folder: pathlib.Path) -> set[pathlib.Path]:
    return {pathlib.Path(root, name) for root, folders, names in os.walk(folder) for name in (*folders, *names)}


def _stop(*_: object) -> None:
    raise StillRunningError


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    """Runs all kinds and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=SHARES)
    parser.add_argument("--in-this-process", action="store_true", help="print the row of --kind as JSON")
    parser.add_argument("--keep", type=pathlib.Path, help="an empty folder, where faulty files stay")
    arguments = parser.parse_args()
    if arguments.in_this_process:
        with command.folder(arguments.keep) as folder:
            print(json.dumps(run_kind(arguments.kind, arguments.files, arguments.seed, folder)))
        return 0
    print(f"{'kind':12}{'files':>7}{'accepted':>10}{'refused':>9}{'else':>6}{'slowest s':>11}{'memory MB':>11}")
    total: collections.Counter[str] = collections.Counter()
    for kind in [arguments.kind] if arguments.kind else SHARES:
        files = arguments.files if arguments.kind else round(SHARES[kind] * arguments.files)
        row = _in_own_process(kind, files, arguments)
        total.update({key: row[key] for key in ("files", "accepted", "refused", "else")})
        print(
            f"{kind:12}{files:7}{row['accepted']:10}{row['refused']:9}{row['else']:6}{row['slowest']:11.2f}"
            f"{row['memory_mb']:11.0f}",
            flush=True,
        )
        for fault in row["faults"]:
            print(fault)
    print(f"{'all':12}{total['files']:7}{total['accepted']:10}{total['refused']:9}{total['else']:6}")
    return 1 if total["else"] else 0


def _in_own_process(kind: str, files: int, arguments: argparse.Namespace) -> dict[str, Any]:
    flags = ["--in-this-process", "--kind", kind, "--files", str(files), "--seed", str(arguments.seed)]
    if arguments.keep is not None:
        (arguments.keep / kind).mkdir(parents=True)
        flags += ["--keep", str(arguments.keep / kind)]
    done = subprocess.run([sys.executable, __file__, *flags], text=True, capture_output=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    fault = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
    return {
        "accepted": 0,
        "refused": 0,
        "else": files,
        "slowest": 0.0,
        "memory_mb": 0.0,
        "faults": [fault],
        "files": files,
    }


if __name__ == "__main__":
    sys.exit(main())

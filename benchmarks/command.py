"""What the benchmarks' command lines have in common."""

import argparse
import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator

from interleaved import WorkerError
from report import DisagreementError

RESULTS = pathlib.Path(__file__).parent / "results"


def parser(name: str, description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Returns a parser with the flags that every benchmark has: --rounds, --seed and --out.

    Args:
        name: of the benchmark, and of its file in benchmarks/results.
        description: for --help.
        rounds: the default.
    """
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--rounds", type=count, default=rounds, metavar="N", help=f"default: {rounds}")
    result.add_argument("--seed", type=int, default=0, metavar="N", help="of the work and of the order, default: 0")
    out = RESULTS / f"{name}.json"
    result.add_argument("--out", type=pathlib.Path, default=out, metavar="FILE", help=f"default: results/{name}.json")
    return result


def add_device(to: argparse.ArgumentParser) -> None:
    """Adds --device and --threads."""
    to.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="default: cpu")
    add_threads(to)


def add_threads(to: argparse.ArgumentParser) -> None:
    """Adds --threads."""
    to.add_argument("--threads", type=count, default=2, metavar="N", help="of each contestant on the CPU, default: 2")


def add_python(to: argparse.ArgumentParser, package: str) -> None:
    """Adds --python-with-PACKAGE, the interpreter of an environment that has the package."""
    help_text = f"an interpreter that has {package}, default: this one"
    to.add_argument(f"--python-with-{package}", default=sys.executable, metavar="PATH", help=help_text)


def count(text: str) -> int:
    """Returns a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Returns whole numbers of at least 1, written with commas between them."""
    return tuple(count(one) for one in text.split(","))


def some_of(choices: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Returns what reads some of these names, written with commas between them; '' for none."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name)
        if unknown := [name for name in names if name not in choices]:
            raise argparse.ArgumentTypeError(f"no {unknown[0]!r}: choose from {', '.join(choices)}")
        return names

    return read


@contextlib.contextmanager
def folder(kept: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """Gives a folder for a benchmark's files: the one that is to be kept, or one that is removed at the end."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)


def run(main: Callable[[], None]) -> None:
    """Runs a benchmark's main function; what a reader has to know of a failure is one message."""
    try:
        main()
    except (WorkerError, DisagreementError) as error:
        sys.exit(f"{type(error).__name__}: {error}")

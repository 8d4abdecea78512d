"""The console script `focaljax VERB`."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

# Verb -> what it does; the module focaljax.cli.VERB has `main(arguments)` and, as its docstring, the help text.
VERBS = {
    "train": "train a detector from a config",
    "evaluate": "COCO metrics of a trained detector",
    "report": "one page about a run: curves, AP per class, what was taken for what, the best and the worst images",
    "predict": "draw what a trained detector sees in images",
    "convert": "weights of torchvision, detectron2 or a run, read and written under other names",
    "export": "a trained detector as one file that runs without focaljax, for jax (StableHLO) or ONNX",
    "sweep": "train the rows of a table, each with several seeds, and make the table",
    "doctor": "what is wrong with a data set, what the anchors miss of it, and what would fit",
    "samples": "write images of a data set as files, with a COCO annotation file",
    "plan": "memory, arithmetic and communication of the train step, compiled for devices that need not be there",
    "bench": "speed of losses, training, input, suppression, evaluation and prediction, beside their peers",
}

# An error may quote what a file holds; what to do about it comes at the end.
_LONGEST_LINE = 4000

# Verbs that give what follows their first argument to another program, --help included.
_PASSING_ON = ("bench",)

USAGE = """focaljax: object detection with focal loss in JAX.

Usage: focaljax VERB [FLAGS]     `focaljax VERB --help` explains a verb

{verbs}

focaljax --version tells the version; with FOCALJAX_TRACEBACK=1 an error shows where it came from.

Example:
  focaljax train --config configs/shapes.py --workdir runs/shapes
"""


class UsageError(Exception):
    """A mistake in the command or in what it points to: one line, exit code 2."""


def program() -> NoReturn:
    """The console script: runs the verb that the command line names, and ends the process with its exit code."""
    _silence_closed_event_loops()
    code, ends_at_once = _run(sys.argv[1:])
    if ends_at_once:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Runs one verb; returns the exit code: 0, 1 (failed), 2 (wrong usage), 130 (interrupted)."""
    return _run(list(arguments))[0]


def _run(arguments: list[str]) -> tuple[int, bool]:
    """Runs one verb; returns the exit code and whether the process should end without waiting for its threads."""
    try:
        return _run_verb(arguments), False
    except UsageError as error:
        return _fail(str(error), 2), _has_others()
    except KeyboardInterrupt:
        return _fail("interrupted", 130), True  # threads may hang in a file, which may be why it was interrupted
    except BrokenPipeError:  # the reader of the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, _has_others()
    except Exception as error:
        if os.environ.get("FOCALJAX_TRACEBACK") or not _is_expected(error):
            if not _has_others():
                raise
            traceback.print_exc()
            return 1, True
        return _fail(str(error), 1), _has_others() or isinstance(error, _leaving_threads())


def _run_verb(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from focaljax import __version__

        print(f"focaljax {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        return _fail(f"unknown verb {verb!r}{nearest(verb, VERBS)}; the verbs are {', '.join(VERBS)}", 2)
    own = rest[:1] if verb in _PASSING_ON else rest
    if "--help" in own or "-h" in own:
        print(_verb_help(verb))
        return 0
    _import_verb_needs(verb)
    silence_libraries()
    _prepare_process()
    return importlib.import_module(f"focaljax.cli.{verb}").main(rest)


def nearest(name: str, names: Sequence[str] | dict[str, str]) -> str:
    """Returns ' (did you mean X?)' for the name most like `name`, or '' if none is like it."""
    import difflib

    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _import_verb_needs(verb: str) -> None:
    try:
        import flax  # noqa: F401
        import ml_collections  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"`focaljax {verb}` needs the package {error.name}: pip install 'focaljax[train]'") from error


def silence_libraries() -> None:
    """Keeps the libraries' remarks from the terminal; what matters of them is raised or said by focaljax itself."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)


def _silence_closed_event_loops() -> None:
    """Keeps from the terminal what a hundred threads below Python print where a save of Orbax's fails."""
    previous = sys.unraisablehook

    def leave_out(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = leave_out


def _prepare_process() -> None:
    from focaljax.cli.runtime import keep_compiled_programs, keep_freed_memory

    keep_compiled_programs()
    keep_freed_memory()


def _is_expected(error: Exception) -> bool:
    """Whether an error is one that the rooms below raise to say what is wrong with data, files or a run."""
    from focaljax.data.example import DataError
    from focaljax.evaluation.export import ExportError
    from focaljax.training.checkpoints import CheckpointError
    from focaljax.training.loop import TrainingError

    return isinstance(error, DataError | ExportError | CheckpointError | TrainingError | OSError)


def _usage() -> str:
    return USAGE.format(verbs="\n".join(f"  {verb:10} {what}" for verb, what in VERBS.items())).rstrip()


def _verb_help(verb: str) -> str:
    # The docstring is read without importing the module: help must not wait for jax.
    import ast
    import pathlib

    source = (pathlib.Path(__file__).parent / f"{verb}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").strip()


def _leaving_threads() -> tuple[type[Exception], ...]:
    """The errors after which threads may hang in a file, in the libraries that read and save."""
    from focaljax.data.deadline import StalledError
    from focaljax.training.checkpoints import CheckpointError

    return StalledError, CheckpointError


def _has_others() -> bool:
    """Whether other processes are at work for the same run, which would be waited for at the end."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _fail(message: str, code: int) -> int:
    from focaljax.data.report import printable

    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    print(f"focaljax: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    program()

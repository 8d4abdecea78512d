"""Checkpoints of a run: Orbax's manager, with the run's settings inside, and a digest of every file.

In `WORKDIR/checkpoints/STEP` stand `state` (Orbax's own form), `settings` (JSON) and `sha256.json`. To restore a state
without focaljax, see docs/checkpoints.md.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from focaljax.training.mesh import agree, gather_rows, is_primary

logger = logging.getLogger("focaljax.training")
_ABSL_LOGGER = logging.getLogger("absl")

_DIGESTS = "sha256.json"
# Of the arrays that do not fit, so many are named.
_MOST_DIFFERENCES = 4


class CheckpointError(RuntimeError):
    """No checkpoint of a run can be restored, or none saved; the message says why and what to do."""


class MismatchError(CheckpointError):
    """A checkpoint is whole but of another state: other arrays, shapes or types."""


class Checkpoints:
    """The checkpoints of one work directory, in `WORKDIR/checkpoints/STEP`.

    Saving is asynchronous; leaving the `with` block waits for it.

    Args:
        workdir: of the run. Several processes need one that all of them see.
        keep: how many of the latest are kept.
        best_step: gives the step of the best state so far, which is kept too; None: there is none yet.
        read_only: restore only; nothing is created.

    Raises:
        CheckpointError: there are none to restore, or the folder cannot be written to.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: int = 2,
        best_step: Callable[[], int | None] = lambda: None,
        read_only: bool = False,
    ) -> None:
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._read_only = read_only
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoints in {workdir}: expected the --workdir of a run of `focaljax train`")
        # In the background a save is finished and its digests are written; one at a time.
        self._in_background = ThreadPoolExecutor(1, "checkpoint")
        self._saving: tuple[int, Future[None]] | None = None
        policies = [checkpoint_managers.LatestN(keep), _BestStep(best_step)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        try:
            if not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
            handlers = {"state": ocp.StandardCheckpointHandler(), "settings": ocp.JsonCheckpointHandler()}
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        except OSError as error:
            raise CheckpointError(f"cannot keep checkpoints in {self.folder}: {_reason(error)}") from error

    def __enter__(self) -> Self:
        # Orbax logs, from any thread, the failures that are raised here.
        self._filter = lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname
        _ABSL_LOGGER.addFilter(self._filter)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except CheckpointError as error:
            if error_type is None:
                raise
            logger.warning("%s", error)  # the caller's own error is raised
        finally:
            self._in_background.shutdown()
            with contextlib.suppress(Exception):  # said already
                self._manager.close()
            _ABSL_LOGGER.removeFilter(self._filter)

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, settings: Mapping[str, Any]) -> None:
        """Starts to save the state after `step` steps, if that step is not saved yet; waits for the save before.

        Args:
            step: number of finished steps.
            state: a pytree of arrays.
            settings: JSON-able record of the run's configuration and versions, kept beside the state.

        Raises:
            CheckpointError: this save or the one before failed; what was saved earlier is as it was.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        parts = ocp.args.Composite(state=ocp.args.StandardSave(state), settings=ocp.args.JsonSave(settings))
        with self._failing_clearly(step):
            # Where no folder can be made, threads of Orbax's would wait for it for minutes, at the program's end too.
            if not self.folder.is_dir():
                raise OSError("the folder is gone")
            self._manager.save(step, args=parts)
        self._saving = step, self._in_background.submit(self._finish, step)

    def wait(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
            CheckpointError: it could not be saved.
        """
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        with self._failing_clearly(step):
            saving.result()

    def settings(self, step: int) -> dict[str, Any]:
        """Returns the settings that were saved with a step."""
        return self._manager.restore(step, args=ocp.args.Composite(settings=ocp.args.JsonRestore()))["settings"]

    def restore_latest(self, state: Any, *, only: int | None = None) -> tuple[int, Any]:
        """Returns the latest step whose checkpoint can be read, and its state.

        A checkpoint that was damaged after it was written is passed over with a warning and, unless these checkpoints
        are read only, renamed to `damaged-STEP`: the run goes on before it and saves that step anew.

        Args:
            state: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct`s, or a state). The devices may be
                others than those that it was saved from.
            only: the one step to look at; None: all.

        Raises:
            MismatchError: the latest whole checkpoint has other arrays, shapes or dtypes; the message names them.
            CheckpointError: there is no checkpoint, or none can be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        failures: dict[int, str] = {}
        saved = sorted(self._manager.all_steps(), reverse=True)
        candidates = [step for step in saved if only in (None, step)]
        if saved and not candidates:
            there = ", ".join(map(str, reversed(saved)))
            raise CheckpointError(f"no checkpoint of step {only} in {self.folder}: there are those of steps {there}")
        for step in candidates:
            # All processes take the same one, and files may look different to each for a moment.
            damage = agree(_damage(self.folder / str(step)) if is_primary() else "")
            restored = None
            try:
                if damage:
                    raise OSError(damage)
                self._check_fits(step, abstract)
                restored = self._restore(step, abstract)
            except MismatchError:
                raise
            except Exception as error:  # Orbax raises whatever its storage layers raise.
                if isinstance(error, jax.errors.JaxRuntimeError):  # the devices', such as too little memory
                    raise
                damage = _reason(error)
            if gather_rows(np.array([restored is None])).any():
                failures[step] = damage or "another process cannot read it"
                logger.warning("the checkpoint of step %d cannot be read and is passed over: %s", step, failures[step])
                continue
            assert restored is not None
            if not self._read_only:
                self._set_aside(failures)
                if is_primary() and not (self.folder / str(step) / _DIGESTS).exists():
                    self._write_digests(step)  # it was saved by a process that was killed before it wrote them
            return step, restored
        if failures:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in failures.items())
            raise CheckpointError(f"no checkpoint in {self.folder} can be read; {reasons}")
        raise CheckpointError(f"no checkpoint in {self.folder}: has the run saved one yet?")

    def _restore(self, step: int, abstract: Any) -> Any:
        if not dataclasses.is_dataclass(abstract) or isinstance(abstract, type):
            return self._manager.restore(step, args=_state(abstract))["state"]
        parts = {field.name: getattr(abstract, field.name) for field in dataclasses.fields(abstract)}
        # Older versions saved nothing, not even None, for the parts that came later.
        saved = self._manager.item_metadata(step)["state"].tree
        parts = {name: part for name, part in parts.items() if part is not None or name in saved}
        return dataclasses.replace(abstract, **self._manager.restore(step, args=_state(parts))["state"])

    def _finish(self, step: int) -> None:
        self._manager.wait_until_finished()
        if is_primary():
            self._write_digests(step)

    def _write_digests(self, step: int) -> None:
        folder = self.folder / str(step)
        temporary = folder / f"{_DIGESTS}.tmp"
        digests = {path: _digest(folder / path) for path in _files(folder) if path != temporary.name}
        temporary.write_text(json.dumps(digests, indent=1))
        os.replace(temporary, folder / _DIGESTS)

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Renames damaged checkpoints: as the latest they would keep Orbax from saving the steps up to theirs."""
        steps = list(steps)
        if not steps:
            return
        if is_primary():
            for step in steps:
                damaged = self.folder / f"damaged-{step}"
                shutil.rmtree(damaged, ignore_errors=True)
                (self.folder / str(step)).rename(damaged)
        agree("renamed")  # before any process looks
        self._manager.reload()

    @contextlib.contextmanager
    def _failing_clearly(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises whatever its storage layers raise.
            saved = [int(path.name) for path in _entries(self.folder) if path.name.isdigit()]
            kept = f"that of step {max(saved)} is whole" if saved else "there is none before it"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be saved in {self.folder}: {_reason(error)}; {kept}. "
                "Check the disk's space and permissions; the same command goes on from there"
            ) from error

    def _check_fits(self, step: int, abstract: Any) -> None:
        """Raises MismatchError where the saved arrays are not the expected ones; Orbax would cast dtypes silently."""
        expected = _described(abstract)
        saved = _described(self._manager.item_metadata(step)["state"].tree)
        differences = [
            f"{path} is {_shown(saved.get(path))}, expected {_shown(expected.get(path))}"
            for path in sorted(saved.keys() | expected.keys())
            if saved.get(path) != expected.get(path)
        ]
        if differences:
            more = len(differences) - _MOST_DIFFERENCES
            shown = "; ".join(differences[:_MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
            raise MismatchError(f"the checkpoint of step {step} in {self.folder} is of another model: {shown}")


class _BestStep:
    """Orbax's policy to keep the step that is the best at the moment."""

    def __init__(self, best_step: Callable[[], int | None]) -> None:
        self._best_step = best_step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        best = self._best_step()
        return [checkpoint.step == best for checkpoint in checkpoints]


def _damage(folder: pathlib.Path) -> str:
    """Returns what is wrong with the files of a checkpoint; '' if they are as written, or if nobody noted how."""
    path = folder / _DIGESTS
    if not path.exists():  # the process was killed after the commit
        return ""
    try:
        digests = json.loads(path.read_text())
        for name, expected in digests.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            found = _digest(folder / name)
            if found["bytes"] != expected["bytes"]:
                return f"{name} has {found['bytes']} bytes, expected {expected['bytes']}"
            if found != expected:
                return f"{name} has changed since it was written (its SHA-256 is another)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{_DIGESTS} cannot be read ({_reason(error)})"
    return ""


def _state(tree: Any) -> ocp.args.Composite:
    return ocp.args.Composite(state=ocp.args.StandardRestore(tree))


def _digest(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _files(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _described(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns path -> shape and dtype of a tree of arrays, under the names that Orbax gives the parts of any object."""

    def name(key: Any) -> str:
        return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))

    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(map(name, path)): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _shown(array: tuple[tuple[int, ...], str] | None) -> str:
    return "missing" if array is None else f"{array[1]} {list(array[0])}"


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    if number := re.search(r"os_error_code='(\d+)'", text):  # at the end of what TensorStore tells
        return os.strerror(int(number[1]))
    return text.splitlines()[0] if text else type(error).__name__

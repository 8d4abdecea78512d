"""Checkpoints of a run: Orbax's manager, with the run's settings inside."""

import contextlib
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

logger = logging.getLogger("focaljax.training")


class CheckpointError(RuntimeError):
    """No checkpoint of a run can be restored; the message says why and what to do."""


class Checkpoints:
    """The checkpoints of one work directory, in `WORKDIR/checkpoints/STEP`.

    Saving is asynchronous; leaving the `with` block waits for it.

    Args:
        workdir: of the run.
        keep: how many of the latest are kept.
        read_only: restore only; nothing is created.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, read_only: bool = False) -> None:
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"no checkpoints in {workdir}: expected the --workdir of a run of `focaljax train`")
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=not read_only, read_only=read_only, cleanup_tmp_directories=not read_only
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the step of the latest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, settings: Mapping[str, Any]) -> None:
        """Starts to save the state after `step` steps, if that step is not saved yet.

        Args:
            step: number of finished steps.
            state: a pytree of arrays.
            settings: JSON-able record of the run's configuration and versions, kept beside the state.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), settings=ocp.args.JsonSave(settings))
        )

    def restore_latest(self, state: Any) -> tuple[int, Any]:
        """Returns the latest step whose checkpoint can be read, and its state.

        A checkpoint that was damaged after it was written is passed over with a warning.

        Args:
            state: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct`s, or a state).

        Raises:
            CheckpointError: there is no checkpoint, or none can be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        failures = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                with _quiet_orbax():
                    restored = self._manager.restore(
                        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                    )
            except Exception as error:  # Orbax raises whatever its storage layers raise.
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                failures.append(f"step {step}: {reason}")
                logger.warning("the checkpoint of step %d cannot be read and is passed over: %s", step, reason)
                continue
            return step, restored["state"]
        if failures:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read; {'; '.join(failures)}")
        raise CheckpointError(f"no checkpoint in {self.folder}: has the run saved one yet?")


@contextlib.contextmanager
def _quiet_orbax() -> Any:
    """Keeps absl's log lines about a failed restore from the terminal; the error itself is reported."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        absl_logger.setLevel(level)

"""Programs that show a run while it trains: TensorBoard, and Weights & Biases."""

import contextlib
import importlib
import logging
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from focaljax.evaluation.page import encode_jpeg

logger = logging.getLogger(__name__)

# How W&B is used; '': not at all.
WANDB_MODES = ("", "offline", "online")

_RGB = 3  # TensorBoard's number for it


class LoggerError(RuntimeError):
    """A logger cannot be started; the message says what to do."""


class Logger(Protocol):
    """Takes numbers and pictures; steps may come again after a run was killed."""

    def write(self, step: int, values: Mapping[str, float], pictures: Mapping[str, np.ndarray]) -> None:
        """Takes what belongs to one step.

        Args:
            step: number of finished steps.
            values: finite numbers, by names such as 'train/loss'.
            pictures: uint8 `[H, W, 3]`, RGB, by names likewise.
        """

    def close(self) -> None:
        """Writes what is left."""


class TensorBoard:
    """Writes TensorBoard's files in a folder.

    Args:
        folder: of the run; made if need be.
        start_step: number of finished steps; what earlier files have after it is no longer shown.
    """

    # Not tensorboardX's SummaryWriter: where its thread cannot write, everything waits for it for ever.

    def __init__(self, folder: pathlib.Path, *, start_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        restart = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=restart))

    def write(self, step: int, values: Mapping[str, float], pictures: Mapping[str, np.ndarray]) -> None:
        """See `Logger`."""
        summaries = [summary.scalar(name, value) for name, value in values.items()]
        summaries += [_image_summary(name, picture) for name, picture in pictures.items()]
        with naming(self._folder, step):
            for one in summaries:
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=one))
            self._events.flush()

    def close(self) -> None:
        """See `Logger`."""
        with contextlib.suppress(OSError):  # flushed at each record, or said there
            self._events.close()


class WeightsAndBiases:
    """Sends a run to Weights & Biases (W&B), or keeps it in `WORKDIR/wandb` until `wandb sync` does.

    A run that goes on has the id of before, which is kept in `WORKDIR/wandb/id`, so that W&B shows one run. Where W&B
    fails later, a warning says so, and the run goes on without it.

    Args:
        workdir: of the run; its name is the run's.
        mode: 'offline' or 'online'.
        project: W&B's project.
        settings: of the run, shown beside it.

    Raises:
        LoggerError: the package is not installed, or W&B cannot be started.
    """

    def __init__(self, workdir: pathlib.Path, *, mode: str, project: str, settings: Mapping[str, Any]) -> None:
        wandb = import_wandb()
        folder = workdir / "wandb"
        folder.mkdir(exist_ok=True)
        try:
            self._run = wandb.init(
                dir=str(workdir),
                mode=mode,
                project=project,
                name=workdir.absolute().name,
                id=_kept_id(folder / "id"),
                resume="allow",
                config=dict(settings),
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # of the network, of the login, of W&B's own process
            reason = " ".join(str(error).split()) or type(error).__name__
            raise LoggerError(
                f"W&B cannot be started ({reason}): log in with `wandb login`, or set log.wandb to offline or ''"
            ) from error
        # Steps as a value of their own: W&B's would have to rise, and those after a kill come again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._make_image = wandb.Image

    def write(self, step: int, values: Mapping[str, float], pictures: Mapping[str, np.ndarray]) -> None:
        """See `Logger`."""
        self._try(
            lambda run: run.log(
                {"step": step, **values, **{name: self._make_image(picture) for name, picture in pictures.items()}}
            )
        )

    def close(self) -> None:
        """See `Logger`."""
        self._try(lambda run: run.finish())

    def _try(self, action: Callable[[Any], None]) -> None:
        """Does it unless an action failed before: W&B's process or its network must not cost the run."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._run = None
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("W&B takes no more of this run (%s): it goes on, its numbers are in metrics.jsonl", reason)


def import_wandb() -> Any:
    """Returns the module `wandb`.

    Raises:
        LoggerError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise LoggerError(f"log.wandb needs the package {error.name}: pip install 'focaljax[wandb]'") from error


@contextlib.contextmanager
def naming(path: pathlib.Path, step: int) -> Iterator[None]:
    """Puts the file's name into an error of writing to an open file, which has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: the records of step {step}", str(path)) from error


def _image_summary(name: str, picture: np.ndarray) -> Summary:
    height, width, _ = picture.shape
    image = Summary.Image(height=height, width=width, colorspace=_RGB, encoded_image_string=encode_jpeg(picture))
    return Summary(value=[Summary.Value(tag=name, image=image)])


def _kept_id(path: pathlib.Path) -> str:
    if not path.exists():
        path.write_text(f"{uuid.uuid4().hex[:12]}\n")
    return path.read_text().strip()

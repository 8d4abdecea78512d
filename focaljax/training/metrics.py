"""Where a run's numbers go: `metrics.jsonl`, one line a record, and TensorBoard."""

import collections
import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Self

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

Values = Mapping[str, float | None]


class MetricsWriter:
    """Appends records to `WORKDIR/metrics.jsonl` and to TensorBoard files in `WORKDIR/tensorboard`.

    A record is `{"step": 20, "split": "train", "loss": ...}`. Records of steps after `start_step`, which a run that
    was killed left behind, are removed first, so that no step stands twice. A record's values may still be computed by
    another thread; records after it wait, so that their order does not depend on how long that takes. Leaving the
    `with` block waits for all, or, after an error, writes those that are there.

    Args:
        workdir: of the run.
        start_step: number of finished steps.
        writes: False: records are only remembered; for all but one of several processes.
    """

    def __init__(self, workdir: str | pathlib.Path, *, start_step: int = 0, writes: bool = True) -> None:
        workdir = pathlib.Path(workdir)
        self._path = workdir / "metrics.jsonl"
        self._waiting: collections.deque[tuple[int, str, Future[Values]]] = collections.deque()
        self._records = [record for record in read_metrics(workdir) if record["step"] <= start_step]
        self._file, self._events = None, None
        if writes:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(record) + "\n" for record in self._records))
            os.replace(temporary, self._path)
            self._file = self._path.open("a")
            # Not tensorboardX's SummaryWriter: where its thread cannot write, everything waits for it for ever.
            self._folder = workdir / "tensorboard"
            self._folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
            # TensorBoard leaves out what earlier files have from this step on.
            restart = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=restart))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                self.wait()
            else:  # which is what the caller should hear of
                with contextlib.suppress(Exception):
                    self._write_finished()
        finally:
            for output in (self._file, self._events):
                if output is not None:
                    with contextlib.suppress(OSError):  # flushed at each record, or said there
                        output.close()

    def has(self, step: int, split: str) -> bool:
        """Returns whether there is a record of this step and split, written or waiting."""
        known = [(record["step"], record["split"]) for record in self._records]
        return (step, split) in known + [(of_step, of_split) for of_step, of_split, _ in self._waiting]

    def best_step(self, split: str, name: str) -> int | None:
        """Returns the step whose written record of a split has the highest value, the first of equals; None: none."""
        values = {r["step"]: r[name] for r in self._records if r["split"] == split and r.get(name) is not None}
        return max(values, key=lambda step: (values[step], -step), default=None)

    def write(self, step: int, split: str, values: Values | Future[Values]) -> None:
        """Adds one record; None and values that are not finite become null, and are left out of TensorBoard.

        Args:
            step: number of finished steps.
            split: such as 'train'.
            values: numbers by name, or what will give them. An error in there is raised here or at a later call.
        """
        if not isinstance(values, Future):
            finished: Future[Values] = Future()
            finished.set_result(values)
            values = finished
        self._waiting.append((step, split, values))
        self._write_finished()

    def wait(self) -> None:
        """Waits until all records are written."""
        for _, _, values in self._waiting:
            values.exception()
        self._write_finished()

    def _write_finished(self) -> None:
        while self._waiting and self._waiting[0][2].done():
            step, split, values = self._waiting[0]
            finished = values.result()  # an error in there stops all that comes after
            self._waiting.popleft()
            self._write(step, split, finished)

    def _write(self, step: int, split: str, values: Values) -> None:
        finite = {
            name: float(value) if value is not None and math.isfinite(value) else None for name, value in values.items()
        }
        record: dict[str, Any] = {"step": step, "split": split, **finite}
        self._records.append(record)
        if self._file is None or self._events is None:
            return
        with _naming(self._path, step):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        with _naming(self._folder, step):
            for name, value in finite.items():
                if value is not None:
                    scalar = summary.scalar(f"{split}/{name}", value)
                    self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar))
            self._events.flush()


@contextlib.contextmanager
def _naming(path: pathlib.Path, step: int) -> Iterator[None]:
    """Puts the file's name into an error of writing to an open file, which has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: the records of step {step}", str(path)) from error


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a run in the order of their writing; a last line that was cut off is left out."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records

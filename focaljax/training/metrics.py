"""Where a run's numbers go: `metrics.jsonl`, one line a record, and the programs that show it."""

import collections
import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import IO, Any, Self

import numpy as np

from focaljax.training.loggers import Logger, TensorBoard, naming

Values = Mapping[str, float | None]


class MetricsWriter:
    """Appends records to `WORKDIR/metrics.jsonl`, and gives them to TensorBoard, in `WORKDIR/tensorboard`, and others.

    A record is `{"step": 20, "split": "train", "loss": ...}`; what a run would not give again, such as its speed, goes
    into `WORKDIR/timings.jsonl` instead, so that two runs of the same have the same records. Records
    of steps after `start_step`, which a run that was killed left behind, are removed first, so that no step stands
    twice. A record's values may still be computed by
    another thread; records after it wait, so that their order does not depend on how long that takes. Leaving the
    `with` block waits for all, or, after an error, writes those that are there.

    Args:
        workdir: of the run.
        start_step: number of finished steps.
        writes: False: records are only remembered; for all but one of several processes.
        loggers: besides TensorBoard; closed with the writer.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        start_step: int = 0,
        writes: bool = True,
        loggers: Sequence[Logger] = (),
    ) -> None:
        workdir = pathlib.Path(workdir)
        self._path = workdir / "metrics.jsonl"
        self._waiting: collections.deque[tuple[int, str, Future[Values], Mapping[str, float]]] = collections.deque()
        self._records = [record for record in read_metrics(workdir) if record["step"] <= start_step]
        self._pictures: collections.deque[tuple[int, dict[str, np.ndarray]]] = collections.deque()
        self._file, self._timings = None, None
        self._loggers = list(loggers)
        if writes:
            self._file = _reopened(self._path, self._records)
            self._timings = _reopened(workdir / "timings.jsonl", read_timings(workdir))
            self._loggers.insert(0, TensorBoard(workdir / "tensorboard", start_step=start_step))

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
            for output in (self._file, self._timings, *self._loggers):
                if output is not None:
                    with contextlib.suppress(OSError):  # flushed at each record, or said there
                        output.close()

    def has(self, step: int, split: str) -> bool:
        """Returns whether there is a record of this step and split, written or waiting."""
        known = [(record["step"], record["split"]) for record in self._records]
        return (step, split) in known + [(of_step, of_split) for of_step, of_split, _, _ in self._waiting]

    def best_step(self, split: str, name: str) -> int | None:
        """Returns the step whose written record of a split has the highest value, the first of equals; None: none."""
        best = best_record(self._records, split, name)
        return None if best is None else best["step"]

    def write(
        self, step: int, split: str, values: Values | Future[Values], *, timings: Mapping[str, float] | None = None
    ) -> None:
        """Adds one record; None and values that are not finite become null, and are left out of what shows it.

        Args:
            step: number of finished steps.
            split: such as 'train'.
            values: numbers by name, or what will give them. An error in there is raised here or at a later call.
            timings: likewise, of what is not the same when it is done again; no part of the record.
        """
        if not isinstance(values, Future):
            finished: Future[Values] = Future()
            finished.set_result(values)
            values = finished
        self._waiting.append((step, split, values, timings or {}))
        self._write_finished()

    def show(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Gives pictures to the loggers, with the next record that is written; any thread may call this.

        Args:
            step: number of finished steps.
            pictures: uint8 `[H, W, 3]`, RGB, by names such as 'val/1'.
        """
        self._pictures.append((step, dict(pictures)))

    def wait(self) -> None:
        """Waits until all records are written."""
        for _, _, values, _ in self._waiting:
            values.exception()
        self._write_finished()

    def _write_finished(self) -> None:
        while self._waiting and self._waiting[0][2].done():
            step, split, values, timings = self._waiting[0]
            finished = values.result()  # an error in there stops all that comes after
            self._waiting.popleft()
            self._write(step, split, finished, timings)

    def _write(self, step: int, split: str, values: Values, timings: Mapping[str, float]) -> None:
        finite = {
            name: float(value) if value is not None and math.isfinite(value) else None for name, value in values.items()
        }
        record: dict[str, Any] = {"step": step, "split": split, **finite}
        self._records.append(record)
        if self._file is None or self._timings is None:
            return
        with naming(self._path, step):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            if timings:
                self._timings.write(json.dumps({"step": step, **timings}) + "\n")
                self._timings.flush()
        shown = {f"{split}/{name}": value for name, value in {**finite, **timings}.items() if value is not None}
        for logger in self._loggers:
            logger.write(step, shown, {})
        while self._pictures:
            of_step, pictures = self._pictures.popleft()
            for logger in self._loggers:
                logger.write(of_step, {}, pictures)


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a run in the order of their writing; a last line that was cut off is left out."""
    return _read_lines(pathlib.Path(workdir) / "metrics.jsonl")


def best_record(records: Sequence[dict[str, Any]], split: str, name: str = "AP") -> dict[str, Any] | None:
    """Returns the record of a split that has the highest value, the first of equals; None: none has one."""
    of_split = [record for record in records if record["split"] == split and record.get(name) is not None]
    return max(of_split, key=lambda record: (record[name], -record["step"]), default=None)


def read_timings(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns what a run took, in the order of its doing: steps that were done twice, after a kill, stand twice."""
    return _read_lines(pathlib.Path(workdir) / "timings.jsonl")


def _reopened(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> IO[str]:
    """Returns the file, to be gone on with, after these records."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.replace(temporary, path)
    return path.open("a")


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records

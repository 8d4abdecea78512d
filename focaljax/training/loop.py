"""The loop: steps, records, evaluations and checkpoints, in that order; and how it stops."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, Self

import jax
import numpy as np

from focaljax.training.checkpoints import Checkpoints
from focaljax.training.mesh import put_batches
from focaljax.training.metrics import MetricsWriter
from focaljax.training.state import TrainState
from focaljax.training.step import TRAIN_KEYS

# From (state, step), while the devices predict, to what is left to do without them, which gives AP and other numbers.
Evaluate = Callable[[TrainState, int], Callable[[], Mapping[str, float | None]]]


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress line shows.

    Attributes:
        step: finished steps.
        steps: of the whole run.
        metrics: of the last recorded step.
        images_per_second: since the last line.
        seconds_left: estimate for the training steps, evaluations not counted.
    """

    step: int
    steps: int
    metrics: Mapping[str, float]
    images_per_second: float
    seconds_left: float


@dataclasses.dataclass(frozen=True)
class Intervals:
    """What happens after every so many steps; 0: only after the last one.

    Attributes:
        record: metrics are fetched and written.
        evaluate: the model is evaluated.
        save: a checkpoint is saved.
    """

    record: int
    evaluate: int
    save: int


def run_training(
    state: TrainState,
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    batches: Callable[[int], Iterable[Mapping[str, np.ndarray]]],
    *,
    steps: int,
    mesh: jax.sharding.Mesh,
    intervals: Intervals,
    writer: MetricsWriter,
    checkpoints: Checkpoints,
    settings: Mapping[str, Any],
    evaluate: Evaluate,
    evaluation_split: str,
    on_progress: Callable[[Progress], None],
) -> tuple[TrainState, signal.Signals | None]:
    """Trains from the state's step to `steps`; returns the last state, and the signal that stopped training, if any.

    The result does not depend on where a run was interrupted: batches are a function of the step, records are written
    at multiples of the interval, and an evaluation that is missing in the records is made up for. Training waits while
    the devices predict, but not for the metrics, which another thread computes; those of an evaluation are written
    before the next one begins and before a later state is saved. On SIGINT or SIGTERM the current step is finished and
    saved.

    Args:
        state: after any number of steps; its buffers are given away.
        train_step: compiled, from (state, batch on the devices) to (state, metrics).
        batches: from a step to the endless batches that follow it, on the host.
        steps: of the whole run.
        mesh: over which batches are split.
        intervals: when things happen.
        writer: takes records of the splits 'train' and `evaluation_split`.
        checkpoints: takes states.
        settings: saved with each state.
        evaluate: from (state, step) to a function that gives AP and other numbers; called in another thread, it must
            leave the devices alone.
        evaluation_split: its name in the records.
        on_progress: called after each record.

    Raises:
        TrainingError: the loss of a recorded step is not finite; the last checkpoint is kept as it is.
    """
    step = int(state.step)
    is_due = lambda interval: step == steps or (interval > 0 and step % interval == 0)  # noqa: E731
    unfetched: tuple[int, dict[str, jax.Array], int] | None = None

    def record() -> None:
        """Fetches, writes and shows the metrics that wait for it, if any."""
        nonlocal unfetched
        if unfetched is None:
            return
        (of_step, metrics, images), unfetched = unfetched, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"the loss is {values['loss']} at step {of_step}: lower optim.learning_rate, or set "
                "optim.clip_norm or a longer optim.warmup_steps; the checkpoint before is kept"
            )
        writer.write(of_step, "train", values)
        seconds_per_step = rate.seconds_per_step(of_step)
        seconds_left = (steps - of_step) * seconds_per_step
        on_progress(Progress(of_step, steps, values, images / seconds_per_step, seconds_left))

    def start_evaluation() -> None:
        writer.wait()  # no more than one at a time
        writer.write(step, evaluation_split, in_background.submit(evaluate(state, step)))

    def save() -> None:
        writer.wait()  # what stands in the records before a saved state is not computed again
        checkpoints.save(step, state, settings)

    with StopSignals() as stop, ThreadPoolExecutor(1, "metrics") as in_background:
        if step > 0 and is_due(intervals.evaluate) and not writer.has(step, evaluation_split):
            start_evaluation()
        rate = _Rate(step)
        host_and_device = put_batches(batches(step), mesh, TRAIN_KEYS) if step < steps else iter(())
        is_first = True
        while step < steps and not stop.requested:
            host_batch, batch = next(host_and_device)
            # Compiled within the first call; the device may still be at work when a call is over.
            with rate.paused() if is_first else contextlib.nullcontext():
                state, metrics = train_step(state, batch)
            is_first = False
            step += 1
            # The metrics of the step before are fetched while the device works on this one.
            record()
            if is_due(intervals.record):
                unfetched = step, metrics, host_batch["image"].shape[0] * jax.process_count()
            if is_due(intervals.save) or is_due(intervals.evaluate) or stop.requested:
                record()  # a state is saved only after its loss was looked at
            if is_due(intervals.save) or stop.requested:
                save()
            if is_due(intervals.evaluate) and not stop.requested:
                jax.block_until_ready(state)
                with rate.paused():
                    start_evaluation()
        record()
        if step < steps:
            save()
        writer.wait()
    return state, stop.requested


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second SIGINT interrupts at once.

    Attributes:
        requested: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)


class _Rate:
    """Measures the time of a step over the last stretch, without evaluations."""

    def __init__(self, step: int) -> None:
        self._step, self._time, self._pause = step, time.perf_counter(), 0.0

    def seconds_per_step(self, step: int) -> float:
        now = time.perf_counter()
        seconds = (now - self._time - self._pause) / max(1, step - self._step)
        self._step, self._time, self._pause = step, now, 0.0
        return max(seconds, 1e-9)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._pause += time.perf_counter() - start

"""The loop: steps, records, evaluations and checkpoints, in that order; and how it stops."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from focaljax.training.checkpoints import Checkpoints
from focaljax.training.mesh import agree, gather_rows, put_batches
from focaljax.training.metrics import MetricsWriter
from focaljax.training.state import TrainState
from focaljax.training.step import TRAIN_KEYS

# From (state, step, whether to stop), while the devices predict, to what is left to do without them, which gives AP and
# other numbers and is called in another thread. "Whether to stop" is asked after every batch; if so the result is None.
Evaluate = Callable[[TrainState, int, Callable[[], bool]], Callable[[], Mapping[str, float | None]] | None]


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
class NonfiniteStep:
    """A step whose loss or gradient was not finite.

    Attributes:
        step: counted from 1.
        loss: of the batch.
        gradient_norm: of the batch.
        image_ids: of the whole batch, of all processes; -1 for images that could not be read.
    """

    step: int
    loss: float
    gradient_norm: float
    image_ids: tuple[int, ...]


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
    on_nonfinite: Callable[[NonfiniteStep], None],
    stops_at_nonfinite: bool = True,
) -> tuple[TrainState, signal.Signals | None]:
    """Trains from the state's step to `steps`; returns the last state, and the signal that stopped training, if any.

    The result does not depend on where a run was interrupted: batches are a function of the step, records are written
    at multiples of the interval, and an evaluation that is missing in the records is made up for. Training waits while
    the devices predict, but not for the metrics, which another thread computes; those of an evaluation are written
    before the next one begins and before a later state is saved. A state is also saved before each evaluation. On
    SIGINT or SIGTERM, to any of several processes, all finish the current step (or leave the evaluation) and save.

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
        evaluate: see `Evaluate`.
        evaluation_split: its name in the records.
        on_progress: called after each record.
        on_nonfinite: called for each step whose loss or gradient is not finite, with what is known about it.
        stops_at_nonfinite: the train step changes nothing from such a step on: the state before it is saved and
            training ends with an error. False: the train step skips it, and training goes on.

    Raises:
        TrainingError: the loss or gradient of a step is not finite.
        CheckpointError: a state cannot be saved.
    """
    step = int(state.step)
    is_due = lambda interval: step == steps or (interval > 0 and step % interval == 0)  # noqa: E731
    num_skipped = int(state.skipped)
    unseen: _Unseen | None = None

    def look() -> None:
        """Looks at the metrics that wait for it, if any: are they finite? Records them where they are due."""
        nonlocal unseen, num_skipped
        if unseen is None:
            return
        seen, unseen = unseen, None
        if (skipped := int(seen.metrics["skipped"])) > num_skipped:
            num_skipped = skipped
            nonfinite = NonfiniteStep(
                seen.step,
                float(seen.metrics["loss"]),
                float(seen.metrics["gradient_norm"]),
                tuple(gather_rows(seen.image_ids).tolist()),
            )
            on_nonfinite(nonfinite)
            if stops_at_nonfinite:
                raise _stop_before(nonfinite)
        if not seen.is_recorded:
            return
        values = {name: float(value) for name, value in jax.device_get(seen.metrics).items()}
        num_steps, seconds = rate.since_last(seen.step)
        images_per_second = num_steps * len(seen.image_ids) * jax.process_count() / seconds
        timings = {"seconds": seconds, "images_per_second": images_per_second}
        writer.write(seen.step, "train", values, timings=timings)
        seconds_left = (steps - seen.step) * seconds / num_steps
        on_progress(Progress(seen.step, steps, values, images_per_second, seconds_left))

    def _stop_before(nonfinite: NonfiniteStep) -> TrainingError:
        # The train step has kept the state before this one.
        checkpoints.save(nonfinite.step - 1, dataclasses.replace(state, skipped=0 * state.skipped), settings)
        return TrainingError(
            f"the loss is {nonfinite.loss} and the gradient's norm {nonfinite.gradient_norm} at step {nonfinite.step}: "
            "lower optim.learning_rate, or set optim.clip_norm or a longer optim.warmup_steps, or leave such steps out "
            f"with optim.nonfinite=skip; the state after step {nonfinite.step - 1} is saved"
        )

    def start_evaluation() -> None:
        writer.wait()  # no more than one at a time
        measure = evaluate(state, step, stop.reached)
        if measure is not None:
            writer.write(step, evaluation_split, in_background.submit(measure))

    def save() -> None:
        writer.wait()  # what stands in the records before a saved state is not computed again
        checkpoints.save(step, state, settings)

    with StopSignals() as stop, ThreadPoolExecutor(1, "metrics") as in_background:
        # What stands in the records may look different to each process for a moment.
        if step > 0 and is_due(intervals.evaluate) and not agree("has" * writer.has(step, evaluation_split)):
            start_evaluation()
        rate = _Rate(step)
        host_and_device = put_batches(batches(step), mesh, TRAIN_KEYS) if step < steps else iter(())
        is_first = True
        while step < steps and not stop.is_reached:
            host_batch, batch = next(host_and_device)
            # Compiled within the first call; the device may still be at work when a call is over.
            with rate.paused() if is_first else contextlib.nullcontext():
                state, metrics = train_step(state, batch)
            is_first = False
            step += 1
            # The metrics of the step before are looked at while the device works on this one.
            look()
            unseen = _Unseen(step, metrics, host_batch["image_id"], is_due(intervals.record))
            is_stopping = stop.reached()
            is_evaluated = is_due(intervals.evaluate)
            if is_due(intervals.save) or is_evaluated or is_stopping:
                look()  # a state is saved only after its loss was looked at
                save()
            if is_evaluated and not is_stopping:
                jax.block_until_ready(state)
                with rate.paused():
                    start_evaluation()
        look()
        writer.wait()
        checkpoints.wait()  # a second signal must not end the process while the last state is being saved
    return state, stop.requested if stop.is_reached else None


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second SIGINT interrupts at once.

    Of several processes, all stop at the same call of `reached`, whichever got the signal; JAX's preemption service
    tells them.

    Attributes:
        requested: the signal that came, or None.
        is_reached: what the last call of `reached` gave.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self.is_reached = False
        self._calls = 0
        self._is_alone = jax.process_count() == 1

    def __enter__(self) -> Self:
        # Of several processes, SIGTERM is the preemption service's own, in a handler below Python.
        numbers = (signal.SIGINT, signal.SIGTERM) if self._is_alone else (signal.SIGINT,)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Returns whether to stop now. All processes call this equally often; once it is True it stays so."""
        if self._is_alone:
            self.is_reached = self.requested is not None
        elif not self.is_reached:
            self._calls += 1
            self.is_reached = multihost_utils.reached_preemption_sync_point(self._calls)
            if self.is_reached:
                self.requested = self.requested or signal.SIGTERM
        return self.is_reached

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)
        if not self._is_alone:
            os.kill(os.getpid(), signal.SIGTERM)  # which tells the others


@dataclasses.dataclass(frozen=True)
class _Unseen:
    """A step that the devices may still be at work on, and this process's images in it."""

    step: int
    metrics: dict[str, jax.Array]
    image_ids: np.ndarray
    is_recorded: bool


class _Rate:
    """Measures the time of the steps of the last stretch, without evaluations."""

    def __init__(self, step: int) -> None:
        self._step, self._time, self._pause = step, time.perf_counter(), 0.0

    def since_last(self, step: int) -> tuple[int, float]:
        """Returns the number of steps since the last call, and their seconds."""
        now = time.perf_counter()
        num_steps, seconds = max(1, step - self._step), now - self._time - self._pause
        self._step, self._time, self._pause = step, now, 0.0
        return num_steps, max(seconds, 1e-9)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._pause += time.perf_counter() - start

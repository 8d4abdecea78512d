"""The loop, with a train step so small that its result is known: where it stops does not change what comes out."""

import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.training.checkpoints import Checkpoints
from focaljax.training.loop import Intervals, StopSignals, TrainingError, run_training
from focaljax.training.mesh import make_mesh
from focaljax.training.metrics import MetricsWriter, read_metrics
from focaljax.training.state import TrainState
from focaljax.training.step import TRAIN_KEYS

STEPS = 10


def initial_state():
    return TrainState(step=jnp.int32(0), params={"w": jnp.float32(1.0)}, batch_stats={}, opt_state=(), ema_params=None)


@jax.jit
def train_step(state, batch):
    w = state.params["w"] * 0.9 + batch["image"].mean()
    new = TrainState(step=state.step + 1, params={"w": w}, batch_stats={}, opt_state=(), ema_params=None)
    return new, {"loss": w}


def batches(start, *, signal_at=None, number=signal.SIGTERM):
    """Batches that depend on the step alone; step `signal_at` is when someone stops the run."""
    step = start
    while True:
        if step == signal_at:
            os.kill(os.getpid(), number)
        rows = np.full((8, 1), float(step), np.float32)
        yield dict.fromkeys(TRAIN_KEYS, rows)
        step += 1


def run(
    workdir,
    *,
    evaluations=None,
    intervals=None,
    train_step=train_step,
    on_progress=lambda _: None,
    measure=lambda step, AP: {"AP": AP},
    **signals,
):
    evaluations = [] if evaluations is None else evaluations

    def evaluate(state, step):
        evaluations.append(step)
        AP = float(state.params["w"])
        return lambda: measure(step, AP)

    state = initial_state()
    with Checkpoints(workdir) as checkpoints:
        if checkpoints.latest_step() is not None:
            _, state = checkpoints.restore_latest(state)
        with MetricsWriter(workdir, start_step=int(state.step)) as writer:
            return run_training(
                state,
                train_step,
                lambda step: batches(step, **signals),
                steps=STEPS,
                mesh=make_mesh(jax.devices()[:1]),
                intervals=intervals or Intervals(record=1, evaluate=4, save=5),
                writer=writer,
                checkpoints=checkpoints,
                settings={},
                evaluate=evaluate,
                evaluation_split="val",
                on_progress=on_progress,
            )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    state, stopped_by = run(workdir)
    assert stopped_by is None
    return state, read_metrics(workdir)


# One batch is put ahead, so the signal of batch 3 comes before step 3 has run.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("signal_at", [1, 3, 4, 5, 9])
def test_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, undisturbed, signal_at, number):
    state, stopped_by = run(tmp_path, signal_at=signal_at, number=number)
    assert stopped_by == number
    assert int(state.step) < STEPS
    state, stopped_by = run(tmp_path)
    assert stopped_by is None
    expected_state, expected_records = undisturbed
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)
    assert read_metrics(tmp_path) == expected_records


def test_training_goes_on_while_metrics_are_computed_and_records_keep_their_order(tmp_path, undisturbed):
    trained_on = threading.Event()

    def measure(step, AP):
        if step == 4:
            assert trained_on.wait(timeout=60), "training waited for the metrics"
        return {"AP": AP}

    def watched(state, batch):
        if int(state.step) == 4:  # the step after the evaluation
            trained_on.set()
        return train_step(state, batch)

    run(tmp_path, measure=measure, train_step=watched)
    assert read_metrics(tmp_path) == undisturbed[1]


def test_state_after_an_evaluation_is_saved_when_its_metrics_stand_in_the_records(tmp_path):
    saved = lambda: [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]  # noqa: E731
    seen = {}

    def measure(step, AP):
        time.sleep(0.3)
        seen[step] = saved()
        return {"AP": AP}

    run(tmp_path, measure=measure)
    assert seen[4] == []
    assert "10" not in seen[8]


def test_error_while_metrics_are_computed_ends_training(tmp_path):
    def measure(step, AP):
        if step == 8:
            raise OSError("no space left on device")
        return {"AP": AP}

    with pytest.raises(OSError, match="no space left"):
        run(tmp_path, measure=measure)
    assert {r["step"] for r in read_metrics(tmp_path) if r["split"] == "val"} == {4}
    assert read_metrics(tmp_path)[-1]["step"] == 8  # what came after waited for it
    run(tmp_path)
    assert {r["step"] for r in read_metrics(tmp_path) if r["split"] == "val"} == {4, 8, 10}


def test_evaluates_at_the_interval_and_at_the_end(tmp_path):
    evaluations = []
    run(tmp_path, evaluations=evaluations)
    assert evaluations == [4, 8, 10]


def test_interval_of_zero_means_at_the_end_only(tmp_path):
    evaluations = []
    run(tmp_path, evaluations=evaluations, intervals=Intervals(record=3, evaluate=0, save=0))
    assert evaluations == [10]
    assert [r["step"] for r in read_metrics(tmp_path) if r["split"] == "train"] == [3, 6, 9, 10]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["10"]


def test_finished_run_does_nothing_again(tmp_path):
    run(tmp_path)
    evaluations = []
    state, _ = run(tmp_path, evaluations=evaluations)
    assert int(state.step) == STEPS
    assert evaluations == []


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    def diverging(state, batch):
        new, metrics = train_step(state, batch)
        return new, {"loss": jnp.where(state.step == 6, jnp.nan, metrics["loss"])}

    with pytest.raises(TrainingError, match=r"loss is nan at step 7: lower optim\.learning_rate"):
        run(tmp_path, train_step=diverging)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]


def test_metrics_of_a_step_are_fetched_when_the_next_one_is_under_way(tmp_path):
    events = []

    def watched(state, batch):
        events.append(f"step {int(state.step) + 1} starts")
        return train_step(state, batch)

    intervals = Intervals(record=1, evaluate=0, save=3)
    show = lambda progress: events.append(f"{progress.step} shown")  # noqa: E731
    run(tmp_path, train_step=watched, intervals=intervals, on_progress=show)
    # Step 3 is saved, so its loss is looked at first.
    assert events[:8] == [
        "step 1 starts", "step 2 starts", "1 shown", "step 3 starts", "2 shown", "3 shown", "step 4 starts",
        "step 5 starts",
    ]  # fmt: skip
    assert events[-1] == f"{STEPS} shown"


def test_state_whose_loss_is_not_finite_is_not_saved(tmp_path):
    def diverging(state, batch):
        new, metrics = train_step(state, batch)
        return new, {"loss": jnp.where(state.step == 9, jnp.inf, metrics["loss"])}

    with pytest.raises(TrainingError, match="loss is inf at step 10"):
        run(tmp_path, train_step=diverging)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]


def test_handlers_are_put_back_and_a_second_interrupt_is_immediate():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before

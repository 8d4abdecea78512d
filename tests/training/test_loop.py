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
from focaljax.training.mesh import copy_to_all, is_primary, make_mesh
from focaljax.training.metrics import MetricsWriter, read_metrics
from focaljax.training.state import TrainState
from focaljax.training.step import TRAIN_KEYS

STEPS = 10


def initial_state():
    return new_state(0, 1.0, 0)


def new_state(step, w, skipped):
    return TrainState(
        step=jnp.int32(step),
        params={"w": jnp.float32(w)},
        batch_stats={},
        opt_state=(),
        ema_params=None,
        normalizer=None,
        ghm_counts=None,
        skipped=jnp.int32(skipped),
    )


@jax.jit
def train_step(state, batch):
    w = state.params["w"] * 0.9 + batch["image"].mean()
    new = new_state(state.step + 1, w, state.skipped)
    return new, {"loss": w, "gradient_norm": w, "skipped": state.skipped}


def batches(start, *, signal_at=None, number=signal.SIGTERM):
    """Batches that depend on the step alone; step `signal_at` is when someone stops the run."""
    step = start
    while True:
        if step == signal_at:
            os.kill(os.getpid(), number)
        share = 8 // jax.process_count()
        own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        rows = np.full((8, 1), float(step), np.float32)[own]
        yield {**dict.fromkeys(TRAIN_KEYS, rows), "image_id": (np.arange(8) + 10 * step)[own]}
        step += 1


def run(
    workdir,
    *,
    evaluations=None,
    intervals=None,
    train_step=train_step,
    on_progress=lambda _: None,
    measure=lambda step, AP: {"AP": AP},
    nonfinite=None,
    stops_at_nonfinite=True,
    steps=STEPS,
    keep=2,
    mesh=None,
    **signals,
):
    evaluations = [] if evaluations is None else evaluations
    nonfinite = [] if nonfinite is None else nonfinite

    def evaluate(state, step, is_stopping):
        evaluations.append(step)
        if is_stopping():
            return None
        AP = float(state.params["w"])
        return lambda: measure(step, AP)

    mesh = mesh or make_mesh(jax.devices()[:1])
    state = copy_to_all(initial_state(), mesh)
    with Checkpoints(workdir, keep=keep, best_step=lambda: writer.best_step("val", "AP")) as checkpoints:
        if checkpoints.latest_step() is not None:
            _, state = checkpoints.restore_latest(state)
        with MetricsWriter(workdir, start_step=int(state.step), writes=is_primary()) as writer:
            return run_training(
                state,
                train_step,
                lambda step: batches(step, **signals),
                steps=steps,
                mesh=mesh,
                intervals=intervals or Intervals(record=1, evaluate=4, save=5),
                writer=writer,
                checkpoints=checkpoints,
                settings={},
                evaluate=evaluate,
                evaluation_split="val",
                on_progress=on_progress,
                on_nonfinite=nonfinite.append,
                stops_at_nonfinite=stops_at_nonfinite,
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
    assert "5" not in seen[4]
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


def checkpoints_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_interval_of_zero_means_at_the_end_only(tmp_path):
    evaluations = []
    run(tmp_path, evaluations=evaluations, intervals=Intervals(record=3, evaluate=0, save=0))
    assert evaluations == [10]
    assert [r["step"] for r in read_metrics(tmp_path) if r["split"] == "train"] == [3, 6, 9, 10]
    assert checkpoints_in(tmp_path) == [10]


def test_finished_run_does_nothing_again(tmp_path):
    run(tmp_path)
    evaluations = []
    state, _ = run(tmp_path, evaluations=evaluations)
    assert int(state.step) == STEPS
    assert evaluations == []


def diverging_at(bad_step, *, stops=True):
    """The train step, and what it does with a loss that is not finite: see `make_train_step`."""

    @jax.jit
    def step(state, batch):
        new, metrics = train_step(state, batch)
        is_bad = (state.step == bad_step - 1) | ((state.skipped > 0) & stops)
        kept = new_state(state.step if stops else state.step + 1, state.params["w"], state.skipped + 1)
        new = jax.tree.map(lambda after, before: jnp.where(is_bad, before, after), new, kept)
        return new, {
            "loss": jnp.where(is_bad, jnp.nan, metrics["loss"]),
            "gradient_norm": metrics["loss"],
            "skipped": new.skipped,
        }

    return step


@pytest.mark.parametrize("bad_step", [1, 6, 7, 8, 10])
def test_loss_that_is_not_finite_stops_and_the_state_before_it_is_saved(tmp_path, bad_step):
    nonfinite = []
    intervals = Intervals(record=5, evaluate=0, save=5)
    with pytest.raises(TrainingError, match=rf"at step {bad_step}: lower .* after step {bad_step - 1} is saved"):
        run(tmp_path, train_step=diverging_at(bad_step), nonfinite=nonfinite, intervals=intervals)
    (found,) = nonfinite
    assert found.step == bad_step
    assert np.isfinite(found.gradient_norm)
    assert np.isnan(found.loss)
    assert found.image_ids == tuple(range(10 * bad_step - 10, 10 * bad_step - 2))
    assert max(checkpoints_in(tmp_path)) == bad_step - 1
    # From there the run goes on, once its cause is gone, as if nothing had been.
    state, _ = run(tmp_path, intervals=intervals)
    assert int(state.skipped) == 0
    expected, _ = run(tmp_path / "undisturbed", intervals=intervals)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert read_metrics(tmp_path) == read_metrics(tmp_path / "undisturbed")


def test_loss_that_is_not_finite_is_left_out_where_that_is_wanted(tmp_path):
    nonfinite = []
    step = diverging_at(7, stops=False)
    state, _ = run(tmp_path, train_step=step, nonfinite=nonfinite, stops_at_nonfinite=False)
    assert [found.step for found in nonfinite] == [7]
    assert (int(state.step), int(state.skipped)) == (STEPS, 1)
    by_step = {r["step"]: r for r in read_metrics(tmp_path) if r["split"] == "train"}
    assert by_step[7]["loss"] is None
    assert [by_step[n]["skipped"] for n in (6, 7, 10)] == [0, 1, 1]


@pytest.mark.parametrize("best", [4, 8])
def test_best_state_is_kept_besides_the_latest(tmp_path, best):
    run(tmp_path, measure=lambda step, AP: {"AP": 0.9 if step == best else 0.1})
    assert checkpoints_in(tmp_path) == sorted({best, 8, 10})


def test_signal_in_an_evaluation_leaves_it_and_it_is_made_up_for(tmp_path, undisturbed):
    def watched(state, batch):
        if int(state.step) == 3:  # with the device at work on step 4, after which the model is evaluated
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(state, batch)

    _, stopped_by = run(tmp_path, train_step=watched)
    assert stopped_by == signal.SIGTERM
    assert not [r for r in read_metrics(tmp_path) if r["split"] == "val"]
    run(tmp_path)
    assert read_metrics(tmp_path) == undisturbed[1]


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


def test_handlers_are_put_back_and_a_second_interrupt_is_immediate():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_second_signal_does_not_end_the_process_while_the_last_state_is_saved(tmp_path, monkeypatch):
    handlers = []
    wait = Checkpoints.wait

    def noted_wait(self):
        handlers.append(signal.getsignal(signal.SIGTERM))
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", noted_wait)
    run(tmp_path, signal_at=3)
    # All that is waited for, but what is saved already when the block of the checkpoints is left.
    assert signal.SIG_DFL not in handlers[:-1]
    assert len(handlers) > 2

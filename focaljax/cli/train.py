"""focaljax train: train a detector.

Usage: focaljax train --config FILE --workdir DIR [--config.KEY=VALUE ...]

  --config FILE         a Python file with get_config(), such as those in configs/
  --config.KEY=VALUE    overrides one setting, e.g. --config.loss.gamma=1.5; focaljax/cli/defaults.py lists all settings
                        with what they mean
  --workdir DIR         where everything goes; the same command again goes on where the run stopped
  --coordinator HOST:PORT --processes N --process I
                        one run of N processes, of which this is number I (0 is at HOST:PORT); on Cloud TPU pods, under
                        Slurm and MPI they are found by themselves; DIR must be a folder that all of them see

Written to DIR: config.json (every setting), metrics.jsonl and tensorboard/ (the curves as numbers), timings.jsonl and
starts.jsonl (its speed; when and how it was started), wandb/ where log.wandb asks for it, curves.png,
checkpoints/ (the latest and the best), evaluation_SPLIT.json and detections_SPLIT.json (COCO metrics and results of the
last evaluation), classes.json, data_report_SPLIT.txt where something in the data was repaired or left out, and
nonfinite/ where the loss of a step was not a finite number.

Example:
  focaljax train --config configs/shapes.py --workdir runs/shapes --config.optim.learning_rate=0.02
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from focaljax.cli import build, datasets
from focaljax.cli.config import (
    differences,
    load_config,
    load_saved_config,
    parse_flags,
    save_config,
    split_config_flags,
)
from focaljax.cli.console import ProgressLine, duration, say, say_compiled
from focaljax.cli.data_reports import report_data, reporting_damage
from focaljax.cli.evaluate import predict_split
from focaljax.cli.finetune import initial_state, load_initial_weights
from focaljax.cli.main import UsageError
from focaljax.cli.prediction import compiled_predict_step
from focaljax.cli.runtime import (
    define_process_flags,
    join_processes,
    make_run_mesh,
    only_run_in,
    share_heap,
    split_cpu,
)
from focaljax.cli.watching import check_loggers, evaluation_pictures, make_loggers, note_start, versions
from focaljax.data.example import Source
from focaljax.evaluation.curves import write_curves
from focaljax.evaluation.detections import ImageDetections
from focaljax.training import mesh as meshes
from focaljax.training.checkpoints import Checkpoints
from focaljax.training.loop import Intervals, NonfiniteStep, run_training
from focaljax.training.metrics import MetricsWriter, read_metrics
from focaljax.training.programs import ProgramPerShape
from focaljax.training.state import TrainState


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    share_heap()
    config_arguments, others = split_config_flags(arguments)
    flag_values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "where everything goes", flag_values=flag_values)
    define_process_flags(flag_values)
    if unexpected := parse_flags(others, flag_values):
        raise UsageError(f"unexpected argument {unexpected[0]!r}: settings are given as --config.KEY=VALUE")
    if not flag_values.workdir:
        raise UsageError("--workdir=DIR is needed: the folder for checkpoints and results")
    config = load_config(config_arguments)
    parts = max(1, config.optim.accumulate)
    split_cpu(config.cpu_devices, config.optim.batch_size // parts, config.eval.batch_size)
    join_processes(flag_values.coordinator, flag_values.processes, flag_values.process)
    return train(config, pathlib.Path(flag_values.workdir), ["train", *arguments])


def train(config: ConfigDict, workdir: pathlib.Path, command: Sequence[str]) -> int:
    """Trains what the config describes, or goes on with it; returns the exit code. The command is written down."""
    _check_resumable(config, workdir)
    check_loggers(config)
    mesh = make_run_mesh(config)
    # Where a run goes on, the file may be gone: all of it is in the checkpoint.
    weights = None if _has_checkpoint(workdir) else load_initial_weights(config)
    build.check_config(config, mesh)
    source = datasets.make_source(config, "train")
    classes = datasets.Classes(source.class_names, source.category_ids)
    evaluation_source = datasets.make_source(config, config.eval.split, classes=classes)
    model = build.make_model(config, len(source.class_names))
    optimizer, schedule = build.make_optimizer_and_schedule(config)
    initialize = initial_state(config, model, optimizer, mesh, weights)
    train_step = ProgramPerShape(
        build.compiled_train_step(config, model, optimizer, schedule, mesh), "train step", say_compiled
    )
    predict_step = ProgramPerShape(compiled_predict_step(config, model, mesh), "prediction step", say_compiled)
    with only_run_in(workdir):
        return _train(config, workdir, mesh, initialize, train_step, predict_step, source, evaluation_source, command)


def _train(
    config: ConfigDict,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    initialize: Callable[[], TrainState],
    train_step: ProgramPerShape,
    predict_step: ProgramPerShape,
    source: Source,
    evaluation_source: Source,
    command: Sequence[str],
) -> int:
    report_data(source, "train", workdir)
    report_data(evaluation_source, config.eval.split, workdir)
    if meshes.is_primary():
        save_config(config, workdir)
        datasets.save_classes(source, workdir)

    def evaluate(
        state: TrainState, step: int, is_stopping: Callable[[], bool]
    ) -> Callable[[], Mapping[str, float | None]] | None:
        split, variables = config.eval.split, state.evaluation_variables()

        def show(detections: Sequence[ImageDetections]) -> None:
            writer.show(step, evaluation_pictures(evaluation_source, split, detections, config.log.pictures))

        measure = predict_split(
            config,
            evaluation_source,
            split,
            predict_step,
            variables,
            mesh,
            workdir,
            step,
            is_stopping=is_stopping,
            show=show,
        )
        if measure is None:
            return None

        def numbers() -> Mapping[str, float | None]:
            metrics = measure()
            say(f"step {step}: {split} AP {metrics.AP:.3f}, AP50 {metrics.AP50:.3f}, AP75 {metrics.AP75:.3f}")
            return {name: value for name, value in metrics.numbers().items() if value >= 0}

        return numbers

    def best_step() -> int | None:
        return writer.best_step(config.eval.split, "AP")

    with (
        reporting_damage((source, "train"), (evaluation_source, config.eval.split), workdir=workdir),
        Checkpoints(workdir, keep=config.checkpoint.keep, best_step=best_step) as checkpoints,
    ):
        state = _start(initialize, checkpoints, config, workdir, mesh)
        start_step, start_time = int(state.step), time.perf_counter()
        note_start(workdir, step=start_step, devices=_devices(mesh), command=command)
        loggers = make_loggers(config, workdir)
        with (
            MetricsWriter(workdir, start_step=start_step, writes=meshes.is_primary(), loggers=loggers) as writer,
            ProgressLine(config.optim.steps) as progress,
        ):
            state, stopped_by = run_training(
                state,
                train_step,
                lambda step: datasets.training_batches(config, source, step),
                steps=config.optim.steps,
                mesh=mesh,
                intervals=Intervals(record=config.log.every, evaluate=config.eval.every, save=config.checkpoint.every),
                writer=writer,
                checkpoints=checkpoints,
                settings={"config": config.to_dict(), "versions": versions()},
                evaluate=evaluate,
                evaluation_split=config.eval.split,
                on_progress=progress.show,
                on_nonfinite=functools.partial(_report_nonfinite, workdir=workdir),
                stops_at_nonfinite=config.optim.nonfinite == "stop",
            )
    if meshes.is_primary():
        write_curves(workdir / "curves.png", read_metrics(workdir), split=config.eval.split)
    if stopped_by is not None:
        say(f"stopped by {stopped_by.name} after step {int(state.step)}, which is saved; the same command goes on")
        return 130 if stopped_by.name == "SIGINT" else 0
    seconds = duration(time.perf_counter() - start_time)
    say(f"done: {config.optim.steps} steps, {config.optim.steps - start_step} of them now in {seconds}; see {workdir}")
    if int(state.skipped):
        say(f"{int(state.skipped)} steps were skipped, their loss or gradient was not finite: see {workdir}/nonfinite")
    return 0


def _report_nonfinite(nonfinite: NonfiniteStep, *, workdir: pathlib.Path) -> None:
    """Writes `WORKDIR/nonfinite/step_STEP.json`: what is known about a step whose loss or gradient is not finite."""
    path = workdir / "nonfinite" / f"step_{nonfinite.step}.json"
    say(f"step {nonfinite.step}: loss {nonfinite.loss}, gradient norm {nonfinite.gradient_norm}; its images: {path}")
    if meshes.is_primary():
        path.parent.mkdir(parents=True, exist_ok=True)
        values = dataclasses.asdict(nonfinite)
        # JSON has no NaN and no infinity.
        values |= {name: str(values[name]) for name in ("loss", "gradient_norm")}
        path.write_text(json.dumps(values, indent=1) + "\n")


def _check_resumable(config: ConfigDict, workdir: pathlib.Path) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file: name a folder")
    if not (workdir / "config.json").exists():
        return
    changed = differences(load_saved_config(workdir), config)
    if changed:
        raise UsageError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}): "
            "name another --workdir, or undo the change"
        )


def _has_checkpoint(workdir: pathlib.Path) -> bool:
    if not (workdir / "checkpoints").is_dir():
        return False
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.latest_step() is not None


def _start(
    initialize: Any, checkpoints: Checkpoints, config: ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> TrainState:
    learning_rate = f"learning rate {build.scaled_learning_rate(config):g}"
    if build.scaled_learning_rate(config) != config.optim.learning_rate:
        learning_rate += f" ({config.optim.learning_rate:g} for {config.optim.learning_rate_batch} images)"
    say(f"{_devices(mesh)}, batch {config.optim.batch_size}, {learning_rate}, {config.optim.steps} steps")
    if checkpoints.latest_step() is None:
        state = initialize()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        if not config.init.weights and (config.model.freeze_at or config.model.norm == "frozen_batch_norm"):
            say(
                "note: layers are frozen at random values (model.freeze_at, model.norm): set --config.init.weights=FILE"
            )
        say(f"new run in {workdir}: {config.model.backbone}, {parameters:,} parameters; compiling the train step")
        return state
    step, state = checkpoints.restore_latest(build.abstract_state(config, initialize, mesh))
    say(f"resumed {workdir} after step {step} of {config.optim.steps}")
    return state


def _devices(mesh: jax.sharding.Mesh) -> str:
    """Returns in words what a run works on."""
    device = jax.devices()[0]
    is_split_cpu = device.platform == "cpu" and mesh.size > 1
    devices = f"{mesh.size} devices made of the CPU's cores" if is_split_cpu else f"{mesh.size} x {device.device_kind}"
    return devices + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")

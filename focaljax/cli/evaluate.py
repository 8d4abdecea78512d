"""focaljax evaluate: COCO metrics of a trained detector.

Usage: focaljax evaluate --workdir DIR [--step STEP] [--split SPLIT] [--sheets N] [--config.KEY=VALUE ...]

  --workdir DIR         of a run of `focaljax train`
  --step STEP           which of its checkpoints: latest (the default), best (the highest AP on eval.split, as far as
                        it is kept) or the number of a step
  --split SPLIT         train, val or test (default: the config's eval.split)
  --sheets N            how many images to draw, detections beside ground truth (default 24; 0: none)
  --config.KEY=VALUE    overrides a setting of the groups `eval` and `data` (but those of the pixels, which the network
                        was trained with), e.g. --config.eval.nms_iou=0.6, or
                        --config.eval.tta_flip=true --config.eval.tta_scales='(0.8, 1.0, 1.2)' for more views an image
  --coordinator HOST:PORT --processes N --process I
                        as of `focaljax train`: on a pod, each of its hosts runs the command

Prints COCO's 12 numbers and AP per class; writes to DIR evaluation_SPLIT.json, detections_SPLIT.json (a COCO
results file) and sheets_SPLIT/.

Example:
  focaljax evaluate --workdir runs/shapes --split test
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import rich.console
from absl import flags
from ml_collections import ConfigDict

from focaljax.cli import build, datasets, prediction
from focaljax.cli.config import load_saved_config, override_config, parse_flags, split_config_flags
from focaljax.cli.console import say, say_compiled, track
from focaljax.cli.data_reports import report_data
from focaljax.cli.main import UsageError
from focaljax.cli.runtime import define_process_flags, join_processes, split_cpu
from focaljax.data.example import Source
from focaljax.data.views import fixed_size_view
from focaljax.detection import Detections
from focaljax.detector import Detector
from focaljax.evaluation.coco_metrics import (
    CocoMetrics,
    evaluate_detections,
    metrics_table,
    write_coco_results,
    write_evaluation,
)
from focaljax.evaluation.detections import ImageDetections, to_coco_results
from focaljax.evaluation.drawing import write_image
from focaljax.evaluation.inference import TestTimeAugmentation
from focaljax.evaluation.prediction import gather_images, predict_batches
from focaljax.evaluation.sheets import comparison_sheet
from focaljax.models.retinanet import RetinaNet
from focaljax.training import mesh as meshes
from focaljax.training.checkpoints import Checkpoints
from focaljax.training.classification import is_softmax
from focaljax.training.metrics import best_record, read_metrics
from focaljax.training.programs import Compilation, ProgramPerShape

_IMAGES_ON_A_SHEET = 4
# How pixels enter the network belongs to its weights.
_OF_THE_NETWORK = ("data.pixel_mean", "data.pixel_std", "data.channel_order")


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    overrides, others = split_config_flags(arguments)
    flag_values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "of a run of `focaljax train`", flag_values=flag_values)
    flags.DEFINE_string("step", "latest", "latest, best or a number", flag_values=flag_values)
    flags.DEFINE_string("split", "", "train, val or test", flag_values=flag_values)
    flags.DEFINE_integer("sheets", 24, "how many images to draw", lower_bound=0, flag_values=flag_values)
    define_process_flags(flag_values)
    if unexpected := parse_flags(others, flag_values):
        raise UsageError(f"unexpected argument {unexpected[0]!r}; see `focaljax evaluate --help`")
    config, workdir = saved_run(flag_values.workdir, overrides)
    split = flag_values.split or config.eval.split
    chosen = chosen_step(config, workdir, flag_values.step)
    split_cpu(config.cpu_devices, config.eval.batch_size)
    join_processes(flag_values.coordinator, flag_values.processes, flag_values.process, notes_sigterm=False)
    mesh = meshes.make_mesh()
    try:
        meshes.check_batch_size(config.eval.batch_size, mesh)
    except ValueError as error:
        raise UsageError(f"--config.eval.batch_size: {error}") from None
    source = datasets.make_source(config, split, classes=datasets.load_classes(workdir))
    report_data(source, split)
    step, variables, predict_step = load_detector(config, workdir, len(source.class_names), mesh, step=chosen)
    say(f"evaluating step {step} of {workdir} on {split}")
    measure = predict_split(
        config,
        source,
        split,
        predict_step,
        variables,
        mesh,
        workdir,
        step,
        sheets=flag_values.sheets,
        overrides=overrides,
    )
    assert measure is not None  # nothing stops it
    metrics = measure()
    rich.console.Console().print(metrics_table(metrics, title=f"{workdir}, {split}"))
    say(f"wrote {workdir}/evaluation_{split}.json and detections_{split}.json")
    return 0


def predict_split(
    config: ConfigDict,
    source: Source,
    split: str,
    predict_step: Callable[[Any, Any], Detections],
    variables: Any,
    mesh: jax.sharding.Mesh,
    workdir: pathlib.Path,
    step: int,
    *,
    sheets: int = 0,
    overrides: Sequence[str] = (),
    is_stopping: Callable[[], bool] = lambda: False,
    show: Callable[[Sequence[ImageDetections]], None] = lambda _: None,
) -> Callable[[], CocoMetrics] | None:
    """Predicts a whole split; returns what is left to do without the devices: the metrics, and results files.

    Sheets are drawn at once. `overrides`, with which the config differs from the run's, are noted beside the metrics.
    `is_stopping` is asked before each batch; if it says so, the rest is left and the result is None. Every process
    gets the metrics of all images, one writes the files and gives the detections to `show`.
    """
    variables = meshes.copy_to_all(variables, mesh)
    batches = prediction.put_evaluation_batches(prediction.evaluation_batches(config, source), mesh)
    batches = itertools.takewhile(lambda _: not is_stopping(), batches)
    images = predict_batches(lambda batch: predict_step(variables, batch), batches)
    own_images = -(-len(source) // jax.process_count())
    of_this_process = list(track(images, f"evaluating {split}", own_images))
    if is_stopping():
        return None
    detections = _of_all_processes(config, source, of_this_process)
    if sheets and meshes.is_primary():
        _write_sheets(workdir / f"sheets_{split}", source, detections, sheets)

    def measure() -> CocoMetrics:
        results = to_coco_results(detections, source.category_ids)
        metrics = evaluate_detections(source.ground_truth(), results)
        if not meshes.is_primary():
            return metrics
        details = {"split": split, "step": step, "overrides": list(overrides)}
        write_evaluation(workdir / f"evaluation_{split}.json", metrics, details=details)
        write_coco_results(workdir / f"detections_{split}.json", results)
        show(detections)
        return metrics

    return measure


def saved_run(workdir: str, overrides: Sequence[str]) -> tuple[ConfigDict, pathlib.Path]:
    """Returns the config of a finished or interrupted run, with overrides of what may differ, and its workdir.

    Raises:
        UsageError: there is no such run, or an override would change the trained model.
    """
    if not workdir:
        raise UsageError("--workdir=DIR is needed: the --workdir of a run of `focaljax train`")
    for override in overrides:
        key = override.partition("=")[0].removeprefix("--config.")
        if override.startswith("--config=") or key.split(".")[0] not in ("eval", "data"):
            raise UsageError(f"{override}: only settings of the groups eval and data can differ from the run's own")
        if key in _OF_THE_NETWORK:
            raise UsageError(f"{override}: the network was trained with the run's own {key}, it takes no other")
    config = override_config(load_saved_config(pathlib.Path(workdir)), overrides)
    try:
        prediction.make_tta(config)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--config.eval.tta_scales: {error}") from None
    return config, pathlib.Path(workdir)


def chosen_step(config: ConfigDict, workdir: pathlib.Path, name: str) -> int | None:
    """Returns the step of the checkpoint that `--step` names; None: the latest.

    Raises:
        UsageError: it names none.
    """
    if name == "latest":
        return None
    if name == "best":
        best = best_record(read_metrics(workdir), config.eval.split)
        if best is None:
            raise UsageError(f"--step=best: {workdir}/metrics.jsonl has no AP on {config.eval.split}")
        return best["step"]
    if not (name.isascii() and name.isdigit()):
        raise UsageError(f"--step={name}: expected latest, best or the number of a step")
    return int(name)


def load_detector(
    config: ConfigDict, workdir: pathlib.Path, num_classes: int, mesh: jax.sharding.Mesh, *, step: int | None = None
) -> tuple[int, Any, Callable[[Any, Any], Detections]]:
    """Returns the step of a run's checkpoint, its variables for evaluation and the compiled prediction step.

    Args:
        config: of the run.
        workdir: likewise.
        num_classes: of its data.
        mesh: of the devices.
        step: of the checkpoint; None: the latest.
    """
    model = build.make_model(config, num_classes)
    step, variables = _restored(config, workdir, model, mesh, step)
    predict_step = prediction.compiled_predict_step(config, model, mesh)
    return step, variables, ProgramPerShape(predict_step, "prediction step", say_compiled)


def run_detector(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    step: int | None = None,
    tta: TestTimeAugmentation | None = None,
    batch_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    on_compile: Callable[[Compilation], None] = lambda _: None,
) -> Detector:
    """Returns the detector of a run at a checkpoint; step None: its latest; tta None: as the config says."""
    mesh = meshes.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    classes = datasets.load_classes(workdir)
    model = build.make_model(config, len(classes.names))
    step, variables = _restored(config, workdir, model, mesh, step)
    height, width = config.data.image_size
    return Detector(
        model,
        variables,
        make_view=functools.partial(
            fixed_size_view, height=height, width=width, largest_sides=prediction.largest_sides_of(config)
        ),
        anchors=prediction.anchor_settings(config),
        thresholds=prediction.threshold_settings(config),
        pixels=prediction.pixel_settings(config),
        class_names=classes.names,
        category_ids=classes.category_ids,
        tta=prediction.make_tta(config) if tta is None else tta,
        batch_size=batch_size,
        mesh=mesh,
        on_compile=on_compile,
        softmax=is_softmax(config.loss.classification),
        description=f"step {step} of {workdir}, {config.model.backbone}, {len(classes.names)} classes",
    )


def _restored(
    config: ConfigDict, workdir: pathlib.Path, model: RetinaNet, mesh: jax.sharding.Mesh, step: int | None
) -> tuple[int, dict[str, Any]]:
    """Returns the step of a run's checkpoint, None: the latest, and its variables for evaluation."""
    optimizer, _ = build.make_optimizer_and_schedule(config)
    abstract = build.abstract_state(config, build.initial_state(config, model, optimizer, mesh), mesh)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step, state = checkpoints.restore_latest(abstract, only=step)
    return step, state.evaluation_variables()


def _of_all_processes(
    config: ConfigDict, source: Source, detections: Sequence[ImageDetections]
) -> Sequence[ImageDetections]:
    """Returns the detections of the whole split in the source's order, from those of this process."""
    processes = jax.process_count()
    if processes == 1:
        return detections
    batches = -(-len(source) // config.eval.batch_size)
    gathered = gather_images(
        detections,
        most_images=batches * config.eval.batch_size // processes,
        most_detections=config.eval.max_detections,
    )
    place = {image_id: index for index, image_id in enumerate(_image_ids(source))}
    return sorted(gathered, key=lambda image: place[image.image_id])


def _write_sheets(folder: pathlib.Path, source: Source, detections: Sequence[ImageDetections], count: int) -> None:
    index_of = {example_id: index for index, example_id in enumerate(_image_ids(source))}
    shown = list(detections)[:count]
    for start in range(0, len(shown), _IMAGES_ON_A_SHEET):
        some = shown[start : start + _IMAGES_ON_A_SHEET]
        examples = [source[index_of[found.image_id]] for found in some]
        sheet = comparison_sheet(examples, some, source.class_names)
        write_image(folder / f"sheet_{start // _IMAGES_ON_A_SHEET + 1:02}.jpg", sheet)
    say(f"wrote {folder}: {len(shown)} images, ground truth on the left, detections on the right")


def _image_ids(source: Source) -> list[int]:
    return [image["id"] for image in source.ground_truth()["images"]]

"""The page about one run, from the files in its workdir and its data."""

import contextlib
import dataclasses
import json
import pathlib
import shlex
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from focaljax.cli.config import default_config, flatten, load_saved_config, override_config
from focaljax.cli.console import duration
from focaljax.cli.datasets import load_classes, make_source
from focaljax.cli.main import UsageError
from focaljax.cli.runtime import holder_of, is_in_use
from focaljax.data.example import DataError, Source
from focaljax.evaluation import analysis
from focaljax.evaluation.analysis_plots import (
    MOST_CELLS,
    MOST_CURVES,
    confusion_figure,
    precision_recall_figure,
    score_figure,
)
from focaljax.evaluation.coco_engines import DetectionTable, ObjectTable
from focaljax.evaluation.coco_metrics import MEANINGS, read_coco_results
from focaljax.evaluation.coco_tables import detection_table, numbered, object_table
from focaljax.evaluation.curves import curves_figure
from focaljax.evaluation.detections import ImageDetections
from focaljax.evaluation.page import Page
from focaljax.evaluation.sheets import comparison_sheet
from focaljax.training.metrics import best_record, read_metrics, read_timings

_IOUS = (0.5, 0.75)
_OF_A_START = {"time", "step", "devices", "versions", "command"}
# Of what is confused with what, so many kinds are listed.
_MOST_CONFUSIONS = 20


@dataclasses.dataclass(frozen=True)
class Run:
    """What the files of a run say.

    Attributes:
        workdir: of the run.
        config: every setting.
        records: of metrics.jsonl.
        timings: of timings.jsonl.
        starts: of starts.jsonl; none of an older run.
        is_in_use: a process works on it.
    """

    workdir: pathlib.Path
    config: ConfigDict
    records: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    is_in_use: bool

    @property
    def last_step(self) -> int:
        """The last step that stands in the records; 0: none yet."""
        return max((record["step"] for record in self.records), default=0)

    def state(self) -> str:
        """Returns in words how far the run is."""
        steps = self.config.optim.steps
        if self.is_in_use:
            how = f"in use by {holder_of(self.workdir)}"
        elif any((record["step"], record["split"]) == (steps, self.config.eval.split) for record in self.records):
            return f"finished, {steps} steps"
        elif self.last_step >= steps:
            how = "without the evaluation at the end; the same command makes it"
        elif (self.workdir / "running.json").exists():
            how = f"{holder_of(self.workdir)} is gone without an end; the same command goes on"
        else:
            how = "not finished; the same command goes on"
        return f"step {self.last_step} of {steps}, {how}"


@dataclasses.dataclass(frozen=True)
class Found:
    """The detections of a split beside its ground truth; numbers of images and classes count from 1."""

    source: Source
    objects: ObjectTable
    detections: DetectionTable
    class_names: tuple[str, ...]
    num_images: int


def load_run(workdir: pathlib.Path) -> Run:
    """Returns what the files of a run say.

    Raises:
        UsageError: it is no workdir of a run.
    """
    return Run(
        workdir=workdir,
        config=load_saved_config(workdir),
        records=read_metrics(workdir),
        timings=read_timings(workdir),
        starts=_read_starts(workdir),
        is_in_use=is_in_use(workdir),
    )


def run_page(workdir: pathlib.Path, split: str, *, min_score: float, num_pictures: int) -> Page:
    """Returns the page.

    Args:
        workdir: of the run.
        split: whose evaluation is shown; '': the config's.
        min_score: of detections in confusions, scores of images and pictures.
        num_pictures: of the best images, and of the worst.

    Raises:
        UsageError: it is no workdir of a run, or a file in it cannot be read.
        DataError: the results file cannot be read.
    """
    run = load_run(workdir)
    split = split or run.config.eval.split
    evaluation = _read_evaluation(workdir / f"evaluation_{split}.json")
    page = Page(f"{workdir.absolute().name}: {run.config.model.backbone} on {run.config.data.source}, {split}")
    _add_summary(page, run, split, evaluation)
    page.section("Curves")
    if run.records:
        page.plot(curves_figure(run.records, run.timings, split=run.config.eval.split))
    else:
        page.text(f"Nothing is recorded yet: the first record comes after {run.config.log.every} steps (log.every).")
    if evaluation is None:
        page.section("Detections")
        page.text(f"There is no evaluation on {split} yet, so that AP and all that follows from detections is missing.")
        page.text(
            "One is made at the end of training, every eval.every steps, and, where a checkpoint is saved, by this:"
        )
        page.code(_evaluate_command(workdir, split))
    else:
        _add_evaluation(page, run, split, evaluation, min_score=min_score, num_pictures=num_pictures)
    _add_settings(page, run.config)
    return page


def _add_summary(page: Page, run: Run, split: str, evaluation: dict[str, Any] | None) -> None:
    page.section("Summary")
    config, best = run.config, best_record(run.records, run.config.eval.split)
    rows: list[tuple[str, object]] = [("workdir", run.workdir.absolute()), ("state", run.state())]
    if evaluation is not None:
        overrides = " ".join(["", *evaluation.get("overrides", ())]).replace(" ", ", ", 1)
        rows.append(
            (f"AP on {split}", f"{shown(evaluation['AP'])}, at step {evaluation.get('step', 'unknown')}{overrides}")
        )
    if best is not None:
        rows.append((f"best AP on {config.eval.split}", f"{shown(best['AP'])}, at step {best['step']}"))
    batch = config.optim.batch_size
    rows.append(("images in training", f"{run.last_step * batch}, {batch} a step"))
    if run.timings:
        seconds = sum(timing["seconds"] for timing in run.timings)
        rate = np.median([timing["images_per_second"] for timing in run.timings])
        rows.append(("time", f"{duration(seconds)} in training steps, {rate:.1f} images/s (median)"))
    for start in run.starts:
        rows.append((f"started after step {start['step']}", f"{start['time']}, {start['devices']}"))
    if run.starts:
        rows.append(
            ("versions", ", ".join(f"{name} {version}" for name, version in run.starts[-1]["versions"].items()))
        )
    page.table(("", ""), rows, is_words=True)
    if evaluation is not None:
        page.table(
            ("metric", "value", "meaning"),
            [(name, shown(evaluation[name]), meaning) for name, meaning in MEANINGS.items()],
            is_words=True,
        )
        page.text(f"Computed with {evaluation.get('engine', 'an unknown engine')}; - where there are no such objects.")
    page.text("Its command:" if run.starts else "Its command was not written down: the run is of an older version.")
    if run.starts:
        page.code(run.starts[0]["command"])


def _add_evaluation(
    page: Page, run: Run, split: str, evaluation: dict[str, Any], *, min_score: float, num_pictures: int
) -> None:
    found, why_not = _load_found(run, split, evaluation)
    if found is None:
        _add_classes(page, evaluation, {})
        page.section("Detections")
        page.text(f"There are no curves, no confusions and no pictures: {why_not}")
        return
    at_iou = {iou: analysis.match_detections(found.objects, found.detections, iou_threshold=iou) for iou in _IOUS}
    of_classes = {"num_classes": len(found.class_names)}
    curves = {
        iou: analysis.precision_recall(matches, found.objects, found.detections, **of_classes)
        for iou, matches in at_iou.items()
    }
    by_name = dict(zip(evaluation["per_class"], range(1, len(found.class_names) + 1)))
    _add_classes(
        page, evaluation, {name: curves[0.5][number] for name, number in by_name.items() if number in curves[0.5]}
    )

    page.section("Precision and recall")
    count = len(curves[0.5])
    few = f"; of {count} classes the {MOST_CURVES} with the most objects" if count > MOST_CURVES else ""
    page.plot(
        precision_recall_figure(curves, found.class_names),
        f"COCO's curves, with each class's AP at this IoU{few}. Crowds do not count.",
    )
    page.section("Scores")
    right_or_wrong = at_iou[0.5].is_true, at_iou[0.5].is_false
    page.plot(
        score_figure(found.detections.scores, *right_or_wrong, min_score=min_score),
        f"Right: it found an object of its class at IoU 0.5 that no higher score had found. Dotted: {min_score:g}.",
    )
    of_score = analysis.above(found.detections, min_score)
    _add_confusions(page, found, of_score, min_score)
    if num_pictures:
        _add_pictures(page, found, of_score, min_score, num_pictures)


def _add_classes(page: Page, evaluation: dict[str, Any], curves: dict[str, analysis.ClassCurve]) -> None:
    page.section("Classes")
    header = ["class", "AP", "AP50", "AP75", "objects"]
    rows = [
        [name, *(shown(numbers[key]) for key in header[1:4]), numbers["ground_truths"]]
        for name, numbers in evaluation["per_class"].items()
    ]
    if not curves:
        page.table(header, rows)
        return
    best = {name: [shown(curve.best_f1), shown(curve.best_score)] for name, curve in curves.items()}
    page.table([*header, "best F1", "at score"], [[*row, *best.get(row[0], ["-", "-"])] for row in rows])
    page.text("Best F1: of all score thresholds, at IoU 0.5; a threshold for use that weighs both errors equally.")


def _add_confusions(page: Page, found: Found, detections: DetectionTable, min_score: float) -> None:
    page.section("Confusions")
    matches = analysis.match_detections(
        found.objects, detections, iou_threshold=0.5, by_class=False, max_detections=None
    )
    counts = analysis.confusion_matrix(matches, found.objects, detections, num_classes=len(found.class_names))
    page.plot(
        confusion_figure(counts, found.class_names),
        f"Detections from score {min_score:g} on, the highest first: each takes the free object of whatever class that "
        "it overlaps most, from IoU 0.5 on.",
    )
    if len(counts) > MOST_CELLS:
        names, of_classes = found.class_names, counts[:-1, :-1]
        off_diagonal = np.where(np.eye(len(names), dtype=bool), 0, of_classes)
        order = np.argsort(-off_diagonal, axis=None, kind="stable")[:_MOST_CONFUSIONS]
        pairs = [np.unravel_index(place, of_classes.shape) for place in order]
        page.table(
            ("is", "seen as", "times"), [(names[i], names[j], counts[i, j]) for i, j in pairs if off_diagonal[i, j]]
        )


def _add_pictures(page: Page, found: Found, detections: DetectionTable, min_score: float, count: int) -> None:
    page.section("Images")
    page.text(
        f"By F1 at IoU 0.5 of the detections from score {min_score:g} on: 2 found / (2 found + missed + wrong). Of "
        "equals, the best are those with the most found, the worst those with the most missed and wrong. Left the "
        "ground truth, right the detections."
    )
    matches = analysis.match_detections(found.objects, detections, iou_threshold=0.5, max_detections=None)
    scores = analysis.image_scores(matches, found.objects, detections, num_images=found.num_images)
    best = sorted(scores, key=lambda one: (-one.f1, -one.found))[:count]
    faulty = [one for one in scores if one.f1 < 1.0]
    worst = sorted(faulty, key=lambda one: (one.f1, -one.missed - one.false))[:count]
    ids = list(numbered(image["id"] for image in found.source.ground_truth()["images"]))
    place = {image["id"]: index for index, image in enumerate(found.source.ground_truth()["images"])}
    for title, some in (("worst", worst), ("best", best)):
        for rank, score in enumerate(some, start=1):
            image_id = ids[score.image - 1]
            what = f"{score.found} found, {score.missed} missed, {score.false} wrong: F1 {score.f1:.3f}"
            try:
                example = found.source[place[image_id]]
            except (DataError, OSError) as error:
                page.text(f"{title} {rank}: image {image_id}, {what}; it cannot be read ({error})")
                continue
            sheet = comparison_sheet(
                [example],
                [detections_of_image(found, score.image, image_id)],
                found.source.class_names,
                min_score=min_score,
            )
            page.picture(sheet, f"{title} {rank}: {example.file_name} (image {image_id}), {what}")


def _add_settings(page: Page, config: ConfigDict) -> None:
    defaults, settings = dict(flatten(default_config())), dict(flatten(config))
    page.section("Settings")
    changed = [(key, value, defaults.get(key, "")) for key, value in settings.items() if value != defaults.get(key)]
    page.text(f"{len(changed)} of {len(settings)} settings differ from the defaults:")
    page.table(("setting", "value", "default"), changed, is_words=True)
    page.text("All of them:")
    page.table(("setting", "value"), list(settings.items()), is_words=True)


def _load_found(run: Run, split: str, evaluation: dict[str, Any]) -> tuple[Found | None, str]:
    """Returns the detections beside the ground truth, or None and why it is not to be had."""
    try:
        config = override_config(run.config.copy_and_resolve_references(), evaluation.get("overrides", ()))
        config.data.cache = ""  # which would first decode every image
        source = make_source(config, split, classes=load_classes(run.workdir))
    except (UsageError, DataError, OSError, ValueError) as error:
        return None, f"the data of {split} are not to be had: {error}"
    truth = source.ground_truth()
    images, classes = (numbered(entry["id"] for entry in truth[name]) for name in ("images", "categories"))
    objects = object_table(truth["annotations"], images, classes)
    anew = f"`{_evaluate_command(run.workdir, split)}` makes both anew"
    of_classes = np.bincount(objects.classes[~objects.is_crowd], minlength=len(classes) + 1)[1:]
    if [numbers["ground_truths"] for numbers in evaluation["per_class"].values()] != of_classes.tolist():
        return (
            None,
            f"the evaluation is of other data than {split} is now, with {of_classes.sum()} objects; {anew}",
        )
    try:
        results = read_coco_results(run.workdir / f"detections_{split}.json")
        detections = detection_table(results, images, classes)
    except (DataError, OSError, ValueError) as error:
        return None, f"the detections are not to be had: {error}; {anew}"
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    return Found(source, objects, detections, tuple(names[key] for key in classes), len(images)), ""


def detections_of_image(found: Found, number: int, image_id: Any) -> ImageDetections:
    """Returns the detections of one image, labelled as its source has them."""
    is_of_image = found.detections.images == number
    corners = found.detections.boxes_xywh[is_of_image].copy()
    corners[:, 2:] += corners[:, :2]
    labels = np.argsort(found.source.category_ids)[found.detections.classes[is_of_image] - 1]
    return ImageDetections(image_id, corners, found.detections.scores[is_of_image], labels)


def _read_evaluation(path: pathlib.Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        evaluation = json.loads(path.read_text())
        if {*MEANINGS, "per_class"} <= evaluation.keys() and isinstance(evaluation["per_class"], dict):
            return evaluation
        reason = "it lacks some of COCO's numbers"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise UsageError(f"{path} cannot be read ({reason}): `focaljax evaluate` writes it anew")


def _read_starts(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = workdir / "starts.jsonl"
    if not path.exists():
        return []
    starts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut off by a kill
            starts.append(json.loads(line))
    return [start for start in starts if isinstance(start, dict) and start.keys() >= _OF_A_START]


def _evaluate_command(workdir: pathlib.Path, split: str) -> str:
    return shlex.join(["focaljax", "evaluate", "--workdir", str(workdir), "--split", split])


def shown(value: float | None) -> str:
    """Returns a number as the page has it; - where there is none."""
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"

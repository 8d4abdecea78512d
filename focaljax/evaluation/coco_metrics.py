"""COCO's detection metrics: the 12 numbers, AP per class, and their files."""

import dataclasses
import json
import os
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text

from focaljax.data.example import DataError
from focaljax.data.report import printable
from focaljax.evaluation.coco_engines import precision_and_recall
from focaljax.evaluation.coco_tables import detection_table, find_form_fault, numbered, object_table
from focaljax.evaluation.whole_files import write_whole

# What pycocotools gives for a metric over no ground truth at all.
UNDEFINED = -1.0

MEANINGS = {
    "AP": "precision, mean over IoU 0.50 to 0.95",
    "AP50": "precision at IoU 0.50",
    "AP75": "precision at IoU 0.75",
    "APs": "AP of small objects (area up to 32² px)",
    "APm": "AP of medium objects (32² to 96² px)",
    "APl": "AP of large objects (from 96² px)",
    "AR1": "recall with 1 detection an image",
    "AR10": "recall with 10 detections an image",
    "AR100": "recall with 100 detections an image",
    "ARs": "AR100 of small objects",
    "ARm": "AR100 of medium objects",
    "ARl": "AR100 of large objects",
}

# Metric name -> (index of the area range, index of the detection limit) in the order of pycocotools' own parameters:
# areas all, small, medium, large; limits 1, 10, 100 detections an image and class.
_PRECISIONS = {"AP": (0, 2), "APs": (1, 2), "APm": (2, 2), "APl": (3, 2)}
_PRECISIONS_AT = {"AP50": 0, "AP75": 5}
_RECALLS = {"AR1": (0, 0), "AR10": (0, 1), "AR100": (0, 2), "ARs": (1, 2), "ARm": (2, 2), "ARl": (3, 2)}


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """The metrics of one class, in 0..1, or `UNDEFINED` (-1) where the class has no ground truth (of that size).

    Attributes:
        AP: average precision, mean over the IoU thresholds 0.50, 0.55, .. 0.95.
        AP50: average precision at IoU 0.50.
        AP75: average precision at IoU 0.75.
        APs: AP of small objects, area up to 32^2 pixels.
        APm: AP of medium objects, 32^2 to 96^2 pixels.
        APl: AP of large objects, from 96^2 pixels.
        AR100: recall with at most 100 detections an image, mean over the IoU thresholds.
        ground_truths: number of annotated objects, crowds not counted.
        detections: number of detections.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR100: float
    ground_truths: int
    detections: int


@dataclasses.dataclass(frozen=True)
class CocoMetrics:
    """COCO's 12 numbers, in 0..1, or `UNDEFINED` (-1) where there is no ground truth (of that size).

    Each is the mean over the classes that have ground truth. Precision as in `ClassMetrics`; the rest:

    Attributes:
        AR1: recall with at most 1 detection per image and class, mean over the IoU thresholds.
        AR10: the same with at most 10.
        AR100: the same with at most 100.
        ARs: AR100 of small objects.
        ARm: AR100 of medium objects.
        ARl: AR100 of large objects.
        per_class: class name -> its metrics, in the order of the category ids. Where two classes share a name, the id
            is added.
        engine: the library that computed them and its version, such as 'hotcoco 1.3.0'; no part of the comparison.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    per_class: dict[str, ClassMetrics]
    engine: str = dataclasses.field(compare=False)

    def numbers(self) -> dict[str, float]:
        """Returns the 12 numbers by name."""
        return {name: value for name, value in vars(self).items() if name not in ("per_class", "engine")}


def evaluate_detections(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> CocoMetrics:
    """Returns COCO's detection metrics (boxes), equal to pycocotools' bit for bit.

    Every image of the ground truth counts, with or without detections; without any detection the metrics are 0. At
    most 100 detections per image and class count, the highest scores; equal scores keep the order of the list.

    pycocotools sets the rules, and does the work where hotcoco is not installed, which is much faster and gives the
    same numbers. The differences from pycocotools: annotations are numbered anew (it takes a match with annotation id 0
    for none, and mixes up equal ids); no detections and missing `info`, `area` (then width times height) and `iscrowd`
    (then 0) are accepted; faulty detections are errors; it is silent; the arguments stay as they were. pycocotools'
    standard output is caught for the time of the call, so no other thread should print then.

    Args:
        ground_truth: COCO's annotation form: `images` (with `id`), `categories` (`id`, `name`) and `annotations`
            (`image_id`, `category_id`, `bbox` as `[x, y, width, height]`, and perhaps `area`, `iscrowd`). Annotations
            of an image or category that is not listed do not count.
        detections: COCO's results form: `image_id`, `category_id`, `bbox` and `score` each; see `to_coco_results`.

    Returns:
        The metrics; `UNDEFINED` (-1) where there is no ground truth to measure against.

    Raises:
        ValueError: if a detection names an image or category that the ground truth lacks, lacks a key, or has a box or
            score that is not finite; or if an annotation has no finite box. The message names them.

    Example:
        >>> truth = {
        ...     "images": [{"id": 1}],
        ...     "categories": [{"id": 3, "name": "cat"}],
        ...     "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 50, 50]}],
        ... }
        >>> detection = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 50, 40], "score": 0.9}
        >>> metrics = evaluate_detections(truth, [detection])
        >>> round(metrics.AP50, 3), round(metrics.AP, 3), metrics.APs  # the IoU of 0.8 passes 7 of 10 thresholds
        (1.0, 0.7, -1.0)
    """
    image_numbers = numbered(image["id"] for image in ground_truth["images"])
    class_numbers = numbered(category["id"] for category in ground_truth["categories"])
    objects = object_table(ground_truth["annotations"], image_numbers, class_numbers)
    found = detection_table(detections, image_numbers, class_numbers)
    curves = precision_and_recall(objects, found, num_images=len(image_numbers), num_classes=len(class_numbers))

    object_counts = np.bincount(objects.classes[~objects.is_crowd], minlength=len(class_numbers) + 1)
    detection_counts = np.bincount(found.classes, minlength=len(class_numbers) + 1)
    names = _class_names(ground_truth["categories"])
    per_class = {}
    for category_id, number in class_numbers.items():
        summary = _summary(curves.precision[:, :, [number - 1]], curves.recall[:, [number - 1]])
        per_class[names[category_id]] = ClassMetrics(
            **{name: summary[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")},
            ground_truths=int(object_counts[number]),
            detections=int(detection_counts[number]),
        )
    return CocoMetrics(**_summary(curves.precision, curves.recall), per_class=per_class, engine=curves.engine)


def metrics_table(metrics: CocoMetrics, *, title: str | None = None) -> rich.console.Group:
    """Returns the 12 numbers with their meaning, then AP per class, for `rich.console.Console().print`.

    Args:
        metrics: what `evaluate_detections` gave; undefined numbers are shown as `-`.
        title: a line above the tables, such as the name of the split.
    """
    overall = rich.table.Table(
        title=None if title is None else rich.text.Text(printable(title)),
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    overall.add_column("metric")
    overall.add_column("value", justify="right")
    overall.add_column("meaning")
    for name, meaning in MEANINGS.items():
        overall.add_row(name, _shown(getattr(metrics, name)), meaning, end_section=name in ("APl", "ARl"))
    names = ("AP", "AP50", "AP75", "AR100")
    by_class = rich.table.Table("class", box=rich.box.SIMPLE_HEAD)
    for name in (*names, "objects", "detections"):
        by_class.add_column(name, justify="right")
    for class_name, values in metrics.per_class.items():
        numbers = [_shown(getattr(values, name)) for name in names]
        by_class.add_row(
            rich.text.Text(printable(class_name)), *numbers, str(values.ground_truths), str(values.detections)
        )
    return rich.console.Group(overall, by_class)


def write_evaluation(
    path: str | os.PathLike[str], metrics: CocoMetrics, *, details: Mapping[str, Any] | None = None
) -> None:
    """Writes metrics as a JSON object: the keys AP, AP50, .. ARl, `per_class`, `engine`; undefined numbers are null.

    The file appears whole or not at all. Missing parent folders are made.

    Args:
        path: the file; an existing one is replaced.
        metrics: what `evaluate_detections` gave.
        details: further keys to write after the metrics, such as the split and the step.

    Raises:
        ValueError: if a key of `details` is one of the metrics' own, or a value of it is not finite.
        OSError: if the file cannot be written.
    """
    values = _null_where_undefined(dataclasses.asdict(metrics))
    for key, value in (details or {}).items():
        if key in values:
            raise ValueError(f"details has the key {key!r}, which the metrics have already: choose another name")
        values[key] = value
    write_whole(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_coco_results(path: str | os.PathLike[str], detections: Sequence[Mapping[str, Any]]) -> None:
    """Writes detections as a COCO results file, one detection a line.

    The file appears whole or not at all. Missing parent folders are made.

    Args:
        path: the file; an existing one is replaced.
        detections: what `to_coco_results` gave.

    Raises:
        ValueError: if a number is not finite, which JSON cannot hold.
        OSError: if the file cannot be written.
    """
    lines = [json.dumps(detection, separators=(",", ":"), allow_nan=False) for detection in detections]
    write_whole(path, "[" + ",\n".join(lines) + "]\n")


def read_coco_results(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the detections of a COCO results file, checked for their form.

    Args:
        path: a JSON file, as `write_coco_results` writes.

    Raises:
        DataError: if the file is missing, is no JSON, or is no list of detections; the message says where.
    """
    try:
        detections = json.loads(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the results file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text, expected a JSON list of detections") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path} is not valid JSON ({where}: {error.msg}); was it written to its end?") from error
    except RecursionError:
        raise DataError(f"{path} is nested too deeply for a JSON list of detections") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise DataError(f"{path} holds a number that no detection has: {error}") from None
    if not isinstance(detections, list):
        hint = ": this is an annotation file" if isinstance(detections, dict) and "annotations" in detections else ""
        raise DataError(f"{path} holds a JSON {type(detections).__name__}, expected a list of detections{hint}")
    if fault := find_form_fault(detections):
        raise DataError(f"{path}: detection {fault[0]} {fault[1]}")
    return detections


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Returns the 12 numbers from pycocotools' arrays; both may be cut to some classes."""
    values = {name: _mean_of_defined(precision[..., area, limit]) for name, (area, limit) in _PRECISIONS.items()}
    values |= {name: _mean_of_defined(precision[[level], ..., 0, 2]) for name, level in _PRECISIONS_AT.items()}
    return values | {name: _mean_of_defined(recall[..., area, limit]) for name, (area, limit) in _RECALLS.items()}


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[values > UNDEFINED]
    return float(np.mean(defined)) if defined.size else UNDEFINED


def _class_names(categories: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Returns category id -> a name that no other category has."""
    names = {category["id"]: category.get("name", f"class {category['id']}") for category in categories}
    counts = Counter(names.values())
    return {key: str(name) if counts[name] == 1 else f"{name} (id {key})" for key, name in names.items()}


def _shown(value: float) -> str:
    return "-" if value == UNDEFINED else f"{value:.3f}"


def _null_where_undefined(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _null_where_undefined(value) for key, value in values.items()}
    return None if isinstance(values, float) and values == UNDEFINED else values

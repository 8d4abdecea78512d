"""Pascal VOC's average precision, for data sets whose published numbers are in it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def every_point_average(recall: np.ndarray, precision: np.ndarray) -> float:
    """Returns the area under the precision-recall curve, made monotone (VOC since 2010).

    Args:
        recall: `[D]`, not falling, in 0..1.
        precision: `[D]`, in 0..1.

    Example:
        >>> every_point_average(np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 0.6]))  # 0.5 * 1 + 0.5 * 0.6
        0.8
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def eleven_point_average(recall: np.ndarray, precision: np.ndarray) -> float:
    """Returns the mean of the best precision at a recall of at least 0, 0.1, .. 1 (VOC 2007).

    The levels are those of the implementations in use, in which 0.3, 0.6 and 0.7 come out a hair above: a recall of
    exactly 6 of 10 does not reach the level 0.6. Published numbers contain this.

    Args:
        recall: `[D]`, in 0..1.
        precision: `[D]`, in 0..1.

    Example:
        >>> round(eleven_point_average(np.array([0.5]), np.array([1.0])), 4)  # 6 of the 11 levels are reached
        0.5455
    """
    levels = np.linspace(0.0, 1.0, 11)
    return float(np.mean([np.max(precision[recall >= level], initial=0.0) for level in levels]))


def voc_average_precision(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    iou_threshold: float = 0.5,
    interpolation: Callable[[np.ndarray, np.ndarray], float] = every_point_average,
) -> dict[str, float]:
    """Returns Pascal VOC's average precision per class, in 0..1; their mean is VOC's mAP.

    In order of falling score, a detection takes the object that it overlaps most; it is correct if their IoU is at
    least `iou_threshold` and the object was not taken before. (COCO's rule differs: there, a detection whose best
    object is taken may have another.) As in VOC's own code, pixels are counted, so that a box of width w covers
    w + 1 of them; COCO does not do so.

    Args:
        ground_truth: COCO's annotation form with `categories` and `annotations`; `iscrowd` 1 stands for VOC's
            `difficult`: such an object need not be found, and a detection of it does not count.
        detections: COCO's results form; see `to_coco_results`.
        iou_threshold: the least IoU of a correct detection, in 0..1.
        interpolation: `every_point_average` or `eleven_point_average`.

    Returns:
        Class name -> average precision, for the classes that have an object to be found.

    Example:
        >>> truth = {
        ...     "categories": [{"id": 1, "name": "dog"}],
        ...     "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
        ... }
        >>> voc_average_precision(truth, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9}])
        {'dog': 1.0}
    """
    objects = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        objects[annotation["category_id"], annotation["image_id"]].append(annotation)
    candidates = defaultdict(list)
    for detection in detections:
        candidates[detection["category_id"]].append(detection)

    averages = {}
    for category in ground_truth["categories"]:
        of_class = {image_id: found for (key, image_id), found in objects.items() if key == category["id"]}
        count = sum(not item.get("iscrowd") for found in of_class.values() for item in found)
        if count:
            is_correct = _correct_detections(of_class, candidates[category["id"]], iou_threshold)
            correct = np.cumsum(is_correct)
            precision = correct / np.arange(1, len(is_correct) + 1)
            averages[category["name"]] = interpolation(correct / count, precision)
    return averages


def _correct_detections(
    objects: Mapping[Any, Sequence[Mapping[str, Any]]], detections: Sequence[Mapping[str, Any]], iou_threshold: float
) -> np.ndarray:
    """Returns bool `[D]` in order of falling score; detections of difficult objects are left out."""
    boxes = {image_id: np.array([item["bbox"] for item in found], float) for image_id, found in objects.items()}
    is_taken = {image_id: np.zeros(len(found), bool) for image_id, found in objects.items()}
    is_correct = []
    for detection in sorted(detections, key=lambda item: -item["score"]):
        image_id = detection["image_id"]
        if image_id not in objects:
            is_correct.append(False)
            continue
        ious = _pixel_iou(np.asarray(detection["bbox"], float), boxes[image_id])
        best = int(np.argmax(ious))
        if ious[best] < iou_threshold:
            is_correct.append(False)
        elif not objects[image_id][best].get("iscrowd"):
            is_correct.append(not is_taken[image_id][best])
            is_taken[image_id][best] = True
    return np.array(is_correct, bool)


def _pixel_iou(box_xywh: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
    """Returns the IoU of one box with `[N, 4]` others, by VOC's count of pixels."""
    starts = np.maximum(box_xywh[:2], boxes_xywh[:, :2])
    ends = np.minimum(box_xywh[:2] + box_xywh[2:], boxes_xywh[:, :2] + boxes_xywh[:, 2:])
    shared = np.prod(np.maximum(ends - starts + 1, 0), axis=1)
    return shared / (np.prod(box_xywh[2:] + 1) + np.prod(boxes_xywh[:, 2:] + 1, axis=1) - shared)

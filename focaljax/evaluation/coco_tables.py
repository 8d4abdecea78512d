"""From COCO's annotation and results forms to columns of numbers, with each fault named."""

import itertools
import math
import operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from focaljax.evaluation.coco_engines import DetectionTable, ObjectTable

_ID_TYPES = (int, str, np.integer)
_NUMBER_TYPES = (int, float, np.number)
_BOX_TYPES = (list, tuple, np.ndarray)


def numbered(ids: Iterable[Any]) -> dict[Any, int]:
    """Returns id -> its number from 1 in ascending order; an id that comes twice counts once."""
    return {key: number for number, key in enumerate(sorted(set(ids)), start=1)}


def object_table(
    annotations: Iterable[Mapping[str, Any]], image_numbers: Mapping[Any, int], class_numbers: Mapping[Any, int]
) -> ObjectTable:
    """Returns the annotations that count, those of listed images and categories.

    Args:
        annotations: in COCO's form; without `area` it is width times height, without `iscrowd` it is no crowd.
        image_numbers: image id -> 1..I.
        class_numbers: category id -> 1..K.

    Raises:
        ValueError: if one has no finite box; the message names it.
    """
    counting = [one for one in annotations if one["image_id"] in image_numbers and one["category_id"] in class_numbers]
    boxes_xywh = _boxes([one.get("bbox") for one in counting])
    if boxes_xywh is None:
        # pycocotools would match a NaN box with any detection
        one, fault = next((one, fault) for one in counting if (fault := _box_fault(one.get("bbox"))))
        name = f"annotation {one.get('id')} of image {one['image_id']}"
        raise ValueError(f"{name} {fault}: leave it out of the ground truth")
    of_box = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    given = [one.get("area") for one in counting]
    return ObjectTable(
        images=_numbers([one["image_id"] for one in counting], image_numbers),
        classes=_numbers([one["category_id"] for one in counting], class_numbers),
        boxes_xywh=boxes_xywh,
        areas=np.array([mine if area is None else area for area, mine in zip(given, of_box)], np.float64),
        is_crowd=np.array([int(one.get("iscrowd") or 0) for one in counting], bool),
    )


def detection_table(
    detections: Sequence[Mapping[str, Any]], image_numbers: Mapping[Any, int], class_numbers: Mapping[Any, int]
) -> DetectionTable:
    """Returns all detections, in their order.

    Args:
        detections: in COCO's results form.
        image_numbers: image id -> 1..I.
        class_numbers: category id -> 1..K.

    Raises:
        ValueError: if one lacks a key, names an image or category that is not listed, or has a box or score that is
            not finite; the message names it.
    """
    columns = _columns(detections)
    if columns is None or not np.isfinite(columns[3]).all():
        index, fault = next(pair for pair in enumerate(map(_fault, detections)) if pair[1])
        found = detections[index]
        of_image = f" of image {found['image_id']}" if isinstance(found, Mapping) and "image_id" in found else ""
        raise ValueError(f"detection {index}{of_image} {fault}")
    image_ids, category_ids, boxes_xywh, scores = columns
    for key, ids, known in (("image_id", image_ids, image_numbers), ("category_id", category_ids, class_numbers)):
        unknown = sorted(set(ids) - known.keys(), key=str)
        if unknown:
            more = ", ..." if len(unknown) > 5 else ""
            listed = ", ".join(map(str, unknown[:5])) + more
            raise ValueError(
                f"detections have {len(unknown)} values of {key} that the ground truth lacks ({listed}): "
                f"evaluate them against the annotations that they were made for"
            )
    return DetectionTable(
        images=_numbers(image_ids, image_numbers),
        classes=_numbers(category_ids, class_numbers),
        boxes_xywh=boxes_xywh,
        scores=scores,
    )


def find_form_fault(detections: Sequence[Any]) -> tuple[int, str] | None:
    """Returns the index of the first that is not in COCO's results form, and what it lacks; None if all are."""
    if _columns(detections) is not None:
        return None
    return next(((index, fault) for index, one in enumerate(detections) if (fault := _form_fault(one))), None)


def _columns(detections: Sequence[Any]) -> tuple[list, list, np.ndarray, np.ndarray] | None:
    """Returns image ids, category ids, boxes and scores, or None if any is at fault; NaN and inf scores pass.

    By columns, as half a million detections looked at one by one take longer than hotcoco takes to evaluate them.
    """
    keys = ("image_id", "category_id", "bbox", "score")
    try:
        image_ids, category_ids, bboxes, scores = (list(map(operator.itemgetter(key), detections)) for key in keys)
    except (KeyError, TypeError, IndexError, ValueError):
        return None
    is_form = (
        _are_all(detections, Mapping)
        and _are_all(image_ids, _ID_TYPES)
        and _are_all(category_ids, _ID_TYPES)
        and _are_all(scores, _NUMBER_TYPES)
    )
    boxes_xywh = _boxes(bboxes) if is_form else None
    if boxes_xywh is None:
        return None
    try:
        return image_ids, category_ids, boxes_xywh, np.fromiter(scores, np.float64, len(scores))
    except (TypeError, OverflowError):
        return None


def _boxes(bboxes: Sequence[Any]) -> np.ndarray | None:
    """Returns boxes as float64 `[N, 4]`, or None if any is not four finite numbers, no size below 0."""
    if not _are_all(bboxes, _BOX_TYPES):
        return None
    try:
        has_four = set(map(len, bboxes)) <= {4}
        values = list(itertools.chain.from_iterable(bboxes))
        if not has_four or not _are_all(values, _NUMBER_TYPES):
            return None
        boxes_xywh = np.fromiter(values, np.float64, len(values)).reshape(-1, 4)
    except (TypeError, OverflowError):
        return None
    return boxes_xywh if np.isfinite(boxes_xywh).all() and (boxes_xywh[:, 2:] >= 0).all() else None


def _are_all(values: Iterable[Any], types: Any) -> bool:
    """Says whether all values are of these types; looks at each type once."""
    return all(issubclass(found, types) for found in set(map(type, values)))


def _numbers(ids: Sequence[Any], numbers: Mapping[Any, int]) -> np.ndarray:
    return np.fromiter(map(numbers.__getitem__, ids), np.int64, len(ids))


def _fault(detection: Any) -> str | None:
    """Says what is wrong with a detection, or None."""
    fault = _form_fault(detection) or _box_fault(detection["bbox"])
    if not fault and not _is_finite(detection["score"]):
        return f"has the score {reprlib.repr(detection['score'])}, expected a finite number"
    return fault


def _form_fault(detection: Any) -> str | None:
    """Says what a detection lacks of COCO's results form, or None."""
    if not isinstance(detection, Mapping):
        return f"is a {type(detection).__name__}, expected an object with image_id, category_id, bbox and score"
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in detection]
    if missing:
        return f"has no {' and no '.join(missing)}"
    for key in ("image_id", "category_id"):
        if not isinstance(detection[key], _ID_TYPES):
            return f"has the {key} {reprlib.repr(detection[key])}, expected an id"
    if not isinstance(detection["score"], _NUMBER_TYPES):
        return f"has the score {reprlib.repr(detection['score'])}, expected a number"
    if _is_box(detection["bbox"]):
        return None
    return f"has the bbox {reprlib.repr(detection['bbox'])}, expected [x, y, width, height]"


def _is_box(bbox: Any) -> bool:
    return isinstance(bbox, _BOX_TYPES) and len(bbox) == 4 and all(isinstance(value, _NUMBER_TYPES) for value in bbox)


def _is_finite(value: Any) -> bool:
    """Says whether a number is finite as a float: an integer of 400 digits is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _box_fault(bbox: Any) -> str | None:
    """Says what is wrong with a box, or None; a box of no area is in order."""
    if _is_box(bbox) and all(map(_is_finite, bbox)) and bbox[2] >= 0 and bbox[3] >= 0:
        return None
    return f"has the bbox {reprlib.repr(bbox)}, expected four finite numbers [x, y, width, height], no size below 0"

"""What is behind AP: which detection met which object, precision-recall curves, confusions, scores of images.

By COCO's rules: within an image, detections are taken from the highest score down; each takes the object, among those
that are still free, with the highest IoU, if that reaches the threshold; an object is found once. A crowd may be met
any number of times and neither rewards nor costs a detection.
"""

import dataclasses

import numpy as np

from focaljax.evaluation.coco_engines import DetectionTable, ObjectTable

# What a detection met, where it is no object's row.
NOTHING = -1
# Recall levels of COCO's curves.
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclasses.dataclass(frozen=True)
class Matches:
    """Which object each of D detections met.

    Attributes:
        objects: int64 `[D]`, row of the object, or `NOTHING`.
        is_counted: bool `[D]`, the detection is right or wrong: it met no crowd, and is among the first of its image.
    """

    objects: np.ndarray
    is_counted: np.ndarray

    @property
    def is_true(self) -> np.ndarray:
        """Whether each detection found an object, `[D]`."""
        return self.is_counted & (self.objects != NOTHING)

    @property
    def is_false(self) -> np.ndarray:
        """Whether each detection found none, `[D]`."""
        return self.is_counted & (self.objects == NOTHING)


@dataclasses.dataclass(frozen=True)
class ClassCurve:
    """Precision over recall of one class.

    Attributes:
        precision: float64 `[101]`, at the recalls 0, 0.01, .. 1: the highest at this recall or above, 0 where it is not
            reached. Its mean is COCO's AP at this IoU.
        best_f1: the highest F1 that a score threshold gives; 0 without detections.
        best_score: that threshold; NaN without detections.
        num_objects: of the class, crowds not counted, at least 1.
    """

    precision: np.ndarray
    best_f1: float
    best_score: float
    num_objects: int


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """What was found on one image.

    Attributes:
        image: its number.
        found: objects that were found.
        missed: objects that were not.
        false: detections of no object.
    """

    image: int
    found: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """2 found / (2 found + missed + false); 1 where there is nothing and nothing was seen."""
        total = 2 * self.found + self.missed + self.false
        return 2 * self.found / total if total else 1.0


def match_detections(
    objects: ObjectTable,
    found: DetectionTable,
    *,
    iou_threshold: float,
    by_class: bool = True,
    max_detections: int | None = 100,
) -> Matches:
    """Returns which object each detection met.

    Args:
        objects: the ground truth.
        found: the detections, in any order; equal scores keep theirs.
        iou_threshold: above 0, at most 1.
        by_class: a detection can only meet objects of its class, and `max_detections` counts each class by itself, as
            in COCO's metrics. False: of any class, to see what is taken for what.
        max_detections: of an image, those with the highest scores; the others do not count. None: all do.
    """
    matched = np.full(len(found.scores), NOTHING, np.int64)
    is_counted = np.zeros(len(found.scores), bool)
    group = lambda table: np.stack([table.images, table.classes if by_class else 0 * table.classes])  # noqa: E731
    of_objects, of_found = group(objects), group(found)
    # Crowds last, as COCO has them: an object comes before them.
    object_order = np.lexsort((objects.is_crowd, of_objects[1], of_objects[0]))
    found_order = np.lexsort((-found.scores, of_found[1], of_found[0]))
    rows_of = dict(_groups(of_objects, object_order))
    for key, rows in _groups(of_found, found_order):
        rows = rows[:max_detections]
        is_counted[rows] = True
        candidates = rows_of.get(key)
        if candidates is None:
            continue
        is_crowd = objects.is_crowd[candidates]
        ious = _pairwise_iou(found.boxes_xywh[rows], objects.boxes_xywh[candidates], is_crowd)
        places = _match_group(ious, is_crowd, iou_threshold)
        is_met = places != NOTHING
        matched[rows[is_met]] = candidates[places[is_met]]
    of_crowd = matched != NOTHING
    of_crowd[of_crowd] = objects.is_crowd[matched[of_crowd]]
    return Matches(objects=np.where(of_crowd, NOTHING, matched), is_counted=is_counted & ~of_crowd)


def precision_recall(
    matches: Matches, objects: ObjectTable, found: DetectionTable, *, num_classes: int
) -> dict[int, ClassCurve]:
    """Returns the curve of each class that has objects, by the class's number.

    Args:
        matches: within classes, see `match_detections`.
        objects: the ground truth.
        found: the detections.
        num_classes: K; the numbers are 1 to K.
    """
    curves = {}
    # Images in order, then scores: COCO's order of equal scores.
    order = np.lexsort((-found.scores, found.images))
    order = order[np.argsort(-found.scores[order], kind="stable")]
    order = order[matches.is_counted[order]]
    for number in range(1, num_classes + 1):
        count = int(np.sum((objects.classes == number) & ~objects.is_crowd))
        if count:
            rows = order[found.classes[order] == number]
            curves[number] = _curve(matches.is_true[rows], found.scores[rows], count)
    return curves


def confusion_matrix(matches: Matches, objects: ObjectTable, found: DetectionTable, *, num_classes: int) -> np.ndarray:
    """Returns counts, int64 `[K + 1, K + 1]`: a row for each true class, a column for each that was seen.

    The last row is background that was taken for an object, the last column objects that were missed; their corner is
    0. Rows but the last add up to the objects of a class, crowds not counted.

    Args:
        matches: across classes, `match_detections(..., by_class=False)`, of the detections that are to count.
        objects: the ground truth.
        found: the detections.
        num_classes: K.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    is_true, is_false = matches.is_true, matches.is_false
    met = matches.objects[is_true]
    np.add.at(counts, (objects.classes[met] - 1, found.classes[is_true] - 1), 1)
    np.add.at(counts, (num_classes, found.classes[is_false] - 1), 1)
    is_missed = ~objects.is_crowd
    is_missed[met] = False
    np.add.at(counts, (objects.classes[is_missed] - 1, num_classes), 1)
    return counts


def image_scores(matches: Matches, objects: ObjectTable, found: DetectionTable, *, num_images: int) -> list[ImageScore]:
    """Returns for each image, in the order of their numbers, what was found on it.

    Args:
        matches: within classes, see `match_detections`, of the detections that are to count.
        objects: the ground truth.
        found: the detections.
        num_images: I; the numbers are 1 to I.
    """
    count = lambda images: np.bincount(images, minlength=num_images + 1)[1:].tolist()  # noqa: E731
    right, wrong = count(found.images[matches.is_true]), count(found.images[matches.is_false])
    there = count(objects.images[~objects.is_crowd])
    return [
        ImageScore(number, num_right, num_objects - num_right, num_wrong)
        for number, (num_right, num_objects, num_wrong) in enumerate(zip(right, there, wrong), start=1)
    ]


def above(found: DetectionTable, min_score: float) -> DetectionTable:
    """Returns the detections with a score of at least `min_score`, in the same order."""
    is_kept = found.scores >= min_score
    return DetectionTable(**{name: column[is_kept] for name, column in vars(found).items()})


def _match_group(ious: np.ndarray, is_crowd: np.ndarray, threshold: float) -> np.ndarray:
    """Returns for each row of `ious` `[D, N]`, in this order, the column that it takes, or `NOTHING`.

    Crowds are the last columns, and stay free.
    """
    places = np.full(len(ious), NOTHING)
    threshold = min(threshold, 1.0 - 1e-10)  # pycocotools': rounding must not cost a perfect box
    is_free = np.ones(ious.shape[1], bool)
    for row in np.flatnonzero((ious >= threshold).any(axis=1)):
        for of_kind in (~is_crowd, is_crowd):
            open_ious = np.where(is_free & of_kind, ious[row], -1.0)
            best = len(open_ious) - 1 - np.argmax(open_ious[::-1])  # pycocotools takes the last of equals
            if open_ious[best] >= threshold:
                places[row] = best
                is_free[best] = is_crowd[best]
                break
    return places


def _pairwise_iou(boxes_xywh: np.ndarray, others_xywh: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """Returns `[D, N]`: intersection over union, or over the detection's area where the other is a crowd."""
    starts, sizes = boxes_xywh[:, None, :2], boxes_xywh[:, None, 2:]
    other_starts, other_sizes = others_xywh[None, :, :2], others_xywh[None, :, 2:]
    shared = np.minimum(starts + sizes, other_starts + other_sizes) - np.maximum(starts, other_starts)
    intersection = np.prod(np.maximum(shared, 0.0), axis=2)
    area, other_area = np.prod(sizes, axis=2), np.prod(other_sizes, axis=2)
    union = np.where(is_crowd, area, area + other_area - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _curve(is_true: np.ndarray, scores: np.ndarray, count: int) -> ClassCurve:
    """Returns the curve of detections in the order of their scores."""
    right = np.cumsum(is_true)
    seen = np.arange(1, len(is_true) + 1)
    recall, precision = right / count, right / (seen + np.spacing(1))
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    at_recalls = np.append(highest, 0.0)[places]
    if not len(scores):
        return ClassCurve(at_recalls, best_f1=0.0, best_score=float("nan"), num_objects=count)
    f1 = 2 * right / (seen + count)
    # A threshold takes all detections of its score.
    f1[:-1][scores[:-1] == scores[1:]] = -1.0
    best = int(np.argmax(f1))
    return ClassCurve(at_recalls, best_f1=float(f1[best]), best_score=float(scores[best]), num_objects=count)


def _groups(keys: np.ndarray, order: np.ndarray) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Returns ((image, class), rows) for each pair that occurs, the rows in their order."""
    if not len(order):
        return []
    in_order = keys[:, order]
    starts = np.flatnonzero((np.diff(in_order, axis=1) != 0).any(axis=0)) + 1
    heads = in_order[:, [0, *starts]].T.tolist()
    return [((image, label), rows) for (image, label), rows in zip(heads, np.split(order, starts), strict=True)]

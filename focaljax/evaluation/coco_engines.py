"""Precision and recall by COCO's rules, computed by hotcoco where it is installed and by pycocotools where not.

pycocotools sets the rules, hotcoco (Rust, many times faster) gives the same arrays bit for bit.
"""

import contextlib
import dataclasses
import importlib.metadata
import io

import numpy as np


@dataclasses.dataclass(frozen=True)
class ObjectTable:
    """The annotated objects of a data set as columns, one row each; N, their number, may be 0.

    Attributes:
        images: int64 `[N]`, number of the image, 1..I.
        classes: int64 `[N]`, number of the class, 1..K.
        boxes_xywh: float64 `[N, 4]`, x, y, width, height in pixels; finite, no size below 0.
        areas: float64 `[N]`, pixels; that of the outline where there is one.
        is_crowd: bool `[N]`, the box holds several objects, which need not be found.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes_xywh: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray


@dataclasses.dataclass(frozen=True)
class DetectionTable:
    """Detections as columns, one row each; D, their number, may be 0.

    Attributes:
        images: int64 `[D]`, number of the image, 1..I.
        classes: int64 `[D]`, number of the class, 1..K.
        boxes_xywh: float64 `[D, 4]`, as in `ObjectTable`.
        scores: float64 `[D]`, finite.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Curves:
    """What COCO's numbers are means of; -1 for a class without objects (of that size).

    Attributes:
        precision: float64 `[10, 101, K, 4, 3]`: IoU threshold, recall level, class, area range (all, small, medium,
            large), limit of detections an image and class (1, 10, 100).
        recall: float64 `[10, K, 4, 3]`: the same without recall levels.
        engine: the library that computed them and its version, such as 'hotcoco 1.3.0'.
    """

    precision: np.ndarray
    recall: np.ndarray
    engine: str


def precision_and_recall(
    objects: ObjectTable, detections: DetectionTable, *, num_images: int, num_classes: int
) -> Curves:
    """Returns precision and recall of detections by COCO's rules.

    Args:
        objects: what there is.
        detections: what was found.
        num_images: I.
        num_classes: K.
    """
    try:
        import hotcoco  # noqa: F401 - whether it is there
    except ImportError:
        return with_pycocotools(objects, detections, num_images=num_images, num_classes=num_classes)
    return with_hotcoco(objects, detections, num_images=num_images, num_classes=num_classes)


def with_hotcoco(objects: ObjectTable, detections: DetectionTable, *, num_images: int, num_classes: int) -> Curves:
    """Returns what `precision_and_recall` says, from hotcoco: on all cores, and other threads run on."""
    import hotcoco

    truth = hotcoco.COCO.from_arrays(
        [{"id": number} for number in range(1, num_images + 1)],
        # it warns of classes that have no name
        [{"id": number, "name": str(number)} for number in range(1, num_classes + 1)],
        objects.images,
        objects.classes,
        objects.boxes_xywh,
        area=objects.areas,
        iscrowd=objects.is_crowd.astype(np.int64),
    )
    columns = (detections.images, detections.boxes_xywh, detections.scores, detections.classes)
    evaluation = hotcoco.COCOeval(truth, truth.load_res(np.column_stack(columns)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    curves = evaluation.eval
    assert curves is not None  # it is, before accumulate()
    return Curves(curves["precision"], curves["recall"], f"hotcoco {hotcoco.__version__}")


def with_pycocotools(objects: ObjectTable, detections: DetectionTable, *, num_images: int, num_classes: int) -> Curves:
    """Returns what `precision_and_recall` says, from pycocotools.

    Standard output is caught for the time of the call, so no other thread should print.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def coco(**columns: np.ndarray) -> COCO:
        # numbered from 1: pycocotools takes a match with annotation id 0 for none, and mixes up equal ids
        columns["id"] = np.arange(1, len(columns["bbox"]) + 1)
        rows = zip(*(column.tolist() for column in columns.values()))
        result = COCO()
        result.dataset = {
            "images": [{"id": number} for number in range(1, num_images + 1)],
            "categories": [{"id": number} for number in range(1, num_classes + 1)],
            "annotations": [dict(zip(columns, row)) for row in rows],
        }
        result.createIndex()
        return result

    def common(table: ObjectTable | DetectionTable) -> dict[str, np.ndarray]:
        return {"image_id": table.images, "category_id": table.classes, "bbox": table.boxes_xywh}

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco(**common(objects), area=objects.areas, iscrowd=objects.is_crowd.astype(np.int64))
        areas = detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3]
        found = coco(**common(detections), area=areas, score=detections.scores)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    curves = evaluation.eval
    version = importlib.metadata.version("pycocotools")
    return Curves(curves["precision"], curves["recall"], f"pycocotools {version}")

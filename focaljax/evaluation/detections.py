"""Detections on the host: one image's boxes, scores and labels, and their COCO results form."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageDetections:
    """The detections of one image; D, their number, may be 0.

    Attributes:
        image_id: the source's own id of the image.
        boxes_xyxy: float32 `[D, 4]`, corners in pixels of the original image, `x1 <= x2` and `y1 <= y2`.
        scores: float32 `[D]`, the confidence, in 0..1.
        labels: int32 `[D]`, class index in 0..K-1.

    Raises:
        ValueError: if a shape does not fit.
    """

    image_id: int
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.scores)
        expected = {"boxes_xyxy": (count, 4), "scores": (count,), "labels": (count,)}
        for name, shape in expected.items():
            found = np.shape(getattr(self, name))
            if found != shape:
                raise ValueError(f"{name} of image {self.image_id} has shape {found}, expected {shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, min_score: float) -> "ImageDetections":
        """Returns the detections with a score of at least `min_score`, in the same order."""
        is_kept = self.scores >= min_score
        return ImageDetections(self.image_id, self.boxes_xyxy[is_kept], self.scores[is_kept], self.labels[is_kept])


def to_coco_results(detections: Iterable[ImageDetections], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Returns detections in COCO's results form: one dict of plain Python numbers each.

    Values are not rounded, so metrics of the written file equal metrics of the arrays. Images without detections
    leave no trace, as in COCO.

    Args:
        detections: per image, in any order.
        category_ids: K COCO category ids in label order: label `k` becomes `category_ids[k]`.

    Returns:
        Dicts with `image_id`, `category_id`, `bbox` (`[x, y, width, height]`, pixels of the original image), `score`.

    Raises:
        ValueError: if a label is not in 0..K-1; the message names the image.

    Example:
        >>> one = ImageDetections(7, np.array([[10.0, 20, 30, 60]]), scores=np.array([0.5]), labels=np.array([1]))
        >>> to_coco_results([one], category_ids=(1, 44))
        [{'image_id': 7, 'category_id': 44, 'bbox': [10.0, 20.0, 20.0, 40.0], 'score': 0.5}]
    """
    results = []
    for image in detections:
        labels = np.asarray(image.labels)
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(category_ids)):
            raise ValueError(
                f"image {image.image_id} has labels in {labels.min()}..{labels.max()}, but there are "
                f"{len(category_ids)} category ids: were the detections made with other classes?"
            )
        # float64 keeps the difference of two float32 corners exact
        corners = np.asarray(image.boxes_xyxy, np.float64)
        boxes_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        results += [
            {"image_id": int(image.image_id), "category_id": int(category_ids[label]), "bbox": bbox, "score": score}
            for label, bbox, score in zip(labels.tolist(), boxes_xywh.tolist(), np.asarray(image.scores).tolist())
        ]
    return results

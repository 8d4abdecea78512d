"""Prediction over a data set: batches in, detections in pixels of the original images out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from focaljax.data.resize import restore_boxes
from focaljax.detection import Detections
from focaljax.evaluation.detections import ImageDetections
from focaljax.training.mesh import gather_rows, local_rows


def predict_batches(
    predict: Callable[[Any], Detections],
    batches: Iterable[tuple[Mapping[str, np.ndarray], Any]],
) -> Iterator[ImageDetections]:
    """Yields the detections of every valid image, in the order of the batches.

    The device works on one batch ahead of the results that are fetched.

    Args:
        predict: from a batch on the devices to `Detections` with a leading batch axis, boxes in pixels of the batch.
        batches: pairs of a batch on the host (`image_id`, `size`, `original_size`, `is_valid`, see
            `focaljax.data.pipeline`) and what `predict` wants of it.
    """
    ahead: tuple[Mapping[str, np.ndarray], Detections] | None = None
    for host_batch, batch in batches:
        current = (host_batch, predict(batch))
        if ahead is not None:
            yield from _to_images(*ahead)
        ahead = current
    if ahead is not None:
        yield from _to_images(*ahead)


def gather_images(found: Sequence[ImageDetections], *, most_images: int, most_detections: int) -> list[ImageDetections]:
    """Returns the detections of all processes, those of the first process first.

    Args:
        found: this process's.
        most_images: bound on the number of images of a process, the same on all of them.
        most_detections: bound on the detections of an image.
    """
    if jax.process_count() == 1:
        return list(found)
    n, D = most_images, most_detections
    rows: dict[str, np.ndarray] = {
        "image_id": np.zeros(n, np.int64),
        "count": np.full(n, -1, np.int32),  # no image
        "boxes": np.zeros((n, D, 4), np.float32),
        "scores": np.zeros((n, D), np.float32),
        "labels": np.zeros((n, D), np.int32),
    }
    for row, image in enumerate(found):
        count = len(image)
        rows["image_id"][row], rows["count"][row] = image.image_id, count
        for name, values in (("boxes", image.boxes_xyxy), ("scores", image.scores), ("labels", image.labels)):
            rows[name][row, :count] = values
    rows = gather_rows(rows)
    return [
        ImageDetections(
            int(rows["image_id"][row]),
            rows["boxes"][row, :count],
            rows["scores"][row, :count],
            rows["labels"][row, :count],
        )
        for row, count in enumerate(rows["count"].tolist())
        if count >= 0
    ]


def _to_images(batch: Mapping[str, np.ndarray], detections: Detections) -> Iterator[ImageDetections]:
    found = jax.tree.map(local_rows, detections)
    for row in np.flatnonzero(batch["is_valid"]):
        is_detection = found.is_detection[row]
        height, width = batch["original_size"][row]
        boxes_xyxy = restore_boxes(found.boxes_xyxy[row][is_detection], batch["size"][row], batch["original_size"][row])
        yield ImageDetections(
            image_id=int(batch["image_id"][row]),
            # The ratio is rounded to float32, so a box at the image's edge could end a hair outside.
            boxes_xyxy=np.minimum(boxes_xyxy, np.array([width, height, width, height], np.float32)),
            scores=found.scores[row][is_detection],
            labels=found.labels[row][is_detection],
        )

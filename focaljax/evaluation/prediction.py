"""Prediction over a data set: batches in, detections in pixels of the original images out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from focaljax.data.resize import restore_boxes
from focaljax.detection import Detections
from focaljax.evaluation.detections import ImageDetections


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


def _to_images(batch: Mapping[str, np.ndarray], detections: Detections) -> Iterator[ImageDetections]:
    found = jax.device_get(detections)
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

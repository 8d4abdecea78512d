"""The contestant of the suppression benchmark that runs on JAX: focaljax."""

import functools

import numpy as np
from nms_boxes import parse_name, synthetic_candidates
from on_jax import OnJax

PACKAGES = ("jax", "jaxlib", "focaljax")


class Library(OnJax):
    """Builds contestants by name.

    Args:
        classes: K.
        iou_threshold: above it a box is dropped.
        device: "cpu" or "gpu".
        threads: unused; the processor affinity, set before JAX starts, gives its number of threads.
        seed: of the candidates.
    """

    def __init__(self, *, classes: int, iou_threshold: float, device: str, threads: int, seed: int) -> None:
        super().__init__(device)
        self._num_classes, self._iou_threshold, self._seed = classes, iou_threshold, seed

    def build(self, name: str) -> dict:
        """Returns what to call for the one part, "value"."""
        from focaljax.detection import non_maximum_suppression

        count, limit = parse_name(name)
        boxes, scores, labels = synthetic_candidates(count, self._num_classes, self._seed)
        function = functools.partial(
            non_maximum_suppression, iou_threshold=self._iou_threshold, max_detections=min(limit, count)
        )
        run = self.compile(function, *self.jax.device_put((boxes, scores, labels)))
        run.scores = scores
        return {"value": run}

    def answer(self, parts: dict) -> dict:
        """Returns the indices of the boxes kept, best first: no two scores are equal, so these tell them."""
        found = parts["value"]()
        scores = np.asarray(found.scores)[np.asarray(found.is_detection)]
        ascending = np.argsort(parts["value"].scores)
        return {"kept": ascending[np.searchsorted(parts["value"].scores[ascending], scores)].tolist()}

"""The contestant of the suppression benchmark that runs on JAX: focaljax."""

import functools
import os

import numpy as np
from nms_boxes import parse_name, synthetic_candidates

PACKAGES = ("jax", "jaxlib", "focaljax")


class Library:
    """Builds contestants by name.

    Args:
        size: K, and the IoU above which a box is dropped.
        dtype: of boxes and scores.
        device: "cpu" or "gpu".
        threads: unused; the processor affinity, set before JAX starts, gives its number of threads.
        seed: of the candidates.
    """

    def __init__(self, *, size: tuple[int, float], dtype: str, device: str, threads: int, seed: int) -> None:
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[device]
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a program from the cache may not know its memory
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # other processes use the same GPU
        import jax

        try:
            self.device_name = jax.devices()[0].device_kind
        except (RuntimeError, AssertionError) as error:
            raise RuntimeError(
                f"JAX finds no {device.upper()}: for a GPU install focaljax[cuda], or pass --device cpu"
            ) from error
        self._jax, self._dtype, self._seed = jax, dtype, seed
        self._num_classes, self._iou_threshold = size

    def build(self, name: str) -> dict:
        """Returns what to call for the one part, "value"."""
        from focaljax.detection import non_maximum_suppression

        count, limit = parse_name(name)
        boxes, scores, labels = synthetic_candidates(count, self._num_classes, self._seed)
        arguments = self._jax.device_put((boxes.astype(self._dtype), scores.astype(self._dtype), labels))
        function = functools.partial(
            non_maximum_suppression, iou_threshold=self._iou_threshold, max_detections=min(limit, count)
        )
        compiled = self._jax.jit(function).lower(*arguments).compile()

        def run():
            return compiled(*arguments)

        run.compiled, run.scores = compiled, scores
        return {"value": run}

    def synchronize(self, result) -> None:
        """Waits until a result is there."""
        self._jax.block_until_ready(result)

    def answer(self, parts: dict) -> dict:
        """Returns the indices of the boxes kept, best first: no two scores are equal, so these tell them."""
        found = parts["value"]()
        scores = np.asarray(found.scores)[np.asarray(found.is_detection)]
        ascending = np.argsort(parts["value"].scores)
        return {"kept": ascending[np.searchsorted(parts["value"].scores[ascending], scores)].tolist()}

    def temporaries(self, run) -> int | None:
        """Returns the bytes that a call needs beside its arguments and results, as the compiler planned them."""
        analysis = run.compiled.memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)

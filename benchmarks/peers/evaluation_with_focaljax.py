"""The contestants of the evaluation benchmark that are focaljax's own function, on each of its engines."""

import importlib
import sys

from evaluation_data import synthetic_evaluation

PACKAGES = ("focaljax", "numpy", "hotcoco", "pycocotools")


class Library:
    """Builds 'focaljax/ENGINE'.

    Args:
        work: what `synthetic_evaluation` takes.
        engine: 'hotcoco' or 'pycocotools'.
        device: unused; the work is the processor's.
        threads: unused; the processor affinity gives hotcoco its number of threads.
        seed: of the data.

    Raises:
        ModuleNotFoundError: the engine is not installed.
    """

    device_name = None

    def __init__(self, *, work: dict, engine: str, device: str, threads: int, seed: int) -> None:
        importlib.import_module(engine)
        if engine == "pycocotools":
            sys.modules["hotcoco"] = None  # type: ignore[assignment]  # as where it is not installed
        self._engine = engine
        self._data = synthetic_evaluation(**work, seed=seed)

    def build(self, name: str) -> dict:
        """Returns what to call: "value", the whole function, and for hotcoco "engine", its part of that alone."""
        from focaljax.evaluation.coco_engines import with_hotcoco
        from focaljax.evaluation.coco_metrics import evaluate_detections
        from focaljax.evaluation.coco_tables import detection_table, numbered, object_table

        ground_truth, detections = self._data
        parts = {"value": lambda: evaluate_detections(ground_truth, detections)}
        if self._engine == "hotcoco":
            images, classes = (numbered(one["id"] for one in ground_truth[key]) for key in ("images", "categories"))
            tables = (
                object_table(ground_truth["annotations"], images, classes),
                detection_table(detections, images, classes),
            )
            counts = {"num_images": len(images), "num_classes": len(classes)}
            parts["engine"] = lambda: with_hotcoco(*tables, **counts)
        return parts

    def answer(self, parts: dict) -> dict:
        """Returns the 12 numbers, AP by class, and the engine that computed them."""
        from focaljax.evaluation.coco_metrics import MEANINGS

        metrics = parts["value"]()
        return {
            "metrics": {name: getattr(metrics, name) for name in MEANINGS},
            "class_ap": {name: values.AP for name, values in metrics.per_class.items()},
            "engine": metrics.engine,
            "objects": len(self._data[0]["annotations"]),
        }

    def synchronize(self, result) -> None:
        """Returns at once: a result is there when the call returns."""

    def temporaries(self, run) -> None:
        """Returns None: not measured."""

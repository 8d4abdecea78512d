"""The contestants of the evaluation benchmark that have pycocotools' interface, used as their manuals say.

One a process: pycocotools writes into the detections that it is given, and the next would get longer ones.
"""

import importlib

import numpy as np
from evaluation_data import synthetic_evaluation

PACKAGES = ("numpy", "pycocotools", "faster_coco_eval", "hotcoco")
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class Library:
    """Builds 'pycocotools', 'faster-coco-eval' or 'hotcoco'.

    Args:
        work: what `synthetic_evaluation` takes.
        device: unused; the work is the processor's.
        threads: unused; the processor affinity gives those that have threads their number.
        seed: of the data.
    """

    device_name = None

    def __init__(self, *, work: dict, device: str, threads: int, seed: int) -> None:
        self._data = synthetic_evaluation(**work, seed=seed)

    def build(self, name: str) -> dict:
        """Returns what to call for the one part, "value": from annotations and detections to the 12 numbers.

        Raises:
            ModuleNotFoundError: it is not installed.
        """
        if name == "pycocotools":
            api = importlib.import_module("pycocotools.coco").COCO
            evaluator = importlib.import_module("pycocotools.cocoeval").COCOeval
        else:
            module = importlib.import_module(name.replace("-", "_"))
            api = module.COCO
            evaluator = module.COCOeval_faster if name == "faster-coco-eval" else module.COCOeval
        ground_truth, detections = self._data

        def run():
            truth = api()
            truth.dataset = ground_truth
            truth.createIndex()
            evaluation = evaluator(truth, truth.loadRes(detections), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            return evaluation

        return {"value": run}

    def answer(self, parts: dict) -> dict:
        """Returns the 12 numbers, and AP by class."""
        evaluation = parts["value"]()
        class_ap = {}
        for index, category in enumerate(self._data[0]["categories"]):
            precision = evaluation.eval["precision"][:, :, index, 0, 2]
            defined = precision[precision > -1]
            class_ap[category["name"]] = float(np.mean(defined)) if defined.size else -1.0
        return {"metrics": dict(zip(NAMES, map(float, evaluation.stats[:12]))), "class_ap": class_ap}

    def synchronize(self, result) -> None:
        """Returns at once: a result is there when the call returns."""

    def temporaries(self, run) -> None:
        """Returns None: not measured."""

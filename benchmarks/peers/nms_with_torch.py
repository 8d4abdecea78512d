"""The contestant of the suppression benchmark that runs on PyTorch: torchvision."""

import torch
from nms_boxes import parse_name, synthetic_candidates
from on_torch import OnTorch

PACKAGES = ("torch", "torchvision")


class Library(OnTorch):
    """Builds contestants by name.

    Args:
        classes: K.
        iou_threshold: above it a box is dropped.
        device: "cpu" or "gpu".
        threads: of PyTorch.
        seed: of the candidates.
    """

    def __init__(self, *, classes: int, iou_threshold: float, device: str, threads: int, seed: int) -> None:
        super().__init__(device, threads)
        self._num_classes, self._iou_threshold, self._seed = classes, iou_threshold, seed

    def build(self, name: str) -> dict:
        """Returns what to call for the one part, "value".

        Raises:
            ModuleNotFoundError: torchvision is not installed.
        """
        from torchvision.ops import batched_nms

        count, limit = parse_name(name)
        boxes, scores, labels = map(torch.from_numpy, synthetic_candidates(count, self._num_classes, self._seed))
        boxes, scores = boxes.to(self.device), scores.to(self.device)
        labels = labels.to(self.device, torch.int64)

        def run():
            # As torchvision's RetinaNet does: the limit comes after, and then the rows are taken.
            kept = batched_nms(boxes, scores, labels, self._iou_threshold)[:limit]
            return kept, boxes[kept], scores[kept], labels[kept]

        run()
        return {"value": run}

    def answer(self, parts: dict) -> dict:
        """Returns the indices of the boxes kept, best first."""
        return {"kept": parts["value"]()[0].tolist()}

    def temporaries(self, run) -> None:
        """Returns None: not measured."""

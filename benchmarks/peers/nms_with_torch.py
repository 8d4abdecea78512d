"""The contestant of the suppression benchmark that runs on PyTorch: torchvision."""

import torch
from nms_boxes import parse_name, synthetic_candidates

PACKAGES = ("torch", "torchvision")


class Library:
    """Builds contestants by name.

    Args:
        size: K, and the IoU above which a box is dropped.
        dtype: of boxes and scores.
        device: "cpu" or "gpu".
        threads: of PyTorch.
        seed: of the candidates.
    """

    def __init__(self, *, size: tuple[int, float], dtype: str, device: str, threads: int, seed: int) -> None:
        torch.set_num_threads(threads)
        self._on_gpu = device == "gpu"
        if self._on_gpu and not torch.cuda.is_available():
            raise RuntimeError("torch finds no GPU: install a build with CUDA, or pass --device cpu")
        self._device = torch.device("cuda" if self._on_gpu else "cpu")
        self._dtype, self._seed = getattr(torch, dtype), seed
        self._num_classes, self._iou_threshold = size
        self.device_name = torch.cuda.get_device_name() if self._on_gpu else "cpu"

    def build(self, name: str) -> dict:
        """Returns what to call for the one part, "value".

        Raises:
            ModuleNotFoundError: torchvision is not installed.
        """
        from torchvision.ops import batched_nms

        count, limit = parse_name(name)
        boxes, scores, labels = map(torch.from_numpy, synthetic_candidates(count, self._num_classes, self._seed))
        boxes, scores = boxes.to(self._device, self._dtype), scores.to(self._device, self._dtype)
        labels = labels.to(self._device, torch.int64)

        def run():
            # As torchvision's RetinaNet does: the limit comes after, and then the rows are taken.
            kept = batched_nms(boxes, scores, labels, self._iou_threshold)[:limit]
            return kept, boxes[kept], scores[kept], labels[kept]

        run()
        return {"value": run}

    def synchronize(self, result) -> None:
        """Waits until a result is there."""
        if self._on_gpu:
            torch.cuda.synchronize()

    def answer(self, parts: dict) -> dict:
        """Returns the indices of the boxes kept, best first."""
        return {"kept": parts["value"]()[0].tolist()}

    def temporaries(self, run) -> None:
        """Returns None: not measured."""

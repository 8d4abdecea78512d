"""The contestants that run on PyTorch: torchvision's loss, eager and under torch.compile.

Under torch.compile it is timed in two ways: the loss compiled and differentiated by `backward`'s machinery, as in a
training loop, and loss and gradient compiled as one function with `torch.func`, which spares what lies between them.
"""

import numpy as np
import torch
from batch import ALPHA, GAMMA, synthetic_batch
from on_torch import OnTorch

PACKAGES = ("torch", "torchvision")


class Library(OnTorch):
    """Holds the batch on the device and builds contestants.

    Args:
        size: B, A, K.
        dtype: of the logits, and of labels that are passed as one-hot.
        device: "cpu" or "gpu".
        threads: of PyTorch.
        seed: of the batch.
    """

    def __init__(self, *, size: tuple[int, int, int], dtype: str, device: str, threads: int, seed: int) -> None:
        super().__init__(device, threads)
        logits, labels = synthetic_batch(size, seed)
        self.logits = torch.from_numpy(logits).to(self.device, getattr(torch, dtype))
        self.labels = torch.from_numpy(labels).to(self.device, torch.int64)
        self._leaf = self.logits.detach().requires_grad_()
        self._classes = torch.arange(size[-1], device=self.device)
        self._one_hot = None

    def build(self, name: str) -> dict:
        """Returns what to call for each part, "value" and "gradient"; the latter returns both.

        Raises:
            ModuleNotFoundError: torchvision is not installed.
        """
        from torchvision.ops import sigmoid_focal_loss

        package, labels = name.split("/")
        is_compiled, is_one_function = package != "torchvision", package == "torch.func"
        one_hot = self._given_one_hot() if labels == "one-hot given" else None

        def objective(logits, ids, one_hot):
            if one_hot is None:
                one_hot = self._compared_one_hot(ids, logits) if is_compiled else _filled_one_hot(ids, logits)
            loss = sigmoid_focal_loss(logits, one_hot, alpha=ALPHA, gamma=GAMMA)
            return loss.sum(dtype=torch.float32) / (ids >= 0).sum().clamp(min=1)

        # Apart, so that neither is a recompilation of the other; fullgraph: an error where it would not compile.
        function_of_value = torch.compile(objective, fullgraph=True) if is_compiled else objective
        function_of_gradient = torch.compile(objective, fullgraph=True) if is_compiled else objective
        both = torch.compile(torch.func.grad_and_value(objective), fullgraph=True)

        def value():
            with torch.no_grad():
                return function_of_value(self.logits, self.labels, one_hot)

        def gradient():
            loss = function_of_gradient(self._leaf, self.labels, one_hot)
            return loss.detach(), torch.autograd.grad(loss, self._leaf)[0]

        def both_in_one():
            return both(self.logits, self.labels, one_hot)[::-1]

        parts = {"value": value, "gradient": both_in_one if is_one_function else gradient}
        for run in parts.values():
            run()
        return parts

    def answer(self, parts: dict) -> dict:
        """Returns the numbers by which contestants are compared: the value, and two that depend on every derivative."""
        value, gradient = parts["gradient"]()
        # Summed by rows here and in float64 by numpy: one sum of many million float32 would lose digits.
        squares = (gradient.float() ** 2).sum(-1).cpu().numpy().astype(np.float64)
        products = (gradient.float() * self.logits.float()).sum(-1).cpu().numpy().astype(np.float64)
        return {
            "value": float(parts["value"]()),
            "value beside the gradient": float(value),
            "gradient norm": float(np.sqrt(squares.sum())),
            "gradient times logits": float(products.sum()),
            "gradient dtype": str(gradient.dtype).removeprefix("torch."),
        }

    def _given_one_hot(self):
        if self._one_hot is None:
            self._one_hot = _filled_one_hot(self.labels, self.logits)
        return self._one_hot

    def _compared_one_hot(self, ids, logits):
        # What fuses best under torch.compile; a mask as an index would break the graph.
        return (ids[..., None] == self._classes).to(logits.dtype)


def _filled_one_hot(ids, logits):
    """Returns zeros with a one at each positive's class, filled in as torchvision's RetinaNet does."""
    one_hot = torch.zeros_like(logits, requires_grad=False)
    is_positive = ids >= 0
    one_hot[is_positive, ids[is_positive]] = 1.0
    return one_hot

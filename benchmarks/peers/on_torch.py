"""What contestants on PyTorch have in common."""

import torch


class OnTorch:
    """Starts PyTorch on a device and waits for it.

    Args:
        device: "cpu" or "gpu".
        threads: on the CPU.

    Raises:
        RuntimeError: there is no such device.
    """

    def __init__(self, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.is_on_gpu = device == "gpu"
        if self.is_on_gpu and not torch.cuda.is_available():
            raise RuntimeError("torch finds no GPU: install a build with CUDA, leave torch out, or pass --device cpu")
        self.device = torch.device("cuda" if self.is_on_gpu else "cpu")
        self.device_name = torch.cuda.get_device_name() if self.is_on_gpu else "cpu"

    def synchronize(self, result) -> None:
        """Waits until a result is there."""
        if self.is_on_gpu:
            torch.cuda.synchronize()

"""What contestants on PyTorch have in common."""

import ctypes
import gc

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

    def temporaries(self, run) -> int | None:
        """Returns the bytes that a call used at its peak beside its arguments and results, as measured.

        None: this system does not tell. On the CPU it is the growth of the process, right to a few MiB.
        """
        gc.collect()
        if self.is_on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            result = run()
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        else:
            try:
                # Free memory that the process has kept would be used again without growth.
                ctypes.CDLL(None).malloc_trim(0)
                with open("/proc/self/clear_refs", "w") as file:
                    file.write("5")  # resets the peak
                before = _resident_bytes("VmRSS")
                result = run()
                peak = _resident_bytes("VmHWM")
            except (OSError, AttributeError):
                return None
        return max(0, peak - before - _tensor_bytes(result))


def _tensor_bytes(result) -> int:
    """Returns the bytes of a tensor, or of those in a list, tuple or dict."""
    if isinstance(result, torch.Tensor):
        return result.nbytes
    return sum(map(_tensor_bytes, result.values() if isinstance(result, dict) else result))


def _resident_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")

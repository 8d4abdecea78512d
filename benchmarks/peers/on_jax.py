"""What contestants on JAX have in common."""

import os


class OnJax:
    """Starts JAX on a device, compiles for it and waits for it.

    Args:
        device: "cpu" or "gpu".

    Raises:
        RuntimeError: there is no such device.
    """

    def __init__(self, device: str) -> None:
        # Beside a GPU the CPU too: XLA counts FLOPs for it only.
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda,cpu"}[device]
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a program from the cache may not know its memory
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # other processes use the same GPU
        import jax

        try:
            self.device_name = jax.devices()[0].device_kind
        except (RuntimeError, AssertionError) as error:
            raise RuntimeError(
                f"JAX finds no {device.upper()}: for a GPU install focaljax[cuda], or pass --device cpu"
            ) from error
        self.jax = jax

    def compile(self, function, *arguments):
        """Returns a call of the compiled function with these arguments, which are on the device."""
        compiled = self.jax.jit(function).lower(*arguments).compile()

        def run():
            return compiled(*arguments)

        run.compiled = compiled
        return run

    def synchronize(self, result) -> None:
        """Waits until a result is there."""
        self.jax.block_until_ready(result)

    def temporaries(self, run) -> int | None:
        """Returns the bytes that a call needs beside its arguments and results, as the compiler planned them."""
        analysis = run.compiled.memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)

"""What the program sets of JAX before its first use: where compiled programs are kept, how a CPU is split."""

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import platform

import jax

# Of the folder: the programs that were not used for the longest time go first.
_MOST_BYTES = 4 * 2**30
# What compiles faster is not kept; JAX's default of a second leaves many programs of a start out.
_SHORTEST_COMPILATION = 0.2


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second run starts at once.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false
    keeps none. A folder that cannot be written to is a warning of JAX's, not an error; a user without a home has none.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return
    try:
        folder = _cache_folder()
    except RuntimeError:  # as pathlib says that there is no home folder
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if importlib.util.find_spec("filelock"):  # without it JAX cannot remove the oldest programs
        jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_COMPILATION)


def split_cpu(devices: int, *batch_sizes: int) -> None:
    """Makes devices of a CPU's cores, over which batches are split, if JAX has not started yet.

    XLA splits some operations of one program badly over cores; two devices run two programs. Where batches cannot be
    split, where there are fewer cores, and where JAX_NUM_CPU_DEVICES or XLA_FLAGS set a number of devices, nothing is
    done. GPUs and TPUs do not mind.

    Args:
        devices: how many.
        batch_sizes: of all that will be split.
    """
    is_set = "device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.values["jax_num_cpu_devices"] > 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if is_set or not 1 < devices <= cores or any(size % devices for size in batch_sizes):
        return
    with contextlib.suppress(RuntimeError):  # JAX has started, with the devices that it has
        jax.config.update("jax_num_cpu_devices", devices)


def _cache_folder() -> pathlib.Path:
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    # A program for the CPU has the instructions of the CPU that compiled it; a home folder may be on several machines.
    instructions = platform.machine() + platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        instructions += next((line for line in file if line.startswith(("flags", "Features"))), "")
    return root / "focaljax" / f"programs-{hashlib.sha256(instructions.encode()).hexdigest()[:12]}"

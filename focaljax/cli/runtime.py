"""What a run needs of the machine: kept programs, a CPU's devices, the other processes, a workdir of its own."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO

import jax
from absl import flags
from ml_collections import ConfigDict

from focaljax.cli.console import say
from focaljax.cli.main import UsageError
from focaljax.training import mesh as meshes

# Of the folder: the programs that were not used for the longest time go first.
_MOST_BYTES = 4 * 2**30
# What compiles faster is not kept; JAX's default of a second leaves many programs of a start out.
_SHORTEST_COMPILATION = 0.2
# Of glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST = 2**31 - 1
# What file systems without locks answer.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def share_heap() -> None:
    """Lets all threads allocate from one heap, so that a long run does not grow.

    glibc gives a thread a heap of its own, up to eight for each core, and what short-lived threads leave there, those
    that save checkpoints and read images for evaluations, no other thread takes. The environment's MALLOC_ARENA_MAX
    comes first; other systems' allocators are left alone.
    """
    _set_malloc("MALLOC_ARENA_MAX", _ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Keeps what is freed for what is allocated next, which makes steps on a CPU faster.

    XLA allocates what a program needs on a CPU anew for every step. glibc gives blocks of such a size back to the
    kernel as soon as they are free, and the kernel clears every page of the next one. The process stays as large as it
    was at its largest. The environment's MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ come first; other systems'
    allocators are left alone.
    """
    _set_malloc("MALLOC_TRIM_THRESHOLD_", _TRIM_THRESHOLD, _MOST)
    _set_malloc("MALLOC_MMAP_THRESHOLD_", _MMAP_THRESHOLD, _MOST)


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
    if _has("filelock"):  # without it JAX cannot remove the oldest programs
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


def define_process_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags that `join_processes` takes."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0", flag_values=flag_values)
    flags.DEFINE_integer("processes", None, "how many", lower_bound=1, flag_values=flag_values)
    flags.DEFINE_integer("process", None, "number of this one", lower_bound=0, flag_values=flag_values)


def join_processes(coordinator: str, count: int | None, index: int | None, *, notes_sigterm: bool = True) -> None:
    """Makes this process one of several that run one program, if it is; of those, only the first keeps speaking.

    On Cloud TPU pods, under Slurm and Open MPI 4 and, with the package kubernetes, in the pods of an indexed Kubernetes
    job the others are found by themselves, where there is more than one. Called before JAX's first use.

    Args:
        coordinator: 'HOST:PORT' of the first process, which must be free there; '': see above.
        count: how many processes there are.
        index: number of this one, 0 for the first.
        notes_sigterm: of several processes, SIGTERM does not end this one but is told to all, for training to save at
            the same step.

    Raises:
        UsageError: the arguments do not go together, or the others could not be reached.
    """
    if coordinator and (count is None or index is None or index >= count):
        raise UsageError("--coordinator=HOST:PORT goes with --processes=N and --process=I, where I is 0 to N-1")
    if not coordinator and (count is not None or index is not None):
        raise UsageError("--processes and --process go with --coordinator=HOST:PORT, the address of process 0")
    if not coordinator and not _is_one_of_several():
        return
    jax.config.update("jax_enable_preemption_service", notes_sigterm)
    try:
        jax.distributed.initialize(*((coordinator, count, index) if coordinator else ()))
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"could not join the other processes: {error}") from None
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def make_run_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Returns the mesh that the config asks for, of all devices or of these.

    Raises:
        UsageError: `mesh.model` does not fit the devices.
    """
    try:
        return meshes.make_mesh(devices, model=config.mesh.model)
    except ValueError as error:
        raise UsageError(f"config: {error}") from None


@contextlib.contextmanager
def only_run_in(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the workdir and keeps other runs out of it while the block lasts.

    The lock is the system's and goes with the process, however it ends; `WORKDIR/running.json` says whose it is. Where
    a file system knows no locks there is none, which is said.

    Raises:
        UsageError: another run is there, or the workdir cannot be written to.
    """
    lock, refusal = None, ""
    if meshes.is_primary():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            lock = (workdir / ".lock").open("w")
            _lock(lock)
            holder = {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            (workdir / "running.json").write_text(json.dumps(holder) + "\n")
        except BlockingIOError:
            refusal = f"{workdir} is in use by {holder_of(workdir)}: wait for it, stop it, or name another --workdir"
        except OSError as error:
            refusal = f"--workdir={workdir} cannot be written to: {error.strerror or error}; name another folder"
    try:
        if refusal := meshes.agree(refusal):
            raise UsageError(refusal)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the workdir is gone, which is said elsewhere
                if meshes.is_primary():
                    (workdir / "running.json").unlink(missing_ok=True)
    finally:
        if lock is not None:
            lock.close()


def _lock(file: IO[str]) -> None:
    """Takes the file's lock; raises BlockingIOError if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        say(f"note: the file system of {file.name} knows no locks: nothing keeps a second run out of its folder")


def is_in_use(workdir: pathlib.Path) -> bool:
    """Whether a process holds a workdir, see `only_run_in`; without locks, whether one began there and did not end."""
    try:
        with (workdir / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno in _NO_LOCKS and (workdir / "running.json").exists()
    return False


def holder_of(workdir: pathlib.Path) -> str:
    """Returns in words whose run a workdir is in use by, as `only_run_in` notes it."""
    try:
        holder = json.loads((workdir / "running.json").read_text())
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"


def _is_one_of_several() -> bool:
    """Whether a launcher that JAX knows has started several processes; of one alone, nothing needs to be found."""
    environment = os.environ
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # of what srun starts, not of what it could
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return (
        any(environment.get(size, "1") not in ("", "1") for size in sizes)
        or len(hosts) > 1
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or ({"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys() and _has("kubernetes"))
        or _is_cloud_tpu()
    )


def _is_cloud_tpu() -> bool:
    """Whether this is a virtual machine with TPUs, of which there may be several to a slice."""
    return _has("libtpu") and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))


def _set_malloc(variable: str, parameter: int, value: int) -> None:
    """Sets a parameter of glibc's allocator, unless the environment's variable does."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and variable not in os.environ:
        mallopt(parameter, value)


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _cache_folder() -> pathlib.Path:
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    # A program for the CPU has the instructions of the CPU that compiled it; a home folder may be on several machines.
    instructions = platform.machine() + platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        instructions += next((line for line in file if line.startswith(("flags", "Features"))), "")
    return root / "focaljax" / f"programs-{hashlib.sha256(instructions.encode()).hexdigest()[:12]}"

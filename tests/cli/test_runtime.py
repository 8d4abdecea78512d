"""The compile cache that the program switches on, the heap of its threads, and the processes that it joins."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from focaljax.cli import runtime
from focaljax.cli.main import UsageError

JAX_VARIABLES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)

SCRIPT = """
import jax
from focaljax.cli.runtime import keep_compiled_programs
from focaljax.training.programs import ProgramPerShape

keep_compiled_programs()
print(jax.config.values["jax_compilation_cache_dir"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
add = jax.jit(lambda state, batch: state + batch["image"].sum())
step = ProgramPerShape(add, "sum", lambda one: print(one.is_from_cache))
step(1.0, {"image": jax.numpy.ones((2, 3, 3, 3))})
"""

HEAPS = """
import ctypes, sys, tempfile, threading

from focaljax.cli.runtime import share_heap

share_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
all_at_once = threading.Barrier(4)
def allocate():
    all_at_once.wait()
    libc.malloc(1000)
    all_at_once.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
path = tempfile.mkdtemp() + "/heaps"
file = ctypes.c_void_p(libc.fopen(path.encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(open(path).read().count("<heap nr"))
"""

FAULTS = """
import ctypes, resource

from focaljax.cli.runtime import keep_freed_memory

keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 50_000_000
def touch():
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    ctypes.memset(block, 1, size)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(home, **variables):
    env = {name: value for name, value in os.environ.items() if name not in JAX_VARIABLES}
    env |= {"XDG_CACHE_HOME": str(home), **variables}
    completed = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.splitlines()


def test_second_process_takes_the_program_from_the_users_cache_folder(tmp_path):
    (folder, first), (again, second) = run(tmp_path), run(tmp_path)
    assert folder.startswith(str(tmp_path / "focaljax" / "programs-"))
    assert folder == again
    assert (first, second) == ("False", "True")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"JAX_COMPILATION_CACHE_DIR": "{other}"}, "{other}"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
    ],
)
def test_settings_of_jax_come_first(tmp_path, variables, expected):
    other = str(tmp_path / "other")
    variables = {name: value.format(other=other) for name, value in variables.items()}
    folder, _ = run(tmp_path / "home", **variables)
    assert folder == expected.format(other=other)
    assert not (tmp_path / "home").exists()


def test_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file")[1] == "False"


def test_user_without_a_home_folder_has_no_cache_and_no_error(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    updates = []
    for name in ("XDG_CACHE_HOME", *JAX_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime.pathlib.Path, "home", no_home)
    monkeypatch.setattr(runtime, "jax", FakeJax(updates))
    runtime.keep_compiled_programs()
    assert updates == []


class FakeJax:
    """JAX's settings as they are before anything is set."""

    def __init__(self, updates):
        self.config = self
        self.values = {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": True}
        self.update = lambda name, value: updates.append(name)


def devices_of(devices, *batch_sizes, **variables):
    script = f"""
import jax
from focaljax.cli.runtime import split_cpu

split_cpu({devices}, *{batch_sizes})
print(jax.device_count())
"""
    env = os.environ | {"XLA_FLAGS": "", **variables}
    completed = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return int(completed.stdout)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this machine has one core")
def test_cores_of_a_cpu_are_as_many_devices_as_asked_if_batches_can_be_split():
    assert devices_of(2, 8, 16) == 2
    assert devices_of(2, 8, 3) == 1
    assert devices_of(1, 8, 16) == 1
    assert devices_of(10**6, 10**6) == 1  # no machine has as many cores


@pytest.mark.parametrize(
    "variables",
    [{"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, {"JAX_NUM_CPU_DEVICES": "3"}],
)
def test_number_of_devices_that_is_set_stays(variables):
    assert devices_of(2, 8, 8, **variables) == 3


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, False),  # an allocation, in which nothing was started by srun
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a pod of its own
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_processes_that_a_launcher_started_are_joined(monkeypatch, environment, joins):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime, "_has", lambda package: package == "kubernetes")
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    runtime.join_processes("", None, None)
    assert calls == ([()] if joins else [])
    runtime.join_processes("host:1234", 2, 0)
    assert calls[-1] == ("host:1234", 2, 0)


def test_processes_that_cannot_be_joined_are_one_clear_line(monkeypatch):
    def fail(*_):
        raise RuntimeError("deadline exceeded")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UsageError, match="could not join the other processes: deadline exceeded"):
        runtime.join_processes("host:1234", 2, 1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's")
def test_threads_allocate_from_one_heap_unless_the_environment_says_otherwise():
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}

    def heaps(**variables):
        return int(
            subprocess.run(
                [sys.executable, "-c", HEAPS], env=environment | variables, check=True, capture_output=True
            ).stdout
        )

    assert heaps() == 1 < heaps(MALLOC_ARENA_MAX="8")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
@pytest.mark.parametrize("variable", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_freed_memory_is_not_cleared_again_unless_the_environment_says_otherwise(variable):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def faults(**variables):
        return int(
            subprocess.run(
                [sys.executable, "-c", FAULTS], env=environment | variables, check=True, capture_output=True
            ).stdout
        )

    # 250 MB, in pages of 2 MB where the kernel gives such.
    assert faults() < 20 < 100 < faults(**{variable: "131072"})

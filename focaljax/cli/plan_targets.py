"""What `focaljax plan` compiles for: the devices that are here, or others that need not be."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from focaljax.cli.console import say
from focaljax.cli.main import UsageError, nearest
from focaljax.cli.runtime import make_run_mesh, split_cpu
from focaljax.training.plan import hbm_for_programs
from focaljax.training.topologies import KINDS, Topology, TopologyError, gpu_devices, parse_topology, tpu_devices

# Of a GPU's memory, what JAX takes for programs unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_SHARE_OF_GPU = 0.75
_NO_GPU_COMPILER = (
    "note: the GPU compiler comes with focaljax[cuda], which is not installed: the step is split for devices of the "
    "CPU instead, which tells collectives and arguments, not temporaries"
)
# Kernels are chosen by trial, for which there is no GPU. All else is as where there is one, so that a program at which
# the compiler aborts does it here too.
_UNTUNED = {"xla_gpu_autotune_level": 0}
_NOT_TUNED = "note: for H100s that are not here: without the scratch space that cuDNN takes for convolutions"


@dataclasses.dataclass(frozen=True)
class Target:
    """What the step is compiled for.

    Attributes:
        mesh: of the devices.
        topology: None for the devices that are here.
        is_split_only: the devices stand in for others, whose compiler is not here.
        hbm: bytes that programs can have on each device; None if that is not known.
        options: of the compiler.
    """

    mesh: jax.sharding.Mesh
    topology: Topology | None
    is_split_only: bool = False
    hbm: int | None = None
    options: Mapping[str, Any] | None = None


def topology_of(name: str) -> Topology | None:
    """Returns the topology of this name, None for the devices that are here.

    Raises:
        UsageError: there is none of this name.
    """
    if not name:
        return None
    try:
        return parse_topology(name)
    except TopologyError as error:
        kind = name.partition(":")[0].lower()
        hint = nearest(kind, KINDS) if kind not in KINDS else ""
        raise UsageError(f"--topology: {error}{hint}") from None


def target_of(topology: Topology | None, config: ConfigDict) -> Target:
    """Returns the devices to compile for.

    Raises:
        UsageError: the compiler for them is not installed or does not know them, or JAX has fewer CPU devices.
    """
    if topology is None:
        split_cpu(config.cpu_devices, config.optim.batch_size // max(1, config.optim.accumulate))
        mesh = make_run_mesh(config)
        return Target(mesh, None, hbm=_memory_limit(mesh.devices.flat[0]))
    try:
        if topology.kind == "gpu":
            return _gpu_target(topology, config)
        if topology.kind == "cpu":
            return Target(_cpu_mesh(topology, config), topology)
        mesh = make_run_mesh(config, tpu_devices(topology))
    except TopologyError as error:
        raise UsageError(f"--topology: {error}") from None
    _keep_no_programs()
    return Target(mesh, topology, hbm=hbm_for_programs(mesh))


def _gpu_target(topology: Topology, config: ConfigDict) -> Target:
    _make_cpu_devices(topology.devices)
    gpus = gpu_devices(topology)
    if gpus is None:
        say(_NO_GPU_COMPILER)
        # Only the split matters, hardly anything else is done.
        options = {"xla_backend_optimization_level": 0}
        return Target(_cpu_mesh(topology, config), topology, is_split_only=True, options=options)
    mesh = make_run_mesh(config, gpus)
    if gpus[0] in jax.devices():
        return Target(mesh, topology, hbm=_memory_limit(gpus[0]))
    say(_NOT_TUNED)
    _keep_no_programs()
    assert topology.chip is not None
    hbm = int(_SHARE_OF_GPU * topology.chip.hbm_bytes)
    return Target(mesh, topology, hbm=hbm, options=_UNTUNED)


def _cpu_mesh(topology: Topology, config: ConfigDict) -> jax.sharding.Mesh:
    _make_cpu_devices(topology.devices)
    devices = jax.devices("cpu")
    if len(devices) < topology.devices:
        raise UsageError(
            f"--topology={topology.name}: JAX has {len(devices)} CPU devices here, as XLA_FLAGS or "
            "JAX_NUM_CPU_DEVICES say: unset them"
        )
    return make_run_mesh(config, devices[: topology.devices])


def _keep_no_programs() -> None:
    """JAX would write programs for devices that are not here to its compile cache, and cannot read them."""
    jax.config.update("jax_enable_compilation_cache", False)


def _memory_limit(device: jax.Device) -> int | None:
    """Returns the bytes that programs can have on a device that is here; None of the CPU, which does not say."""
    return (device.memory_stats() or {}).get("bytes_limit")


def _make_cpu_devices(count: int) -> None:
    """Makes so many devices of the CPU, if JAX has not started and nothing else says how many."""
    if "device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has started, with the devices that it has
            jax.config.update("jax_num_cpu_devices", count)

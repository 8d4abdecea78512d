"""Devices that are not there: topologies by name, what is published of the chips, devices to compile for."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax

EXAMPLES = "v5e:4x4, v5p:2x2x4, v6e:8x8, gpu:8, cpu:8"

_GIB = 2**30
_DOCS = "https://cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is published of a TPU chip or a GPU, of which JAX makes one device.

    Attributes:
        name: its maker's.
        sides: of its topologies: 2 for a torus of two dimensions, 1 where devices are only counted.
        hbm_bytes: memory, as published, rounded; programs get less, see `hbm_for_programs`.
        flops: a second, the peak for products of bfloat16.
        float32_flops: likewise of float32, as JAX multiplies them by default: on a TPU as bfloat16, on a GPU as TF32.
        hbm_bandwidth: bytes a second.
        link_bandwidth: bytes a second that a chip can send to others over all of its links, half of the published
            number for both directions. A TPU slice without wrap-around links, such as 2x2, does not use all of them.
        source: of the numbers.
    """

    name: str
    sides: int
    hbm_bytes: int
    flops: float
    float32_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    source: str


# Peak, memory and its bandwidth from the tables 'key specifications' of Google's pages; 1600, 4800 and 3200 Gbit/s of
# links. The pages give v5e's and v6e's memory bandwidth as 819 and 1640 or, rounded, as 800 and 1600 GB/s.
CHIPS = {
    "v5e": Chip("TPU v5e", 2, 16 * _GIB, 197e12, 197e12, 819e9, 200e9, _DOCS + "v5e"),
    "v5p": Chip("TPU v5p", 3, 95 * _GIB, 459e12, 459e12, 2765e9, 600e9, _DOCS + "v5p"),
    "v6e": Chip("TPU v6e", 2, 32 * _GIB, 918e12, 918e12, 1640e9, 400e9, _DOCS + "v6e"),
    # Its data sheet: dense bfloat16 and TF32, NVLink 900 GB/s. Memory is what the driver shows.
    "gpu": Chip("NVIDIA H100 SXM", 1, 84_942_979_072, 989.4e12, 494.7e12, 3350e9, 450e9, "https://www.nvidia.com/h100"),
}
KINDS = (*CHIPS, "cpu")

_GPUS_OF_A_HOST = 8
# Between hosts, of a DGX H100: a ConnectX-7 of 400 Gbit/s for each GPU, by its data sheet. As many rings go through a
# host as it has of them, so that what crosses between hosts is shared by all.
_BETWEEN_HOSTS = _GPUS_OF_A_HOST * 50e9

# What libtpu asks of a machine that has TPUs, answered for one that has none; whatever the topology, it is not used for
# more than being there. Several processes may load it at once, as none of them uses a device.
_COMPILER_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


# What XLA's GPU compiler is told of the H100 instead of asking one: in the form of its GpuTargetConfigProto.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535  block_dim_limit_z: 65535  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  clock_rate_ghz: 1.98  device_memory_size: 84942979072  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices by name.

    Attributes:
        name: such as 'v5e:4x4'.
        kind: before the colon, one of `KINDS`.
        shape: of the torus; `(n,)` of GPUs and CPU devices.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def chip(self) -> Chip | None:
        """What is published of the chip; None of a CPU."""
        chip = CHIPS.get(self.kind)
        if chip is not None and self.kind == "gpu" and self.devices > _GPUS_OF_A_HOST:
            return dataclasses.replace(chip, link_bandwidth=_BETWEEN_HOSTS)
        return chip


class TopologyError(Exception):
    """There is no such topology, or what compiles for it is not installed."""


def parse_topology(name: str) -> Topology:
    """Returns the topology of this name.

    Raises:
        TopologyError: the name is not KIND:SHAPE with a known kind and as many sides as its torus has.

    Example:
        >>> parse_topology("v5p:2x2x4").devices
        16
    """
    kind, _, shape = name.strip().lower().partition(":")
    if kind not in KINDS:
        raise TopologyError(f"no topology {name!r}: KIND:SHAPE, such as {EXAMPLES}; the kinds are {', '.join(KINDS)}")
    wanted = CHIPS[kind].sides if kind in CHIPS else 1
    sides = tuple(int(side) for side in shape.split("x")) if re.fullmatch(r"\d+(x\d+)*", shape) else ()
    if len(sides) != wanted or not all(sides):
        form = "x".join("ABC"[:wanted]) if wanted > 1 else "COUNT"
        raise TopologyError(f"no topology {name!r}: of {kind} it is {kind}:{form}, such as {_example(kind)}")
    if kind == "gpu" and sides[0] > _GPUS_OF_A_HOST and sides[0] % _GPUS_OF_A_HOST:
        raise TopologyError(
            f"no topology {name!r}: hosts have {_GPUS_OF_A_HOST} GPUs, so that more than one have a multiple of that"
        )
    return Topology(f"{kind}:{'x'.join(map(str, sides))}", kind, sides)


def tpu_devices(topology: Topology) -> Sequence[jax.Device]:
    """Returns devices of TPUs that need not be there: programs can be compiled for them, not run.

    JAX is kept to the CPU in this process, so that a TPU which is there remains free.

    Raises:
        TopologyError: libtpu, which has the compiler, is not installed, or it does not know the topology.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise TopologyError(
            f"{topology.name}: the TPU compiler is in the package libtpu, which is not installed: "
            "pip install 'focaljax[tpu]'"
        )
    with contextlib.suppress(RuntimeError):  # JAX has started, and if on a TPU, then by the user's own will
        jax.config.update("jax_platforms", "cpu")
    for name, value in _COMPILER_VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise TopologyError(
            f"the TPU compiler has no topology {topology.name!r} ({reason}): try {_example(topology.kind)}"
        ) from None


def gpu_devices(topology: Topology) -> Sequence[jax.Device] | None:
    """Returns GPUs, which need not be there: H100s that programs can be compiled for, not run.

    Returns:
        Of those that are here, if there are enough; None if the plugin with the GPU compiler is not installed.
    """
    from jax.experimental import topologies

    plugins = [name for name in ("jax_cuda12_plugin", "jax_cuda13_plugin") if importlib.util.find_spec(name)]
    if not plugins:
        return None
    # The plugin would not be loaded where CUDA is not installed, which compiling does not need.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    with contextlib.suppress(RuntimeError):
        if len(gpus := jax.devices("gpu")) >= topology.devices:
            return gpus[: topology.devices]
    hosts = max(1, topology.devices // _GPUS_OF_A_HOST)
    shape = f"1x{hosts}x{topology.devices // hosts}"
    try:
        return list(topologies.get_topology_desc(platform="cuda", topology=shape, target_config=_H100).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise TopologyError(f"the GPU compiler has no {topology.name} ({str(error).splitlines()[0]})") from None


def _example(kind: str) -> str:
    return next(example for example in EXAMPLES.split(", ") if example.startswith(kind))

"""Devices as a mesh with a `data` axis: state is replicated, batches are split along it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of all devices (or of the given ones) along the axis `data`."""
    devices = jax.devices() if devices is None else devices
    # Auto axes: the compiler derives the collectives. The default, Explicit, would want shardings in every operation.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of which every device has a copy."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError if a global batch of `batch_size` images cannot be split evenly over the mesh."""
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(f"batch size {batch_size} must be a positive multiple of the number of devices, {mesh.size}")


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the batch on the devices, split along its first axis.

    Args:
        batch: this host's rows of the global batch, by name.
        mesh: see `make_mesh`.
    """
    sharding = split_batch(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def put_batches(
    batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, keys: Sequence[str]
) -> Iterator[tuple[Mapping[str, Any], dict[str, jax.Array]]]:
    """Yields each batch on the host and, with the entries `keys`, on the devices; the transfer runs one batch ahead."""
    ahead = None
    for batch in batches:
        current = (batch, put_batch({name: batch[name] for name in keys}, mesh))
        if ahead is not None:
            yield ahead
        ahead = current
    if ahead is not None:
        yield ahead

"""Devices as a mesh with a `data` axis: state is replicated, batches are split along it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
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


def check_batch_size(batch_size: int, mesh: Mesh, *, parts: int = 1) -> None:
    """Raises ValueError if a global batch of `batch_size` images cannot be split evenly over the mesh.

    Args:
        batch_size: number of images.
        mesh: see `make_mesh`.
        parts: of the batch, each of which is split over the mesh.
    """
    if batch_size < 1 or batch_size % (mesh.size * parts):
        of_parts = f" times that of the batch's parts, {parts} (optim.accumulate)" if parts > 1 else ""
        raise ValueError(
            f"batch size {batch_size} must be a positive multiple of the number of devices, {mesh.size}{of_parts}"
        )


def compiled_for_rows(step: Callable[[Any, Any], Any], mesh: Mesh) -> jax.stages.Wrapped:
    """Returns a step compiled so that each device works on its own rows of the batch, without a word to the others.

    For steps that treat every row alone. Left to the compiler, a loop over rows that ends when all of them have ended,
    such as that of non-maximum suppression, would make all devices wait for each other at every turn.

    Args:
        step: a pure function of (what every device has, a batch), to a pytree whose arrays have a row for each of the
            batch's.
        mesh: see `make_mesh`.
    """
    rows = PartitionSpec(DATA_AXIS)
    per_device = jax.shard_map(step, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False)
    return jax.jit(per_device, in_shardings=(replicated(mesh), split_batch(mesh)), out_shardings=split_batch(mesh))


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Returns the batch on the devices, split along its first axis.

    Args:
        batch: this host's rows of the global batch, by name; a value may also be a tuple or mapping of arrays.
        mesh: see `make_mesh`.
    """
    sharding = split_batch(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), dict(batch))


def put_batches(
    batches: Iterable[Mapping[str, Any]], mesh: Mesh, keys: Sequence[str]
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Yields each batch on the host and, with the entries `keys`, on the devices; the transfer runs one batch ahead."""
    ahead = None
    for batch in batches:
        current = (batch, put_batch({name: batch[name] for name in keys}, mesh))
        if ahead is not None:
            yield ahead
        ahead = current
    if ahead is not None:
        yield ahead

"""Devices as a mesh: batches are split over its axes `data` and `model`, large parts of the state over `model`."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS, MODEL_AXIS = "data", "model"
_ROWS = PartitionSpec((DATA_AXIS, MODEL_AXIS))


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """Returns a mesh of devices with the axes `data` and `model`.

    Every device works on images of its own, whatever the axes; `model` devices share one copy of what
    `split_over_model` splits.

    Args:
        devices: None for all, of all processes.
        model: length of the axis `model`.

    Raises:
        ValueError: `model` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if model < 1 or len(devices) % model:
        raise ValueError(f"mesh.model must divide the number of devices, {len(devices)}, got {model}")
    # Auto axes: the compiler derives the collectives. The default, Explicit, would want shardings in every operation.
    shape, types = (len(devices) // model, model), (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, (DATA_AXIS, MODEL_AXIS), axis_types=types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of which every device has a copy."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is split over the devices."""
    return NamedSharding(mesh, _ROWS)


def split_over_model(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is split over the axis `model` along its longest axis that divides.

    An array without such an axis is copied to every device.
    """
    parts = mesh.shape[MODEL_AXIS]
    divisible = [axis for axis, size in enumerate(shape) if size >= parts and size % parts == 0]
    if parts == 1 or not divisible:
        return replicated(mesh)
    longest = max(divisible, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[MODEL_AXIS if axis == longest else None for axis in range(len(shape))]))


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
    per_device = jax.shard_map(step, mesh=mesh, in_specs=(PartitionSpec(), _ROWS), out_specs=_ROWS, check_vma=False)
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


def copy_to_all(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays, wherever they lie on the mesh's devices, copied to every device."""
    whole = replicated(mesh)
    if all(isinstance(leaf, jax.Array) and leaf.sharding == whole for leaf in jax.tree.leaves(tree)):
        return tree
    return _copier(mesh)(tree)


@functools.cache
def _copier(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda arrays: arrays, out_shardings=replicated(mesh))


def local_rows(array: jax.Array) -> np.ndarray:
    """Returns this process's rows of an array that `split_batch` splits, in order, on the host."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def gather_rows(rows: Any) -> Any:
    """Returns the rows of all processes, those of the first process first; every process has as many.

    Args:
        rows: a pytree of this process's arrays on the host, of any dtype, none of them empty.
    """
    if jax.process_count() == 1:
        return rows
    return jax.tree.map(_gather, rows)


def _gather(rows: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(rows)
    # JAX cuts numbers of 64 bits to 32, so they travel as bytes.
    as_bytes = rows.reshape(len(rows), -1).view(np.uint8)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(as_bytes, tiled=True))
    return gathered.view(rows.dtype).reshape(len(gathered), *rows.shape[1:])


def agree(text: str) -> str:
    """Returns the first process's text in all of them."""
    if jax.process_count() == 1:
        return text
    encoded = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(encoded))))
    padded = np.zeros(length, np.uint8)
    if is_primary():
        padded[:] = encoded
    return bytes(multihost_utils.broadcast_one_to_all(padded)).decode()


def is_primary() -> bool:
    """Returns whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0

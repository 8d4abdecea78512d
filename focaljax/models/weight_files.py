"""Files of weights, read and written as state_dicts: a mapping from name to numpy array."""

import contextlib
import importlib.util
import os
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from focaljax.models.weight_names import WeightsError
from focaljax.models.weight_pickles import PickledArray, check_torch_file, read_pickle

READABLE = (".safetensors", ".npz", ".pth", ".pt", ".pkl")
WRITABLE = (".safetensors", ".npz", ".pth", ".pt")

# An archive that would unpack to more than both, in bytes and as a multiple of its own size, is a bomb.
_ALWAYS_UNPACKED = 2**30
_MOST_UNPACKED = 20
_LONGEST_REASON = 300
# Before it, `weights_only` ran code all the same (CVE-2025-32434).
_OLDEST_TORCH = (2, 6)

_WRAPPERS = ("model", "state_dict", "model_state_dict")


def read_weights(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the state_dict in a file, dtypes unchanged.

    No code in a file is ever run: arrays and plain containers are read, anything else is an error; nor does a small
    file fill the memory, whatever sizes it declares. A training
    checkpoint that holds its weights under 'model', 'state_dict' or 'model_state_dict' gives those, and the prefix
    'module.' of torch's parallel wrappers is taken off.

    Args:
        path: by its ending `.safetensors` or `.npz`; `.pth` or `.pt` (needs torch 2.6 or later); `.pkl` as detectron2
            writes it.

    Raises:
        WeightsError: one line: the file is missing, damaged, of another kind, or holds something that is no array;
            or torch is missing, with the command that converts the file elsewhere.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in READABLE:
        raise WeightsError(f"{path}: the name of a file of weights must end in one of {', '.join(READABLE)}")
    if not path.is_file():
        raise WeightsError(f"the file of weights {path} does not exist")
    with _damage(path):
        return _state_dict(path, _READERS[suffix](path))


def write_weights(path: str | pathlib.Path, state_dict: Mapping[str, Any], *, overwrite: bool = False) -> int:
    """Writes a state_dict to a file, all of it or nothing; returns the file's size in bytes.

    Args:
        path: ends in `.safetensors`, `.npz`, `.pth` or `.pt` (the latter need torch); its folder exists.
        state_dict: name -> array.
        overwrite: replace a file that is there.

    Raises:
        WeightsError: one line: the file exists, the name has another ending, a package is missing, or the format
            cannot hold an array.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise WeightsError(f"{path}: weights are written to files that end in one of {', '.join(WRITABLE)}")
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: the folder {path.parent} does not exist")
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} exists already")
    # The formats store memory as it lies: a transposed view would be read back scrambled.
    arrays = {name: np.asarray(array).copy(order="C") for name, array in state_dict.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            _WRITERS[suffix](path, arrays, file)
        size = temporary.stat().st_size
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return size


def _state_dict(path: pathlib.Path, content: Any) -> dict[str, np.ndarray]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a mapping from name to array")
    arrays = {}
    size = 0
    for name, value in content.items():
        size += _size(value)
        _check_size(path, size)
        array = _as_array(value)
        if array is None or not isinstance(name, str):
            # Only plain names are shown: the text of nested tuples can be without end.
            shown = f"{name!r:.100}" if isinstance(name, str | int) else f"named by a {type(name).__name__}"
            raise WeightsError(
                f"{path}: the entry {shown} is a {_kind(value)}, expected an array of numbers; "
                "save the state_dict alone"
            )
        arrays[name] = array
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def _size(value: Any) -> int:
    """Returns how many bytes `_as_array` would take, of which none is taken yet."""
    if isinstance(value, PickledArray):
        return value.size
    if hasattr(value, "detach"):
        return value.numel() * value.element_size()
    return int(getattr(value, "nbytes", 0))


def _check_size(path: pathlib.Path, unpacked: int) -> None:
    """Raises if weights would be far more than their file has: they are numbers that hardly compress."""
    packed = path.stat().st_size
    if unpacked > max(_ALWAYS_UNPACKED, _MOST_UNPACKED * packed):
        raise ValueError(f"its {packed} bytes would unpack to {unpacked}")


def _kind(value: Any) -> str:
    if not hasattr(value, "detach"):
        return type(value).__name__
    return f"tensor of {value.dtype}, {value.layout} on {value.device}"


def _as_array(value: Any) -> np.ndarray | None:
    """Returns a numpy array of numbers for an array, a number or a torch tensor; None for anything else."""
    if isinstance(value, PickledArray):
        return value.array()
    if hasattr(value, "detach"):
        return _tensor_as_array(value.detach())
    if not isinstance(value, np.ndarray | np.generic | int | float):
        return None
    array = np.asarray(value)
    is_number = array.dtype.kind in "biuf" or jnp.issubdtype(array.dtype, np.floating)
    return array if is_number else None


def _tensor_as_array(tensor: Any) -> np.ndarray | None:
    """Returns the array of a dense torch tensor in memory; None for what numpy has no array of."""
    try:
        if str(tensor.dtype) == "torch.bfloat16":  # numpy has no such type of its own
            import torch

            return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
        array = tensor.contiguous().numpy()
    except (TypeError, RuntimeError):  # of eight bits, sparse, quantized, or without content
        return None
    return array if array.dtype.kind in "biuf" else None


def _read_safetensors(path: pathlib.Path) -> Any:
    return _import_safetensors(path).numpy.load_file(path)


def _write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray], file: BinaryIO) -> None:
    file.write(_import_safetensors(path).numpy.save(arrays))


def _import_safetensors(path: pathlib.Path) -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ModuleNotFoundError:
        raise WeightsError(f"{path} needs the package safetensors: pip install safetensors") from None
    return safetensors


def _read_npz(path: pathlib.Path) -> Any:
    _check_archive(path)
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        raise ValueError("it is an .npy file, one array without a name")
    with content:
        return {name: content[name] for name in content.files}


def _check_archive(path: pathlib.Path) -> None:
    """Raises if a file is an archive that would unpack to far more than it has."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(member.file_size for member in archive.infolist()))


def _write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray], file: BinaryIO) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "V":  # such as bfloat16: .npz would forget what the bytes are
            raise WeightsError(f"{path}: .npz cannot hold {name} of dtype {array.dtype}; write .safetensors instead")
    # Through the zip module: np.savez takes the names as keyword arguments, of which `file` is one of its own.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read_torch(path: pathlib.Path) -> Any:
    if importlib.util.find_spec("torch") is None:
        other = path.with_suffix(".safetensors").name
        program = (
            "import torch, safetensors.torch as s; "
            f"s.save_file(torch.load('{path.name}', map_location='cpu', weights_only=True), '{other}')"
        )
        raise WeightsError(
            f"{path} can only be read by torch, which is not installed here. On a machine that has torch and "
            f'safetensors, run: python -c "{program}" and use {other}'
        )
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < _OLDEST_TORCH:
        raise WeightsError(
            f"{path} can only be read by torch 2.6 or later, which runs no code that the file holds; here is "
            f"{torch.__version__}: pip install --upgrade torch"
        )
    _check_archive(path)
    check_torch_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # whose message advises to run whatever the file holds
        raise ValueError(
            "it is no file of torch, or it holds more than tensors and plain containers; "
            "where you trust it, save the weights alone: torch.save(model.state_dict(), ...)"
        ) from None


def _write_torch(path: pathlib.Path, arrays: dict[str, np.ndarray], file: BinaryIO) -> None:
    if importlib.util.find_spec("torch") is None:
        raise WeightsError(f"{path} can only be written by torch, which is not installed here; write .safetensors")
    import torch

    tensors = OrderedDict()
    for name, array in arrays.items():
        try:
            if array.dtype == jnp.bfloat16:  # torch does not know numpy's name for it
                tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            else:
                tensors[name] = torch.from_numpy(array)
        except TypeError:
            raise WeightsError(
                f"{path}: {path.suffix} cannot hold {name} of dtype {array.dtype}; write .safetensors instead"
            ) from None
    torch.save(tensors, file)


def _read_pickle(path: pathlib.Path) -> Any:
    return read_pickle(path.read_bytes())


@contextlib.contextmanager
def _damage(path: pathlib.Path) -> Iterator[None]:
    """Turns a library's error about a file's content into one line.

    Any error: what zip, npy, pickle and torch raise about damaged bytes is no part of their promises, and hostile ones
    bring forth nearly all that Python has.
    """
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0].partition(". ")[0][:_LONGEST_REASON] if lines else type(error).__name__
        raise WeightsError(f"{path} cannot be read; it is damaged, incomplete or of another kind: {reason}") from None


_READERS: dict[str, Callable[[pathlib.Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".pkl": _read_pickle,
}
_WRITERS: dict[str, Callable[[pathlib.Path, dict[str, np.ndarray], BinaryIO], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".pth": _write_torch,
    ".pt": _write_torch,
}

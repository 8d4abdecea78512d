"""Pickles of arrays and tensors: read without running what they ask for, in time and memory as their size."""

import io
import pathlib
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

# Below it, no two integers have one hash.
_LARGEST_KEY = 2**31


def read_pickle(content: bytes) -> Any:
    """Returns the plain containers in a pickle, with each numpy array in them as a `PickledArray`.

    Nothing in it is run. Dictionaries have names or small integers as keys; sets and other objects are refused.

    Args:
        content: of any protocol; what Python 2 wrote too.

    Raises:
        Exception: of any kind; it is damaged, or holds something else.

    Example:
        >>> read_pickle(pickle.dumps({"w": np.arange(3)}))["w"].array()
        array([0, 1, 2])
    """
    # latin1: files of Python 2 keep the bytes of their arrays in strings.
    return _ArraysOnly(_WholeBytes(content), encoding="latin1").load()


def check_torch_file(path: pathlib.Path) -> None:
    """Raises if the pickles in a file of torch hold more than dense tensors and plain containers.

    torch's own unpickler runs none of the code that a file asks for, but hashes the keys that it has, and makes a
    `bytearray` of any length.

    Raises:
        Exception: of any kind; it is damaged, or holds something else.
    """
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\3\4"
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.lower().endswith(".pkl"):
                    _TensorsOnly(_WholeBytes(archive.read(member)), encoding="latin1").load()
        return
    # Before torch 1.6: a number that says so, a version, the machine, the weights, and the names of their contents.
    content = _WholeBytes(path.read_bytes())
    for _ in range(5):
        last = _TensorsOnly(content, encoding="latin1").load()
    _check_flat(last)


class _WholeBytes(io.BytesIO):
    """Bytes in memory, read as many as are asked for; a size that a file declares then takes no memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        if size is not None and len(content) < size:
            raise EOFError("it ends early")
        return content


class _PickledDtype:
    """In the place of `np.dtype` in a pickle: types of numbers alone."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[biuf]\d{1,2}", name):
            raise pickle.UnpicklingError(
                f"it holds an array of the type {_shown(name)}; only arrays of numbers are read"
            )
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it holds an array of an unknown order of bytes, {_shown(order)}")
        self.dtype = self.dtype.newbyteorder(order)


class PickledArray:
    """In the place of `np.ndarray` in a pickle.

    numpy's own `__setstate__` believes what the file says of a type's inner flags, with which bytes become pointers.
    Its parts stay as they are until the array is asked for: a thousand arrays of the same bytes are a small file.
    """

    def __init__(self, *_: object) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        self.parts = (content, dtype, shape, "F" if is_fortran else "C", None)

    @property
    def size(self) -> int:
        """How many bytes the array will take."""
        return len(self.parts[0]) if self.parts else 0

    def array(self) -> np.ndarray | None:
        """Returns the array, in memory of its own; None if the pickle gave it no content."""
        if not self.parts:
            return None
        content, dtype, shape, order, axes = self.parts
        content = content.encode("latin1") if isinstance(content, str) else content
        array = np.frombuffer(content, dtype.dtype)
        # numpy 2.3 and later: memory in another order of the axes is 'K', with that order.
        array = array.reshape(shape, order=order) if axes is None else array.reshape(shape).transpose(axes)
        return array.copy(order="K")  # the bytes of the pickle cannot be written to


class _PickledDict(dict):
    """In the place of `OrderedDict` in a pickle; attributes, such as torch's `_metadata`, are left out."""

    def __init__(self, *pairs: list[Any]) -> None:
        super().__init__()
        for own in pairs:
            for key, value in own:
                self[_key(key)] = value
            # The list is this one's own: given to a thousand, it would make a small file large.
            own.clear()

    def __setstate__(self, state: Any) -> None:
        pass


def _key(key: Any) -> str | int:
    """Returns a dictionary's key; nested tuples, whose hash recurses and can take for ever, are an error."""
    if type(key) is str or (type(key) is int and abs(key) <= _LARGEST_KEY):
        return key
    raise pickle.UnpicklingError(f"it names an entry by {_shown(key)}, expected text")


def _shown(value: Any) -> str:
    """Returns a value's text; of containers, whose text recurses as their hash does, the type."""
    return f"{value!r:.40}" if isinstance(value, str | int | float | bytes) else f"a {type(value).__name__}"


def _array(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> PickledArray:
    array = PickledArray()
    array.parts = (content, dtype, shape, order, axes)
    return array


def _scalar(dtype: Any, content: Any) -> PickledArray:
    return _array(content, dtype, (), "C")


def _latin1(text: str, encoding: str) -> str:
    """In the place of bytes that an old protocol keeps as text, as files of Python 2 do: `PickledArray` takes both."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {_shown(encoding)}, expected latin1")
    return text


def _empty_bytes() -> bytes:
    return b""


# What arrays and plain containers call when they are unpickled -> what is called here.
_PICKLE_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("collections", "OrderedDict"): _PickledDict,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _empty_bytes,  # the empty array of an old protocol
    # numpy's old and new module names
    **{(f"{core}.multiarray", "_reconstruct"): PickledArray for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.numeric", "_frombuffer"): _array for core in ("numpy.core", "numpy._core")},
}


class _Opcodes(dict):
    """What an unpickler does at each opcode; all others are refused."""

    def __missing__(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"it is no pickle, or one of more than arrays and plain containers ({code:#04x})")


# Of objects of classes, sets (whose members are hashed, see `_key`), and what lies outside the file.
_REFUSED_OPCODES = (
    pickle.INST + pickle.OBJ + pickle.NEWOBJ + pickle.NEWOBJ_EX + pickle.EXT1 + pickle.EXT2 + pickle.EXT4
    + pickle.EMPTY_SET + pickle.ADDITEMS + pickle.FROZENSET
    + pickle.PERSID + pickle.BINPERSID + pickle.NEXT_BUFFER + pickle.READONLY_BUFFER
)  # fmt: skip


class _ArraysOnly(pickle._Unpickler):
    """An unpickler of numpy arrays and plain containers: a pickle can otherwise run any code.

    Python's own, not the one in C, whose opcodes cannot be bounded. Its memo is a dictionary besides: the one in C is a
    list as long as the largest number in the file.
    """

    dispatch = _Opcodes(
        {code: load for code, load in pickle._Unpickler.dispatch.items() if code not in _REFUSED_OPCODES}
    )

    read: Callable[[int], bytes]
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only numpy arrays and plain containers are read"
            )
        return _PICKLE_GLOBALS[module, name]

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], PickledArray | _PickledDtype | _PickledDict):
            raise pickle.UnpicklingError(f"it sets attributes of a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))  # Python's own clears so much memory before it reads

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    dispatch[pickle.DICT[0]] = load_dict


class _TensorPart:
    """In the place of all that torch makes of a file: its arguments are looked at and forgotten."""

    def __init__(self, *arguments: Any) -> None:
        for argument in arguments:
            _check_flat(argument)


def _check_flat(value: Any) -> None:
    """Raises if tuples are nested where torch would hash them, or show them in an error."""
    if isinstance(value, tuple | list) and any(isinstance(item, tuple | list) for item in value):
        raise pickle.UnpicklingError("it has tuples in tuples where parts of a tensor are expected")


class _TensorsOnly(_ArraysOnly):
    """An unpickler of what torch writes of tensors and plain containers, which makes none of them."""

    dispatch = _Opcodes({**_ArraysOnly.dispatch, pickle.BINPERSID[0]: pickle._Unpickler.dispatch[pickle.BINPERSID[0]]})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _PickledDict
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        is_rebuilt = module == "torch._utils" and name.startswith("_rebuild_")
        if module in ("torch", "torch.storage") or is_rebuilt or (module, name) in _TORCH_GLOBALS:
            return _TensorPart
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}; only dense tensors and plain containers are read: where you trust it, save "
            "the weights alone with torch.save(model.state_dict(), ...)"
        )

    def persistent_load(self, pid: Any) -> _TensorPart:
        return _TensorPart(*pid)


# What else training checkpoints have, such as a schedule's milestones.
_TORCH_GLOBALS = (("collections", "Counter"), ("builtins", "set"), ("__builtin__", "set"))

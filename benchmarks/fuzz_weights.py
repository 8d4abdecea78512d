"""Mutated and hostile files of weights, read by `focaljax convert`."""

import collections
import functools
import importlib.util
import io
import json
import os
import pathlib
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from fuzz_mutations import NAMES, as_json, deep_recursion, hostile_value, mutated_bytes, mutated_document

CANARY = "made_by_hostile_code"


class Weights:
    """A file of weights of a small detector, converted."""

    def __init__(self, folder: pathlib.Path, suffix: str) -> None:
        import jax

        from focaljax.cli.main import UsageError
        from focaljax.models.pretrained import flatten_variables
        from focaljax.models.retinanet import RetinaNet

        self.suffix, self.folder = suffix, folder
        # `focaljax convert` turns a WeightsError into this.
        self.documented = (UsageError,)
        model = RetinaNet(
            num_classes=1, anchors_per_position=1, backbone="resnet_tiny", levels=(3, 4), fpn_channels=4, head_depth=1,
            head_channels=4,
        )  # fmt: skip
        shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
        self.arrays = flatten_variables(jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float16), shapes))
        self.base = self._packed(self.arrays)

    def mutate(self, rng: random.Random) -> bytes:
        """Returns the bytes of one file."""
        if rng.random() < 0.5:
            return mutated_bytes(rng, self.base)
        if self.suffix == ".safetensors" and rng.random() < 0.6:
            length = int.from_bytes(self.base[:8], "little")
            header = as_json(mutated_document(rng, json.loads(self.base[8 : 8 + length])))
            return len(header).to_bytes(8, "little") + header + self.base[8 + length :]
        if self.suffix == ".npz" and rng.random() < 0.5:
            return _hostile_npz(rng, self.arrays)
        if self.suffix in (".pkl", ".pth") and rng.random() < 0.6:
            hostile = _hostile_pickle(rng, self.folder / CANARY)
            return _with_pickle(self.base, hostile) if self.base[:2] == b"PK" and rng.random() < 0.5 else hostile
        arrays: dict[Any, Any] = dict(self.arrays)
        for _ in range(rng.choice((1, 1, 3))):
            name = rng.choice(list(arrays))
            change = rng.randrange(6)
            if change == 0:
                del arrays[name]
            elif change == 1:
                prefix = rng.choice(NAMES).encode("utf-8", "replace").decode().replace("\0", "?")
                arrays[prefix + name] = arrays[name]
            elif change == 2:
                arrays[name] = arrays[name].reshape(rng.choice(((-1,), (1, -1), (-1, 1, 1, 1, 1))))
            elif change == 3:
                arrays[name] = arrays[name].astype(rng.choice((np.int8, np.bool_, np.complex64, np.float64, np.uint64)))
            elif change == 4:
                arrays[name] = np.zeros(rng.choice(((), (0,), (0, 3, 7, 7), (1,), (2, 2, 2, 2))), np.float32)
            else:
                added = rng.choice(("fpn/p6/bias", "backbone/layer4_99/conv1/kernel", "x/" * 500, "fpn"))
                arrays[f"params/{added}"] = arrays[name]
        return self._packed(arrays)

    def read(self, path: pathlib.Path) -> None:
        """Converts one file."""
        from focaljax.cli.convert import main

        main([str(path), str(self.folder / "converted.npz"), "--force", "--to=focaljax"])

    def _packed(self, arrays: dict[str, Any]) -> bytes:
        if self.suffix == ".safetensors":
            import safetensors.numpy

            return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items() if v.dtype != "c8"})
        if self.suffix == ".npz":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, array)
            return buffer.getvalue()
        if self.suffix == ".pth" and importlib.util.find_spec("torch"):
            import torch

            buffer = io.BytesIO()
            torch.save({"model": {name: torch.from_numpy(array) for name, array in arrays.items()}}, buffer)
            return buffer.getvalue()
        return pickle.dumps({"model": arrays}, protocol=2)


def _hostile_npz(rng: random.Random, arrays: dict[str, np.ndarray]) -> bytes:
    """Returns an archive with a member whose header promises what it does not hold, or that unpacks to gigabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, array in list(arrays.items())[: rng.choice((0, 3))]:
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
        shape = rng.choice(
            ("(1,)", "(2**40,)", f"({2**40},)", f"({2**31}, {2**31})", "(-1,)", "(1.5,)", "('a',)", f"({10**30},)", "5",
             "(" * 300, "[1]", "{}", "(0," * 90, "(0, 9223372036854775807)", "(True,)")
        )  # fmt: skip
        kind = rng.choice(("'<f4'", "'|O'", "'<U9999999'", "[('a', '<f4')]", "'V8'", "'<f999'", "None", "'M8[s]'", "5"))
        order = rng.choice(("False", "True", "5"))
        header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
        version = rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
        length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
        name = rng.choice(NAMES).encode("utf-8", "replace").decode().replace("\0", "") + ".npy"
        archive.writestr(name, b"\x93NUMPY" + version + length + header + b"\0" * 16)
    return _bomb() if rng.random() < 0.05 else buffer.getvalue()


@functools.cache
def _bomb() -> bytes:
    """Returns an archive of a few megabytes that unpacks to 1.3 GB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("bomb.npy", "w", force_zip64=True) as member:
            for _ in range(80):
                member.write(bytes(2**24))
    return buffer.getvalue()


class _Calls:
    """What an unpickler would call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


class _OfDtype(_Calls):
    """A dtype whose inner flags lie: bytes would become pointers."""

    def __init__(self, flags: int) -> None:
        state = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, flags)
        super().__init__(np.dtype, "V8", False, True, state=state)


def _hostile_pickle(rng: random.Random, canary: pathlib.Path) -> bytes:
    """Returns a pickle that asks for code, for memory, or for objects that are not what they seem."""
    import builtins
    import subprocess as processes

    reconstruct = np.zeros(1).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    shared: list[Any] = []
    for _ in range(60):
        shared = [shared, shared]
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    objects: list[Callable[[], Any]] = [
        lambda: _Calls(os.mkdir, str(canary)),
        lambda: _Calls(os.system, f"mkdir {canary}"),
        lambda: _Calls(processes.Popen, ["mkdir", str(canary)]),
        lambda: _Calls(builtins.eval, f"__import__('os').mkdir({str(canary)!r})"),
        lambda: _Calls(builtins.getattr, np.ndarray, "tofile"),
        lambda: _Calls(reconstruct, np.ndarray, (2**40,), b"b"),
        lambda: _Calls(np.ndarray, (2**40,)),
        lambda: _Calls(reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), _OfDtype(0), False, b"\x41" * 8)),
        lambda: _Calls(reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), _OfDtype(63), False, b"\x41" * 8)),
        lambda: _Calls(reconstruct, np.ndarray, (0,), b"b", state=(1, (2**60,), np.dtype("f4"), False, b"\0" * 8)),
        lambda: _Calls(reconstruct, np.ndarray, (0,), b"b", state=(1, (2,), np.dtype("O"), False, [1, 2])),
        lambda: _Calls(reconstruct, np.ndarray, (0,), b"b", state=hostile_value(rng)),
        lambda: _Calls(scalar, np.dtype("O"), b"\x41" * 8),
        lambda: _Calls(scalar, np.dtype("f8"), b"\x41"),
        lambda: _Calls(collections.OrderedDict, (), state={"items": 5, "keys": 6, "get": 7}),
        lambda: np.dtype("f4"),
        lambda: shared,
        lambda: cyclic,
        lambda: hostile_value(rng),
        lambda: np.array(["a"]),
        lambda: np.array([None]),
        lambda: set(),
    ]
    made = rng.choice(objects)()
    name = rng.choice([*NAMES, "model", "state_dict", "params/fpn/p6/bias"])
    if isinstance(made, _Calls) and made.call[0] is collections.OrderedDict and rng.random() < 0.5:
        content = made
    else:
        content = rng.choice((made, {name: made}, {"model": {name: made}}, [made], (made,)))
    try:
        with deep_recursion():
            data = pickle.dumps(content, protocol=rng.choice((2, 4, 5)))
    except (pickle.PicklingError, UnicodeEncodeError, RecursionError):
        data = b"\x80\x02"
    tail = rng.random()
    if tail < 0.1:
        return _hashed_tuples(rng)
    if tail < 0.2:
        return data[:-1] + b"r" + struct.pack("<I", rng.choice((2**20, 2**31, 2**32 - 1))) + b"."
    if tail < 0.3:
        return b"\x80\x04\x8e" + struct.pack("<Q", rng.choice((2**31, 2**40, 2**63))) + data
    if tail < 0.4:
        return b"\x80\x02" + rng.choice((b"(", b"]", b"}", b"\x8c\x01a", b"N", b"(l")) * 50_000 + b"."
    return data


def _with_pickle(archive: bytes, content: bytes) -> bytes:
    """Returns a file of torch with another pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(".pkl") else old.read(name))
    return buffer.getvalue()


def _hashed_tuples(rng: random.Random) -> bytes:
    """Returns a pickle with nested or shared tuples where they would be hashed: in depth, or time, without bound."""
    tuples = b"N" + rng.choice((30 * b"2\x86", 30 * b"22\x87", 3_000 * b"\x85", 1_000_000 * b"\x85"))
    before, after = rng.choice(
        (
            (b"}", b"Ns"),
            (b"}(", b"Nu"),
            (b"(", b"Nd"),
            (b"\x8f(", b"\x90"),
            (b"(", b"\x91"),
            (b"ccollections\nOrderedDict\n](", b"N\x86e\x85R"),
            (b"cnumpy\ndtype\n", b"\x85R"),
            (b"ccollections\nOrderedDict\nN", b"b"),
            (b"", b""),
        )
    )
    return b"\x80\x04" + before + tuples + after + b"."

"""Mutated files through every reader of foreign files: each is read, or refused by a documented error.

Usage: python benchmarks/fuzz.py [--files 10000] [--seed 0] [--kind KIND]

Kinds are COCO and VOC annotations, COCO results, and weights (.npz, .safetensors, .pkl, .pth) through `focaljax
convert`. Half of the files are mutated byte by byte, half in their structure: wrong types, huge numbers, deep nesting,
names that are paths, markup or terminal sequences, pickles that ask for code, archives that unpack to gigabytes. Each
kind runs in a process of its own, so that one that crashes is counted, and prints a row: files, accepted, refused by
a documented error, anything else (must be 0), the slowest file in seconds, and the most memory of the process above
that at its start. A file that takes longer than a minute counts as anything else; so does output that would steer a
terminal, and a file or folder that appears beside those that should be written. Ends with 1 if anything else occurred.
"""

import argparse
import collections
import contextlib
import copy
import functools
import io
import json
import os
import pathlib
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import command
import cv2
import numpy as np

SHARES = {"coco": 0.28, "voc": 0.24, "results": 0.2, "npz": 0.08, "safetensors": 0.08, "pkl": 0.09, "pth": 0.03}
SECONDS_A_FILE = 60
CANARY = "made_by_hostile_code"

NAMES = [
    "", " ", ".", "..", "/", "../../../etc/passwd", "/etc/passwd", "..\\..\\a", "C:\\a", "/dev/zero", "a/../../b.png",
    "[red]a[/red]", "[/]", "[/nothing]", "[link=file:///]x", "\x1b[2J\x1b]0;title\x07", "a\nb", "a\r\nb", "a\0b",
    "\ud800", "\udc80x", "‮gnp.a", "\U0001f600" * 9, "a" * 300, "日本.png", "$x$", "{0}", "%s%n", "';--", "pipe",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 3, 40, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**400, 1e308, -1e308,
    1e-320, 0.5, 3.0, float("nan"), float("inf"), float("-inf"), True, False, None,
]  # fmt: skip
ENCODINGS = ["utf-8", "utf-16", "utf-7", "idna", "zlib", "undefined", "latin-1", "shift_jis", "rot13", "none_such"]


class StillRunningError(BaseException):
    """A file took longer than it may; not an `Exception`, so that no reader takes it for one of its own."""


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """Returns the content with 1 to 8 changes of bytes; more of them near the start and the end, where headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        near = rng.choice((len(data), 64, 400, 4000))
        start = rng.randrange(max(1, min(len(data), near)))
        start = rng.choice((start, max(0, len(data) - 1 - start)))
        end = min(len(data), start + rng.choice((1, 1, 2, 4, 8, 30, 1000)))
        change = rng.randrange(9)
        if change == 0 and data:
            data[start] ^= 1 << rng.randrange(8) if start < len(data) else 0
        elif change == 1:
            data[start:end] = rng.randbytes(end - start)
        elif change == 2:
            del data[start:end]
        elif change == 3:
            data[start:start] = data[start:end] * rng.choice((1, 2, 50))
        elif change == 4:
            data[start:start] = rng.randbytes(rng.choice((1, 4, 100)))
        elif change == 5:
            del data[start:]
        elif change == 6:
            number = rng.choice((0, 1, 0x7F, 0xFF, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1))
            width = rng.choice((1, 2, 4, 8))
            data[start : start + width] = (number % 256**width).to_bytes(width, rng.choice(("little", "big")))
        elif change == 7:
            opening = rng.choice((b"[", b'{"a":', b"<a>", b"(", b"9", b"[" * 9, b"-"))
            data[start:start] = opening * rng.choice((3, 500, 5000, 100_000))
        else:
            data[start:end] = b"\0" * (end - start)
    return bytes(data)


def hostile_value(rng: random.Random) -> Any:
    """Returns a value that JSON can hold and that hardly belongs where it will be put."""
    kind = rng.randrange(6)
    if kind <= 1:
        return rng.choice(NUMBERS)
    if kind <= 3:
        return rng.choice(NAMES)
    if kind == 4:
        return rng.choice(([], {}, [[]], [1, 2], [1, 2, 3, 4, 5], {"id": 1}, ["1", "2", "3", "4"], [None] * 4))
    nested: Any = []
    for _ in range(rng.choice((3, 100, 600))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return nested


def mutated_document(rng: random.Random, document: Any) -> Any:
    """Returns the document with 1 to 4 of its values replaced, removed, repeated or exchanged."""
    with _deep_recursion():
        document = copy.deepcopy(document)
        for _ in range(rng.choice((1, 1, 2, 4))):
            places = list(_places(document))
            if not places or rng.random() < 0.01:
                return hostile_value(rng)
            parent, key = rng.choice(places)
            change = rng.randrange(8)
            if change == 0:
                del parent[key]
            elif change == 1 and isinstance(parent, list):
                parent.extend([copy.deepcopy(parent[key])] * rng.choice((1, 3)))
            elif change == 2:
                other, other_key = rng.choice(places)
                parent[key] = copy.deepcopy(other[other_key])
            elif change == 3 and isinstance(parent, dict):
                parent[rng.choice(NAMES)] = parent.pop(key)
            else:
                parent[key] = hostile_value(rng)
    return document


@contextlib.contextmanager
def _deep_recursion() -> Iterator[None]:
    """Allows what makes files to recurse deeper than what reads them."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [value]
    while waiting:
        parent = waiting.pop()
        pairs = parent.items() if isinstance(parent, dict) else enumerate(parent) if isinstance(parent, list) else ()
        for key, child in pairs:
            yield parent, key
            waiting.append(child)


def as_json(document: Any) -> bytes:
    """Returns JSON also of numbers that Python would not write, and of documents nested deeper than it recurses."""
    sys.set_int_max_str_digits(0)
    try:
        with _deep_recursion():
            return json.dumps(document).replace(": 1e+308", ": 1e999").encode()
    finally:
        sys.set_int_max_str_digits(4300)


class Coco:
    """An images folder, with a pipe in it, and an annotation file."""

    suffix = ".json"

    def __init__(self, folder: pathlib.Path) -> None:
        from focaljax.data.example import DataError

        self.documented = (DataError,)
        self.images = folder / "images"
        _write_images(self.images)
        self.document = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in (1, 2, 3)],
            "annotations": [
                {"id": 10 * i + k, "image_id": i, "category_id": 1 + k, "bbox": [k, 2, 9, 8 + i]}
                | {"area": 70, "iscrowd": k, "segmentation": [[1, 2, 3, 4, 5, 6]]}
                for i in (1, 2, 3)
                for k in (0, 1)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        self.base = as_json(self.document)

    def mutate(self, rng: random.Random) -> bytes:
        """Returns the bytes of one file."""
        if rng.random() < 0.5:
            return mutated_bytes(rng, self.base)
        content = as_json(mutated_document(rng, self.document))
        return content.replace(b": 3", b": " + b"1" * 5000, 1) if rng.random() < 0.02 else content

    def read(self, path: pathlib.Path) -> None:
        """Reads one file as training does."""
        from focaljax.data.coco import CocoSource

        use_source(CocoSource(self.images, path))


class Voc:
    """A VOC folder of three images, of which one XML file is mutated."""

    suffix = ".xml"

    def __init__(self, folder: pathlib.Path) -> None:
        from focaljax.data.example import DataError

        self.documented = (DataError,)
        self.images, self.annotations = folder / "images", folder / "xml"
        _write_images(self.images)
        self.annotations.mkdir()
        self.text = (
            "<annotation><filename>1.png</filename><size><width>40</width><height>30</height><depth>3</depth></size>"
            "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax>"
            "<ymax>12</ymax></bndbox></object><object><name>dog</name><difficult>1</difficult><bndbox><xmin>5</xmin>"
            "<ymin>6</ymin><xmax>30</xmax><ymax>22</ymax></bndbox></object></annotation>"
        )
        self.base = self.text.encode()
        (self.annotations / "2.xml").write_bytes(self.base)

    def mutate(self, rng: random.Random) -> bytes:
        """Returns the bytes of one file."""
        if rng.random() < 0.5:
            return mutated_bytes(rng, self.base)
        root = ElementTree.fromstring(self.text)
        for _ in range(rng.choice((1, 2, 4))):
            parent = rng.choice(list(root.iter()))
            change = rng.randrange(5)
            if change == 0 and len(parent):
                del parent[rng.randrange(len(parent))]
            elif change == 1 and len(parent):
                parent.append(copy.deepcopy(rng.choice(parent)))
            elif change == 2:
                parent.tag = rng.choice(("object", "name", "bndbox", "size", "xmin", "annotation"))
            elif change == 3:
                for _ in range(rng.choice((3, 300, 20_000))):
                    parent = ElementTree.SubElement(parent, rng.choice(("a", "object")))
                break
            else:
                value = hostile_value(rng)
                parent.text = value if isinstance(value, str) else repr(value)[:2000]
        content = _xml_text(root).encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            content = b'<?xml version="1.0" encoding="' + rng.choice(ENCODINGS).encode() + b'"?>' + content
        if rng.random() < 0.1:
            entity = rng.choice(("<!ENTITY a SYSTEM 'file:///etc/passwd'>", "<!ENTITY a 'xxx'><!ENTITY b '&a;&a;&a;'>"))
            content = f"<!DOCTYPE annotation [{entity}]>".encode() + content.replace(b"cat", b"&a;")
        return content

    def read(self, path: pathlib.Path) -> None:
        """Reads one file as training does."""
        from focaljax.data.voc import VocSource

        (self.annotations / "1.xml").write_bytes(path.read_bytes())
        use_source(VocSource(self.images, self.annotations))


class Results:
    """A COCO results file, read and evaluated."""

    suffix = ".json"

    def __init__(self, _: pathlib.Path) -> None:
        # `evaluate_detections` documents ValueError, of which DataError is one.
        self.documented = (ValueError,)
        boxes = [[1, 2, 9, 10], [5, 6, 20, 12.5]]
        self.truth = {
            "images": [{"id": i} for i in (1, 2)],
            "categories": [{"id": 1, "name": "[/red]cat\x1b[2J"}, {"id": 2, "name": "dog\nfrog"}],
            "annotations": [
                {"id": i, "image_id": i, "category_id": i, "bbox": box} for i, box in enumerate(boxes, start=1)
            ],
        }
        self.document = [
            {"image_id": i, "category_id": k, "bbox": box, "score": 0.3 * i}
            for i in (1, 2)
            for k in (1, 2)
            for box in boxes
        ]
        self.base = as_json(self.document)

    def mutate(self, rng: random.Random) -> bytes:
        """Returns the bytes of one file."""
        if rng.random() < 0.5:
            return mutated_bytes(rng, self.base)
        return as_json(mutated_document(rng, self.document))

    def read(self, path: pathlib.Path) -> None:
        """Reads and evaluates one file, and prints the table."""
        import rich.console

        from focaljax.evaluation.coco_metrics import evaluate_detections, metrics_table, read_coco_results

        metrics = evaluate_detections(self.truth, read_coco_results(path))
        rich.console.Console(force_terminal=False).print(metrics_table(metrics, title="[/]"))


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
            return _hostile_pickle(rng, self.folder / CANARY)
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
        with _deep_recursion():
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


def _write_images(folder: pathlib.Path) -> None:
    folder.mkdir()
    for name in (1, 2, 3):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((30, 40, 3), 60 * name, np.uint8))
    os.mkfifo(folder / "pipe")


def _xml_text(root: ElementTree.Element) -> str:
    """Returns the XML of an element nested to any depth; characters that XML forbids are written all the same."""
    parts: list[str] = []
    waiting: list[Any] = [root]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            parts.append(part)
            continue
        parts.append(f"<{part.tag}>{(part.text or '').replace('<', '&lt;')}")
        waiting.append(f"</{part.tag}>")
        waiting.extend(reversed(part))
    return "".join(parts)


def use_source(source: Any) -> None:
    """Does with a source what a run does: images, boxes, the truth, the report on the terminal."""
    import rich.console

    from focaljax.cli.build import report_data
    from focaljax.data.example import UnreadableImageError
    from focaljax.evaluation.coco_metrics import evaluate_detections, metrics_table
    from focaljax.evaluation.drawing import draw_detections

    source.fingerprint()
    report_data(source, "train")
    for index in range(min(3, len(source))):
        with contextlib.suppress(UnreadableImageError):
            example = source[index]
            assert ((example.boxes_xyxy >= 0) & (example.boxes_xyxy <= (40, 30, 40, 30))).all()
            names = source.class_names
            draw_detections(example.image, example.boxes_xyxy, example.labels, None, names, enlargement=2)
    metrics = evaluate_detections(source.ground_truth(), [])
    rich.console.Console(force_terminal=False).print(metrics_table(metrics, title="val"))


def make_kind(kind: str, folder: pathlib.Path) -> Any:
    """Returns what mutates and reads files of one kind, with its files in a folder."""
    plain = {"coco": Coco, "voc": Voc, "results": Results}
    return plain[kind](folder) if kind in plain else Weights(folder, f".{kind}")


def run_kind(kind: str, files: int, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """Returns a row of the table, and the first of the faults with their tracebacks.

    Args:
        kind: a key of `SHARES`.
        files: how many.
        seed: of the mutations.
        folder: empty, for the files; a faulty file is kept there.
    """
    sandbox = folder / "sandbox" / "inside"
    sandbox.mkdir(parents=True)
    one = make_kind(kind, sandbox)
    path = sandbox / f"mutated{one.suffix}"
    rng = random.Random(f"{kind} {seed}")
    row: dict[str, Any] = {"kind": kind, "files": files, "accepted": 0, "refused": 0, "else": 0, "slowest": 0.0}
    faults: list[str] = []
    expected = _names_in(folder) | {path, sandbox / "converted.npz", sandbox / "xml" / "1.xml"}
    signal.signal(signal.SIGALRM, _stop)
    # What the first file imports and compiles is none of its doing. Without torch, no .pth is read.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(*one.documented if kind == "pth" else ()):
        one.read(_written(path, one.base))
    before = _peak_bytes()
    for number in range(files):
        _written(path, one.mutate(rng))
        shown = io.StringIO()
        start = time.perf_counter()
        signal.alarm(SECONDS_A_FILE)
        try:
            with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
                one.read(path)
            outcome = "accepted"
        except one.documented as error:
            outcome = "refused"
            from focaljax.cli.main import _fail

            with contextlib.redirect_stderr(shown):
                _fail(str(error), 1)
        except (Exception, StillRunningError):
            outcome = "else"
            faults.append(traceback.format_exc())
        finally:
            signal.alarm(0)
        row["slowest"] = max(row["slowest"], time.perf_counter() - start)
        steering = set(shown.getvalue()) & {chr(code) for code in range(32) if chr(code) != "\n"}
        unexpected = _names_in(folder) - expected
        if outcome != "else" and (steering or unexpected):
            outcome = "else"
            faults.append(f"steers the terminal: {steering}" if steering else f"wrote {unexpected}")
            expected |= unexpected
        if outcome == "else":
            kept = folder / f"fault_{number}{one.suffix}"
            kept.write_bytes(path.read_bytes())
            expected.add(kept)
        row[outcome] += 1
    row["memory_mb"] = (_peak_bytes() - before) / 1e6
    return row | {"faults": faults[:3]}


def _written(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path


def _names_in(folder: pathlib.Path) -> set[pathlib.Path]:
    return {pathlib.Path(root, name) for root, folders, names in os.walk(folder) for name in (*folders, *names)}


def _stop(*_: object) -> None:
    raise StillRunningError


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    """Runs all kinds and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=SHARES)
    parser.add_argument("--in-this-process", action="store_true", help="print the row of --kind as JSON")
    parser.add_argument("--keep", type=pathlib.Path, help="an empty folder, where faulty files stay")
    arguments = parser.parse_args()
    if arguments.in_this_process:
        with command.folder(arguments.keep) as folder:
            print(json.dumps(run_kind(arguments.kind, arguments.files, arguments.seed, folder)))
        return 0
    print(f"{'kind':12}{'files':>7}{'accepted':>10}{'refused':>9}{'else':>6}{'slowest s':>11}{'memory MB':>11}")
    total: collections.Counter[str] = collections.Counter()
    for kind in [arguments.kind] if arguments.kind else SHARES:
        files = arguments.files if arguments.kind else round(SHARES[kind] * arguments.files)
        row = _in_own_process(kind, files, arguments)
        total.update({key: row[key] for key in ("files", "accepted", "refused", "else")})
        print(
            f"{kind:12}{files:7}{row['accepted']:10}{row['refused']:9}{row['else']:6}{row['slowest']:11.2f}"
            f"{row['memory_mb']:11.0f}",
            flush=True,
        )
        for fault in row["faults"]:
            print(fault)
    print(f"{'all':12}{total['files']:7}{total['accepted']:10}{total['refused']:9}{total['else']:6}")
    return 1 if total["else"] else 0


def _in_own_process(kind: str, files: int, arguments: argparse.Namespace) -> dict[str, Any]:
    flags = ["--in-this-process", "--kind", kind, "--files", str(files), "--seed", str(arguments.seed)]
    if arguments.keep is not None:
        (arguments.keep / kind).mkdir(parents=True)
        flags += ["--keep", str(arguments.keep / kind)]
    done = subprocess.run([sys.executable, __file__, *flags], text=True, capture_output=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    fault = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
    return {
        "accepted": 0,
        "refused": 0,
        "else": files,
        "slowest": 0.0,
        "memory_mb": 0.0,
        "faults": [fault],
        "files": files,
    }


if __name__ == "__main__":
    sys.exit(main())

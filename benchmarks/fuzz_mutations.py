"""Changes of files that know nothing of what is in them: of bytes, and of a JSON document's values."""

import contextlib
import copy
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

NAMES = [
    "", " ", ".", "..", "/", "../../../etc/passwd", "/etc/passwd", "..\\..\\a", "C:\\a", "/dev/zero", "a/../../b.png",
    "[red]a[/red]", "[/]", "[/nothing]", "[link=file:///]x", "\x1b[2J\x1b]0;title\x07", "a\nb", "a\r\nb", "a\0b",
    "\ud800", "\udc80x", "‮gnp.a", "\U0001f600" * 9, "a" * 300, "日本.png", "$x$", "{0}", "%s%n", "';--", "pipe",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 3, 40, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**400, 1e308, -1e308,
    1e-320, 0.5, 3.0, float("nan"), float("inf"), float("-inf"), True, False, None,
]  # fmt: skip


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
    with deep_recursion():
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
def deep_recursion() -> Iterator[None]:
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
        with deep_recursion():
            return json.dumps(document).replace(": 1e+308", ": 1e999").encode()
    finally:
        sys.set_int_max_str_digits(4300)

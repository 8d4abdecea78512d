"""The text of a compiled program, read: its instructions, how often a step runs each, and their arrays."""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0}  # others have their bits in their name
_COMPUTATION = re.compile(r"^\s*(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\)\s*->.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"\b(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TO_APPLY = re.compile(r"\bto_apply=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_INTEGER = re.compile(r"\bconstant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that an instruction reads or writes.

    Attributes:
        dtype: XLA's name, such as 'bf16'.
        bytes: without the padding that tiles of a TPU have.
        is_on_chip: in a TPU's memory beside its arithmetic units, not in the large one.
    """

    dtype: str
    bytes: float
    is_on_chip: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
        opcode: such as 'all-reduce-start'.
        arrays: of its result, in order.
        operands: names of other instructions of its computation.
        text: behind the `=`.
        is_root: it gives the result of its computation.
    """

    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        """The computations that it runs, but for the reduction of two numbers."""
        names = _CALLS.findall(self.text)
        if branches := _BRANCHES.search(self.text):
            names += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
        if self.opcode == "call":
            names += _TO_APPLY.findall(self.text)
        return names


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Text:
    """A program.

    Attributes:
        computations: by name, each by the names of its instructions.
        entry: the one that is run.
    """

    computations: dict[str, Computation]
    entry: str

    def run(self, *, into_fusions: bool) -> Iterator[tuple[Instruction, Computation, int]]:
        """Yields what a step runs: an instruction, the computation that it is in, how often.

        Args:
            into_fusions: yield what is inside fusions and asynchronous wrappers, instead of themselves only.
        """
        yield from self._run(self.entry, 1, into_fusions)

    def _run(self, name: str, times: int, into_fusions: bool) -> Iterator[tuple[Instruction, Computation, int]]:
        computation = self.computations.get(name, {})
        for instruction in computation.values():
            yield instruction, computation, times
            if into_fusions or instruction.opcode in ("while", "conditional", "call"):
                turns = self._turns(instruction)
                for called in instruction.called:
                    yield from self._run(called, times * turns, into_fusions)

    def _turns(self, instruction: Instruction) -> int:
        """Returns how often an instruction runs what it calls: of a loop, as often as it turns; 1 if nothing tells."""
        if instruction.opcode != "while":
            return 1
        if trips := _TRIPS.search(instruction.text):
            return int(trips[1])
        # The TPU compiler writes no number of turns. Loops of JAX's that are known to end count from 0 to a constant.
        condition = self.computations.get(next(iter(_CONDITION.findall(instruction.text)), ""), {})
        root = next((one for one in condition.values() if one.is_root), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.text or len(root.operands) != 2:
            return 1
        limit = condition.get(root.operands[1])
        found = _INTEGER.search(limit.text) if limit is not None else None
        return int(found[1]) if found else 1


def parse(text: str) -> Text:
    """Returns a program from the text that `Compiled.as_text()` gives."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.strip() == "}":
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current[found[2]] = _instruction(found[3], is_root=bool(found[1]))
    return Text(computations, entry)


def _instruction(text: str, *, is_root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    opening = text.find("(", end)
    arrays = tuple(_array(*found) for found in _ARRAY.findall(text[:end]))
    operands = re.findall(r"%([\w.\-]+)", text[opening : _closing(text, opening) + 1])
    return Instruction(text[end:opening].strip(), arrays, tuple(operands), text, is_root)


def _closing(text: str, opening: int) -> int:
    """Returns where the parenthesis that opens there closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, max(opening, 0)):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text) - 1


def _array(dtype: str, shape: str, layout: str) -> Array:
    bits = re.match(r"[a-z]+(\d+)", dtype)
    size = _BYTES.get(dtype, int(bits[1]) / 8 if bits else 0)
    number = math.prod(int(side) for side in shape.split(",") if side)
    return Array(dtype, size * number, re.search(r"S\([1-9]", layout) is not None)

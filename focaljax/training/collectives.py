"""Which collectives a compiled program has, read from its text: kinds, how often a step runs them, bytes."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}  # others have their bits in their name
_COMPUTATION = re.compile(r"^\s*(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\)\s*->.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT\s+)?%?[\w.\-]+\s*=\s*(.*)$")
_OPCODE = re.compile(rf"\s({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
# Of an instruction, the computations that it runs; those of a reduction (to_apply) have no collectives.
_CALLS = re.compile(r"\b(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CALL = re.compile(r"\scall\(.*\bto_apply=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction by which devices talk to each other.

    Attributes:
        kind: one of `KINDS`.
        dtypes: of its arrays, such as `('bf16',)`.
        count: how often one step runs it.
        bytes: of one run, what the devices of a group hold together when it is done: the reduced or the gathered
            arrays; of `reduce-scatter`, the arrays before they are scattered; of the others a device's own.
        group: devices that take part in one exchange.
    """

    kind: str
    dtypes: tuple[str, ...]
    count: int
    bytes: int
    group: int

    @property
    def sent_bytes(self) -> float:
        """What a device sends in a step, in a ring: 2 (n - 1) / n of an all-reduce, (n - 1) / n of a gather or scatter.

        Source: Patarasuk and Yuan 2009, 'Bandwidth optimal all-reduce algorithms for clusters of workstations',
        doi 10.1016/j.jpdc.2008.09.002.
        """
        share = (self.group - 1) / self.group
        factors = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return self.count * self.bytes * factors.get(self.kind, share)


def collectives_of(text: str, devices: int) -> tuple[Collective, ...]:
    """Returns the collectives that one step runs, in the order of the text.

    What a loop runs is counted as often as the loop turns, where the compiler knows that.

    Args:
        text: of a compiled program, as `Compiled.as_text()` gives it.
        devices: of the program, for exchanges among all of them.

    Example:
        >>> text = '''ENTRY %main (p: f32[8]) -> f32[8] {
        ...   ROOT %r = f32[8]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
        ... }'''
        >>> collectives_of(text, devices=4)
        (Collective(kind='all-reduce', dtypes=('f32',), count=1, bytes=32, group=2),)
    """
    computations, entry = _computations(text)
    return tuple(_run(computations, entry, 1, devices))


def _run(computations: Mapping[str, list[str]], name: str, times: int, devices: int) -> Iterator[Collective]:
    for instruction in computations.get(name, ()):
        if opcode := _OPCODE.search(instruction):
            yield _collective(instruction, opcode, times, devices)
            continue
        called = _CALLS.findall(instruction) + _CALL.findall(instruction)
        if branches := _BRANCHES.search(instruction):
            called += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
        turns = _TRIPS.search(instruction) if " while(" in instruction else None
        for other in called:
            yield from _run(computations, other, times * int(turns[1]) if turns else times, devices)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the instructions of every computation by its name, without their results' names, and the entry's name."""
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.strip() == "}":
            current = None
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append(instruction[1])
    return computations, entry


def _collective(instruction: str, opcode: re.Match[str], times: int, devices: int) -> Collective:
    kind, is_start = opcode[1], opcode[2] is not None
    result = instruction[: opcode.start()]
    arrays = [(dtype, _array_bytes(dtype, shape)) for dtype, shape in _ARRAY.findall(result)]
    if is_start and kind != "all-reduce":
        # A started exchange gives its operands, its results and two words of context: the results are its second half.
        arrays = [array for array in arrays if not (array[0] == "u32" and array[1] <= 4)]
        arrays = arrays[len(arrays) // 2 :]
    group = _group_size(instruction, devices)
    total = sum(size for _, size in arrays) * (group if kind == "reduce-scatter" else 1)
    dtypes = tuple(sorted({dtype for dtype, _ in arrays}))
    return Collective(kind=kind, dtypes=dtypes, count=times, bytes=math.ceil(total), group=group)


def _array_bytes(dtype: str, shape: str) -> float:
    bits = re.match(r"[a-z]+(\d+)", dtype)
    size = _BYTES.get(dtype, int(bits[1]) / 8 if bits else 0)
    return size * math.prod(int(side) for side in shape.split(",") if side)


def _group_size(instruction: str, devices: int) -> int:
    """Returns the size of a group, in any of the three ways in which XLA writes groups; all devices if it says none."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", instruction):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", instruction):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", instruction):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        return math.prod(sizes.get(name, 1) for name in re.findall(r"'([^']+)'", mesh[2]))
    return devices

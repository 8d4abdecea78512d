"""Which collectives a compiled program has, read from its text: kinds, how often a step runs them, bytes."""

import dataclasses
import math
import re

from focaljax.training.hlo import Instruction, Text

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


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


def collectives_of(program: Text, devices: int) -> tuple[Collective, ...]:
    """Returns the collectives that one step runs, in the order of the text.

    What a loop runs is counted as often as the loop turns, where the text tells that; of a conditional, what each of
    its branches runs.

    Args:
        program: its text, read.
        devices: of the program, for exchanges among all of them.

    Example:
        >>> from focaljax.training.hlo import parse
        >>> text = '''ENTRY %main (p: f32[8]) -> f32[8] {
        ...   ROOT %r = f32[8]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%add
        ... }'''
        >>> collectives_of(parse(text), devices=4)
        (Collective(kind='all-reduce', dtypes=('f32',), count=1, bytes=32, group=2),)
    """
    return tuple(
        _collective(instruction, times, devices)
        for instruction, _, times in program.run(into_fusions=True)
        if instruction.opcode.removesuffix("-start") in KINDS
    )


def _collective(instruction: Instruction, times: int, devices: int) -> Collective:
    kind = instruction.opcode.removesuffix("-start")
    arrays = instruction.arrays
    if instruction.opcode != kind and kind != "all-reduce":
        # A started exchange gives its operands, its results and two words of context: the results are its second half.
        arrays = tuple(array for array in arrays if not (array.dtype == "u32" and array.bytes <= 4))
        arrays = arrays[len(arrays) // 2 :]
    group = _group_size(instruction.text, devices)
    total = sum(array.bytes for array in arrays) * (group if kind == "reduce-scatter" else 1)
    dtypes = tuple(sorted({array.dtype for array in arrays}))
    return Collective(kind=kind, dtypes=dtypes, count=times, bytes=math.ceil(total), group=group)


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

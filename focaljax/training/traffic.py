"""What a compiled program reads from and writes to the large memory of a device, read from its text."""

from focaljax.training.hlo import Array, Computation, Instruction, Text

# They give names to what is there, or end what another has begun.
_MOVE_NOTHING = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "while", "conditional", "call",
    "partition-id", "replica-id", "opt-barrier", "add-dependency",
}  # fmt: skip
_OF_A_PART = {"slice", "dynamic-slice", "gather"}
# Begun copies: from one place to another, as much as the smaller of the two holds.
_BEGUN_COPIES = {"copy-start", "slice-start", "dynamic-slice-start"}


def memory_traffic(program: Text) -> float:
    """Returns the bytes that a step moves between a device and its large memory (HBM): an estimate.

    Every instruction reads its operands and writes its results, but for what lies in a TPU's memory on the chip; of an
    operand from which only parts are taken, the parts. The compilers' own count, `bytes accessed`, adds what lies on
    the chip, and operands as wholes. Not known here are a GPU's caches, the padding of a TPU's tiles, and what of an
    array a kernel reads twice.
    """
    total = 0.0
    for instruction, computation, times in program.run(into_fusions=False):
        total += times * _moved(instruction, computation, program)
    return total


def _moved(instruction: Instruction, computation: Computation, program: Text) -> float:
    opcode = instruction.opcode
    if opcode in _MOVE_NOTHING or opcode.endswith(("-done", "-update")):
        return 0.0
    if opcode in _BEGUN_COPIES and len(instruction.arrays) >= 2:
        two = instruction.arrays[:2]
        return min(array.bytes for array in two) * sum(not array.is_on_chip for array in two)
    operands = [computation[name].arrays for name in instruction.operands if name in computation]
    if opcode == "dynamic-update-slice" and len(operands) > 1:
        return _outside(operands[1]) + sum(array.bytes for array in operands[1]) * _is_outside(operands[0])
    written = _outside(instruction.arrays)
    if opcode in _OF_A_PART:
        return written + sum(array.bytes for array in instruction.arrays) * _is_outside(operands[0] if operands else ())
    parts = _parts_taken(instruction, program)
    return written + sum(min(_outside(arrays), parts.get(i, float("inf"))) for i, arrays in enumerate(operands))


def _parts_taken(instruction: Instruction, program: Text) -> dict[int, float]:
    """Returns the bytes that a fusion takes of those of its operands, by number, that it only takes parts of."""
    if instruction.opcode != "fusion" or not instruction.called:
        return {}
    fused = program.computations.get(instruction.called[0], {})
    users: dict[str, list[Instruction]] = {}
    for user in fused.values():
        for name in user.operands:
            users.setdefault(name, []).append(user)
    taken = {}
    for name, parameter in fused.items():
        of_it = users.get(name, [])
        if parameter.opcode == "parameter" and of_it and all(user.opcode in _OF_A_PART for user in of_it):
            number = int(parameter.text[parameter.text.index("parameter(") + len("parameter(") :].split(")")[0])
            taken[number] = sum(array.bytes for user in of_it for array in user.arrays)
    return taken


def _outside(arrays: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in arrays if not array.is_on_chip)


def _is_outside(arrays: tuple[Array, ...]) -> bool:
    return any(not array.is_on_chip for array in arrays)

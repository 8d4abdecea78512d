"""What a step will need and how fast it could be at best, before it runs: from the compiler, for any devices."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from focaljax.training.collectives import Collective, collectives_of
from focaljax.training.hlo import parse
from focaljax.training.programs import cache_hits
from focaljax.training.topologies import Chip
from focaljax.training.traffic import memory_traffic

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a program needs on each device, in bytes.

    Attributes:
        arguments: state and batch.
        temporaries: activations, gradients and what else lives during a step only, at its peak.
        output: results that do not take over the place of arguments.
        code: the program itself, which lies in the same memory on a TPU; 0 elsewhere.
    """

    arguments: int
    temporaries: int
    output: int
    code: int

    @property
    def total(self) -> int:
        """At the peak of a step."""
        return self.arguments + self.temporaries + self.output + self.code


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
        memory: None where the compiler does not tell.
        flops: on each device in a step, by the compiler's count of the program that it made; NaN if it has none.
        bytes_accessed: likewise, what its operations read and write, wherever that lies.
        traffic: bytes between the device and its large memory, an estimate, see `memory_traffic`; 0 if not known.
        collectives: by which the devices talk to each other.
        seconds: that compiling took.
        is_from_cache: it was kept from an earlier run, so that it did not take long.
    """

    memory: Memory | None
    flops: float
    bytes_accessed: float
    traffic: float
    collectives: tuple[Collective, ...]
    seconds: float
    is_from_cache: bool = False


class DoesNotFitError(Exception):
    """The compiler found no program that fits into the device's memory; `needed_and_available` reads its message."""


def needed_and_available(message: str) -> tuple[int | None, int | None]:
    """Returns the bytes that a compiler's message of too little memory names.

    Example:
        >>> needed_and_available("memory required for HLO temporaries (2.50G) exceeds available HBM (1.00G)")
        (2684354560, 1073741824)
    """
    found = re.search(r"\((\d+(?:\.\d+)?)([KMGT]?)\) exceeds available \w+ \((\d+(?:\.\d+)?)([KMGT]?)\)", message)
    if found is None:
        found = re.search(r"[Uu]sed (\d+(?:\.\d+)?)([KMGT]?) of (\d+(?:\.\d+)?)([KMGT]?) hbm", message)
    if found is None:
        return None, None
    return int(float(found[1]) * _UNITS[found[2]]), int(float(found[3]) * _UNITS[found[4]])


def compile_program(traced: jax.stages.Traced, devices: int, options: Mapping[str, Any] | None = None) -> Program:
    """Returns what the compiler makes of a traced step.

    Args:
        traced: as `jax.jit(...).trace(...)` gives it, also for devices that are not here.
        devices: that it is for.
        options: of the compiler.

    Raises:
        DoesNotFitError: it cannot make a program that fits.
    """
    hits, start = cache_hits(), time.perf_counter()
    before = hits[0]
    try:
        compiled = traced.lower().compile(compiler_options=dict(options) if options else None)
    except jax.errors.JaxRuntimeError as error:
        # Of a TPU's other memories too there may be too little ("memory space vmem"), whatever the batch.
        is_of_another = "memory space" in str(error) and "hbm" not in str(error).lower()
        if "RESOURCE_EXHAUSTED" not in str(error) or is_of_another:
            raise
        raise DoesNotFitError(str(error)) from None
    seconds = time.perf_counter() - start
    cost, text = compiled.cost_analysis() or {}, parse(compiled.as_text() or "")
    return Program(
        memory=_memory(compiled.memory_analysis()),
        flops=float(cost.get("flops", math.nan)),
        bytes_accessed=float(cost.get("bytes accessed", math.nan)),
        traffic=memory_traffic(text),
        collectives=collectives_of(text, devices),
        seconds=seconds,
        is_from_cache=hits[0] > before,
    )


def hbm_for_programs(mesh: jax.sharding.Mesh) -> int | None:
    """Returns the bytes of memory that programs can have on each device, as its compiler says; None if it does not.

    It is asked by a program that fits nowhere, which it refuses at once.
    """
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    too_large = jax.ShapeDtypeStruct((2**20, 2**20), "float32", sharding=everywhere)  # 4 TiB
    try:
        jax.jit(lambda x: (x + 1.0) @ x @ x).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        return needed_and_available(str(error))[1]
    return None


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time that a step can take on a chip, from published peaks: an estimate.

    Attributes:
        compute: seconds for its arithmetic at the peak for its type.
        memory: seconds to move what the program reads from and writes to the large memory.
        communication: seconds to send what its collectives send.
        images_per_second: of all devices together, if the longest of these hid the others.
    """

    compute: float
    memory: float
    communication: float
    images_per_second: float

    @property
    def bound(self) -> str:
        """Which of the three is the longest."""
        return max(("compute", "memory", "communication"), key=lambda name: getattr(self, name))


def roofline(program: Program, chip: Chip, batch_size: int, flops: float, *, is_float32: bool = False) -> Roofline:
    """Returns the roofline of a step (Williams, Waterman and Patterson 2009, doi 10.1145/1498765.1498785).

    Args:
        program: of one device.
        chip: its published peaks.
        batch_size: images in a step of all devices together.
        flops: of one device as traced, for a compiler that does not count.
        is_float32: of the activations; else bfloat16.
    """
    peak = chip.float32_flops if is_float32 else chip.flops
    compute = (flops if math.isnan(program.flops) else program.flops) / peak
    memory = program.traffic / chip.hbm_bandwidth
    communication = sum(one.sent_bytes for one in program.collectives) / chip.link_bandwidth
    return Roofline(compute, memory, communication, batch_size / max(compute, memory, communication))


def images_that_fit(points: Sequence[tuple[int, int]], capacity: int, multiple: int = 1) -> int | None:
    """Returns how many images a device can take at a time, by the line through two compiled programs' memory.

    An estimate: the compiler plans each size anew, and where memory becomes scarce it computes some values twice.

    Args:
        points: two of (images on a device, bytes that the program needs in all).
        capacity: bytes that there are.
        multiple: of which the result is one.

    Returns:
        The number, 0 if not even one fits; None if memory does not grow with the images, so that there is no line.

    Example:
        >>> images_that_fit([(4, 500), (8, 900)], capacity=1250)
        11
    """
    (few, less), (many, more) = sorted(points)
    if few == many:
        raise ValueError(f"two different numbers of images are needed, got {few} twice")
    if more <= less:
        return None
    return max(0, math.floor(few + (capacity - less) * (many - few) / (more - less))) // multiple * multiple


def traced_flops(jaxpr: Any) -> int:
    """Returns the floating point operations of all convolutions and matrix products of a traced function.

    A product and a sum count as two. What `jax.checkpoint` computes again is counted again, a branch by its most
    expensive side, the body of a `while` once. Products with the zeros of padding are counted, as XLA does not;
    products with zeros between the elements of a strided convolution's gradient are not.

    Args:
        jaxpr: as `jax.jit(f).trace(...).jaxpr` gives it; shapes are those of the whole batch.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            spec = parameters["dimension_numbers"].rhs_spec
            products = math.prod(kernel[axis] for axis in spec[1:])
            dilation = math.prod(parameters["lhs_dilation"] or (1,))
            total += 2 * math.prod(equation.outvars[0].aval.shape) * products // dilation
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        else:
            inner = [traced_flops(one) for value in parameters.values() for one in _jaxprs(value)]
            turns = parameters["length"] if name == "scan" else 1
            total += max(inner, default=0) if name == "cond" else turns * sum(inner)
    return total


def _jaxprs(value: Any) -> list[Any]:
    values = value if isinstance(value, tuple | list) else (value,)
    return [one for one in values if isinstance(one, ClosedJaxpr | Jaxpr)]


def _memory(analysis: Any) -> Memory | None:
    if analysis is None:
        return None
    return Memory(
        arguments=int(analysis.argument_size_in_bytes),
        temporaries=int(analysis.temp_size_in_bytes),
        # Results that take over the place of arguments are counted once.
        output=int(analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        code=int(analysis.generated_code_size_in_bytes),
    )


def largest_fitting(fits: Callable[[int], bool], known: int, guess: int, multiple: int = 1) -> tuple[int, int | None]:
    """Returns the largest number found to fit, and the smallest found not to, at most an eighth apart.

    Args:
        fits: compiles for a number of images on a device; slow, so that it is called as rarely as may be.
        known: a number that fits, 0 if none is known.
        guess: where to look first.
        multiple: of which all numbers are one.
    """
    low, high = known, None
    candidate = max(guess // multiple * multiple, low + multiple)
    while candidate != low:
        if fits(candidate):
            low = candidate
        else:
            high = candidate
        step = max(multiple, low // 8 // multiple * multiple)
        if high is None:
            candidate = low + step
        elif high - low <= step:
            break
        else:
            candidate = max(multiple, (low + high) // 2 // multiple * multiple)
    return low, high

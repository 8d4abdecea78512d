"""Compiled steps that say when they are compiled: once for each shape of a batch, and never by surprise."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax

# JAX's name for the event that a program was found in the persistent compile cache.
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What compiling a step for one shape took.

    Attributes:
        name: of the step.
        shape: of the batch's images, `(B, H, W, 3)`.
        count: how many programs the step has now, this one included.
        seconds: tracing included.
        is_from_cache: the program was kept from an earlier run.
        device_bytes: that one device needs at the peak of a step, state and batch included, as the compiler planned it;
            None where it does not tell.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    seconds: float
    is_from_cache: bool
    device_bytes: int | None


def jit_for_one_run(function: Callable[..., Any], **options: Any) -> Any:
    """Returns `jax.jit(function, **options)` for what is run once, such as an initialisation.

    On the CPU it is compiled with hardly any optimisation: the random numbers of a detector's weights take XLA seven
    seconds to compile, two without, and well under a second to compute either way.
    """
    on_cpu = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=on_cpu, **options)


class ProgramPerShape:
    """A jitted step, compiled at its first call for each shape of the batch.

    Anything else that jit would compile anew for, such as state that lies elsewhere or has other types, is an error.

    Args:
        step: jitted, of (state, batch); the batch has `image`.
        name: for a person, such as 'train step'.
        on_compile: is told of every compilation when it is over.
    """

    def __init__(self, step: Any, name: str, on_compile: Callable[[Compilation], None]) -> None:
        self._step, self._name, self._on_compile = step, name, on_compile
        self._programs: dict[Any, Any] = {}

    def __call__(self, state: Any, batch: Any) -> Any:
        """Returns the step's result."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in self._programs:
            self._programs[shapes] = self._compile(state, batch)
        return self._programs[shapes](state, batch)

    def _compile(self, state: Any, batch: Any) -> Any:
        hits, start = cache_hits(), time.perf_counter()
        before = hits[0]
        program = self._step.lower(state, batch).compile()
        self._on_compile(
            Compilation(
                name=self._name,
                shape=batch["image"].shape,
                count=len(self._programs) + 1,
                seconds=time.perf_counter() - start,
                is_from_cache=hits[0] > before,
                device_bytes=_device_bytes(program),
            )
        )
        return program


def _device_bytes(program: Any) -> int | None:
    memory = program.memory_analysis()
    if memory is None or not memory.temp_size_in_bytes:
        return None
    # Results that take over the place of arguments are counted once.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(memory.argument_size_in_bytes + memory.temp_size_in_bytes + results)


@functools.cache
def cache_hits() -> list[int]:
    """Returns a list of one number, the hits of the compile cache so far since the first call."""
    hits = [0]

    def count(event: str, **_: Any) -> None:
        if event == _CACHE_HIT:
            hits[0] += 1

    jax.monitoring.register_event_listener(count)
    return hits

"""What `focaljax plan` prints: shapes and parameters of a dry run, and what a compiled step needs."""

import collections
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import rich.box
import rich.console
import rich.table
from ml_collections import ConfigDict

from focaljax.cli.console import say
from focaljax.cli.prediction import anchor_settings
from focaljax.detection import pyramid_anchors
from focaljax.models.retinanet import RetinaNet
from focaljax.training.plan import Program
from focaljax.training.state import TrainState


def print_shapes(
    model: RetinaNet, config: ConfigDict, state: TrainState, batch: Mapping[str, Any], devices: int
) -> None:
    """Prints the shapes of a batch and of the model's outputs, and the parameters by part of the model.

    Args:
        model: of the config.
        config: the whole config.
        state: its arrays' shapes.
        batch: likewise, of all devices together.
        devices: over which the batch is split.
    """
    table = _table(f"a batch, split over {devices} devices", "shape", "type", "MiB", first="array")
    for name, array in batch.items():
        table.add_row(name, _shape(array), str(array.dtype), _mib(array.size * array.dtype.itemsize))
    _print(table)

    size = tuple(config.data.image_size)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    logits, _ = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), state.variables(), images)
    anchors = jax.eval_shape(lambda: pyramid_anchors(size, **anchor_settings(config)))
    table = _table("outputs of an image", "stride", "anchors", "class logits", first="level")
    for level, scores, boxes in zip(config.model.levels, logits, anchors, strict=True):
        table.add_row(f"P{level}", str(2**level), f"{boxes.shape[0]:,}", _shape(scores, skip=1))
    table.add_row("all", "", f"{sum(boxes.shape[0] for boxes in anchors):,}", "")
    _print(table)

    table = _table("parameters", "arrays", "numbers", "MiB", first="part of the model")
    parts: dict[str, list[Any]] = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        keys = [str(getattr(key, "key", key)) for key in path]
        parts["/".join(keys[:2])].append(leaf)
    for name, leaves in sorted(parts.items()):
        table.add_row(name, *_sizes(leaves))
    table.add_section()
    everything = {"all": state.params, "statistics": state.batch_stats, "optimiser's": state.opt_state}
    for name, tree in {**everything, "moving average": state.ema_params}.items():
        if leaves := jax.tree.leaves(tree):
            table.add_row(name, *_sizes(leaves))
    _print(table)


def in_short(program: Program) -> str:
    """Returns what a program needs, for the end of a line."""
    return f", {_gib(program.memory.total)} GiB on each device" if program.memory else ""


def print_result(result: Mapping[str, Any], dtype: str) -> None:
    """Prints a plan.

    Args:
        result: in the form of the JSON file.
        dtype: of the activations.
    """
    program, devices = result["program"], result["devices"]
    if program is None:
        say(f"does not fit: {result['refusal']}")
    else:
        if program["memory"]:
            _print(_memory_table(result))
        elif not result["is_split_only"]:
            say("this compiler does not tell what the program needs of memory")
    counted = f"{result['traced_flops'] / 1e12:.3f} TFLOP in its convolutions and products as traced"
    if program and program["flops"]:
        by_compiler = program["flops"] * devices / 1e12
        counted += f"; {by_compiler:.3f} by the compiler's count of its programs, {by_compiler / devices:.3f} a device"
    say(f"a step: {counted}")
    if program:
        _print_collectives(program["collectives"])
    _print_largest(result)
    if best := result["roofline"]:
        ms = {name: f"{1e3 * best[name]:.1f} ms" for name in ("compute", "memory", "communication")}
        say(
            f"roofline, an ESTIMATE from published peaks: at most {best['images_per_second']:,.0f} "
            f"images/s, {best['images_per_second'] / devices:,.1f} a chip; arithmetic {ms['compute']}, memory "
            f"{ms['memory']}, communication {ms['communication']}: bound by {best['bound']}"
        )
        if dtype == "float32" and result["topology"].startswith("gpu"):
            say("  (at the peak for TF32, as which JAX multiplies float32 on a GPU by default)")
        elif dtype == "float32":
            say("  (at the peak for bfloat16, as which JAX multiplies float32 on a TPU by default)")


def _memory_table(result: Mapping[str, Any]) -> rich.table.Table:
    memory, hbm = result["program"]["memory"], result["hbm_for_programs"]
    table = _table("memory of each device", "GiB", "", first="")
    notes = {
        "arguments": "state and batch",
        "temporaries": "activations, gradients, at the peak",
        "output": "that takes the place of no argument",
        "code": "the program itself",
    }
    for name, note in notes.items():
        table.add_row(name, "not known" if memory[name] is None else _gib(memory[name]), note)
    if any(memory[name] is None for name in notes):
        return table
    total = sum(memory.values())
    table.add_section()
    fits = "" if hbm is None else f"fits, {total / hbm:.0%}" if result["fits"] else "DOES NOT FIT"
    table.add_row("all", _gib(total), fits)
    if hbm is not None:
        published = f"of the chip's {_gib(result['hbm_bytes'])}" if result["hbm_bytes"] else ""
        table.add_row("there is for programs", _gib(hbm), published)
    return table


def _print_collectives(collectives: list[dict[str, Any]]) -> None:
    if not collectives:
        say("no collectives: the devices, or the one device, do not talk to each other")
        return
    table = _table("collectives of a step", "type", "times", "among", "MiB", "sent by a device", first="kind")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    for one in collectives:
        groups[one["kind"], ", ".join(one["dtypes"]), one["group"]].append(one)
    for (kind, dtypes, group), some in groups.items():
        total = sum(one["count"] * one["bytes"] for one in some)
        sent = sum(one["sent_bytes"] for one in some)
        table.add_row(kind, dtypes, str(sum(one["count"] for one in some)), str(group), _mib(total), _mib(sent))
    _print(table)


def _print_largest(result: Mapping[str, Any]) -> None:
    largest, devices = result["largest"], result["devices"]
    if largest is None:
        return
    images = largest["images_per_device"]
    how = "an ESTIMATE by" if largest["method"] == "estimate" else "compiled;"
    say(f"batch that would fit: {images * devices}, {images} on each device ({how} {largest['by']})")


def _table(title: str, *columns: str, first: str) -> rich.table.Table:
    table = rich.table.Table(first, title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


def _print(table: rich.table.Table) -> None:
    rich.console.Console(highlight=False).print(table)


def _shape(array: Any, skip: int = 0) -> str:
    return " x ".join(map(str, array.shape[skip:]))


def _sizes(leaves: list[Any]) -> tuple[str, str, str]:
    numbers = sum(math.prod(leaf.shape) for leaf in leaves)
    return str(len(leaves)), f"{numbers:,}", _mib(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))


def _mib(count: float) -> str:
    return f"{count / 2**20:,.1f}"


def _gib(count: float) -> str:
    return f"{count / 2**30:.3f}"

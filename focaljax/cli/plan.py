"""focaljax plan: memory, arithmetic and communication of the train step, compiled for devices that need not be there.

Usage: focaljax plan --config FILE [--topology NAME] [--batch N] [--config.KEY=VALUE ...]

  --config FILE         a Python file with get_config(); no data are read
  --config.KEY=VALUE    overrides one setting, e.g. --config.model.remat=true --config.model.dtype=bfloat16
  --topology NAME       v5e:4x4, v5p:2x2x4, v6e:8x8 and so on: compiled by the real TPU compiler, which needs no TPU
                        but libtpu (pip install 'focaljax[tpu]'); takes minutes. gpu:8: for GPUs that are here,
                        else for H100s, by the GPU compiler (pip install 'focaljax[cuda]'; see below). cpu:8: for so
                        many devices of a CPU.
                        Without it: the dry run, for the devices that are here: shapes, parameters, memory
  --batch N             images in a step of all devices together (default: the config's optim.batch_size)
  --classes N           (default: as many as data.classes names, of `shapes` its own, else COCO's 80)
  --boxes N             rows for the boxes of an image (default: the config's data.max_boxes, of `shapes` its own,
                        else 100)
  --nofit               for a TPU or GPU, do not compile for half the batch (for twice one image) as well, which the
                        estimate of the largest batch needs
  --search              compile for more batch sizes until the largest that fits is known to an eighth
  --json FILE           write the result with config, command and versions

Prints what a step needs on each chip of its memory and whether that fits, floating point operations, collectives with
their bytes, the batch that would fit, and a roofline: images/s that published peaks would allow, an estimate. Memory
is in GiB (2^30 bytes), as the compilers have it.

Without a GPU its compiler cannot try which of cuDNN's algorithms is the fastest: the scratch space of convolutions is
not in the temporaries. Where it is not installed, the step is only split for so many devices of the CPU, which tells
the collectives before the GPU compiler joins them (of bfloat16 with float32's bytes, as a CPU sends it), and what state
and batch need; no temporaries, no roofline.

Example:
  focaljax plan --config configs/coco_r50_1x.py --topology v5e:4x4 --batch 256
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from focaljax.cli import build, plan_tables
from focaljax.cli.config import load_config, parse_flags, split_config_flags
from focaljax.cli.console import duration, say
from focaljax.cli.main import UsageError
from focaljax.cli.plan_targets import Target, target_of, topology_of
from focaljax.data.augmentation import Augmentation
from focaljax.training.plan import (
    DoesNotFitError,
    Program,
    compile_program,
    images_that_fit,
    largest_fitting,
    roofline,
    traced_flops,
)
from focaljax.training.topologies import Topology

_COCO_CLASSES = 80
_BOXES = 100


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    config_arguments, others = split_config_flags(arguments)
    flag_values = flags.FlagValues()
    flags.DEFINE_string("topology", "", "of the devices", flag_values=flag_values)
    for name in ("batch", "classes", "boxes"):
        flags.DEFINE_integer(name, None, "how many", lower_bound=1, flag_values=flag_values)
    flags.DEFINE_boolean("fit", True, "compile for half the batch as well", flag_values=flag_values)
    flags.DEFINE_boolean("search", False, "compile for more batch sizes", flag_values=flag_values)
    flags.DEFINE_string("json", "", "where the result is written", flag_values=flag_values)
    if unexpected := parse_flags(others, flag_values):
        raise UsageError(f"unexpected argument {unexpected[0]!r}; see `focaljax plan --help`")
    config = load_config(config_arguments)
    out = _writable(flag_values.json)
    topology = topology_of(flag_values.topology)
    config.optim.batch_size = flag_values.batch or config.optim.batch_size
    config.data.max_boxes = flag_values.boxes or config.data.max_boxes or _most_boxes(config)
    classes = flag_values.classes or _number_of_classes(config)
    _check_batch(config, topology)
    target = target_of(topology, config)
    _check(config, target.mesh)
    estimate_fit = flag_values.fit and topology is not None and topology.chip is not None
    result = plan(config, target, classes, estimate_fit=estimate_fit, search=flag_values.search)
    if out is not None:
        command = shlex.join(["focaljax", "plan", *arguments])
        _write(out, {"command": command, **result, "config": config.to_dict()})
    return 0


def plan(config: ConfigDict, target: Target, classes: int, *, estimate_fit: bool, search: bool) -> dict[str, Any]:
    """Compiles the train step, prints what that tells, and returns it in the form of the JSON file.

    Args:
        config: with the global batch size and the rows for boxes.
        target: what it is compiled for.
        classes: K.
        estimate_fit: compile for a smaller batch too, for the estimate of the largest one.
        search: compile for more.
    """
    mesh, topology = target.mesh, target.topology
    devices, unit = mesh.size, config.optim.accumulate
    images = config.optim.batch_size // devices
    step = _Step(config, target, classes)
    say(step.title())
    if topology is None:
        plan_tables.print_shapes(step.model, config, step.state, step.batch, devices)
    outcome = step.compile(images)
    program = outcome if isinstance(outcome, Program) else None
    largest = _largest(step, images, unit, target.hbm, search=search) if estimate_fit or search else None
    chip = topology.chip if topology else None
    best = None
    if chip and program and not target.is_split_only:
        # Compilers count the operations of a loop's body, which that of accumulation is, once.
        counted = program if unit == 1 else dataclasses.replace(program, flops=math.nan)
        is_float32 = config.model.dtype == "float32"
        best = roofline(counted, chip, config.optim.batch_size, step.flops / devices, is_float32=is_float32)
    result: dict[str, Any] = {
        "title": step.title(),
        "topology": topology.name if topology else None,
        "devices": devices,
        "device_kind": mesh.devices.flat[0].device_kind,
        "is_split_only": target.is_split_only,
        "batch_size": config.optim.batch_size,
        "images_per_device": images,
        "classes": classes,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(step.state.params)),
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.state)),
        "hbm_bytes": chip.hbm_bytes if chip else None,
        "hbm_for_programs": target.hbm,
        "fits": _fits(outcome, target.hbm),
        "refusal": None if program else str(outcome).splitlines()[0],
        "traced_flops": step.flops,
        "program": _as_dict(program, target.is_split_only) if program else None,
        "roofline": {**dataclasses.asdict(best), "bound": best.bound} if best else None,
        "largest": largest,
        "versions": _versions(),
    }
    plan_tables.print_result(result, config.model.dtype)
    return result


class _Step:
    """The train step of a config, to be compiled for several numbers of images on a device."""

    def __init__(self, config: ConfigDict, target: Target, classes: int) -> None:
        self._config, self._target, self._classes = config, target, classes
        self.model = build.make_model(config, classes)
        self._optimizer, self._schedule = build.make_optimizer_and_schedule(config)
        self.state = jax.eval_shape(build.initial_state(config, self.model, self._optimizer, target.mesh))
        self.batch = build.example_batch(config)
        self.flops = 0  # of the whole batch as traced, once it is
        self.outcomes: dict[int, Program | DoesNotFitError] = {}

    def title(self) -> str:
        """Returns what is planned, in one line."""
        config, devices = self._config, self._target.mesh.size
        topology = self._target.topology
        height, width = config.data.image_size
        where = topology.name if topology else "the devices that are here"
        parts = f" in {config.optim.accumulate} parts" if config.optim.accumulate > 1 else ""
        return (
            f"{config.model.backbone}, {config.model.dtype}{', remat' if config.model.remat else ''}, "
            f"{height} x {width} px, {self._classes} classes, {config.data.max_boxes} boxes; batch "
            f"{config.optim.batch_size}{parts} on {where}: {devices} devices, {config.optim.batch_size // devices} "
            "images each"
        )

    def compile(self, images: int) -> Program | DoesNotFitError:
        """Returns the program for so many images on each device, or the compiler's refusal; each is made once."""
        if images in self.outcomes:
            return self.outcomes[images]
        mesh = self._target.mesh
        config = self._config.copy_and_resolve_references()
        config.optim.batch_size = images * mesh.size
        step: Any = build.compiled_train_step(config, self.model, self._optimizer, self._schedule, mesh)
        kind = mesh.devices.flat[0].device_kind
        takes = ", which takes minutes" if self._target.mesh.devices.flat[0].platform == "tpu" else ""
        say(f"compiling the train step for {mesh.size} x {kind}, {images} images each{takes} ...")
        traced = step.trace(self.state, build.example_batch(config))
        self.flops = self.flops or traced_flops(traced.jaxpr)
        try:
            program = compile_program(traced, mesh.size, self._target.options)
        except DoesNotFitError as error:
            say(f"  refused: {str(error).splitlines()[0]}")
            self.outcomes[images] = error
        else:
            how = "taken from the compile cache" if program.is_from_cache else "compiled"
            needs = "" if self._target.is_split_only else plan_tables.in_short(program)
            say(f"  {how} in {duration(program.seconds)}{needs}")
            self.outcomes[images] = program
        return self.outcomes[images]


def _largest(step: _Step, images: int, unit: int, hbm: int | None, *, search: bool) -> dict[str, Any] | None:
    """Returns how many images a device could take, by which method, or None if nothing tells."""
    if hbm is None:
        say("the largest batch is not looked for: how much memory these devices have is not known")
        return None
    while len(_points(step)) < 2 and images > unit:
        images = max(unit, images // 2 // unit * unit)
        step.compile(images)
    if len(_points(step)) == 1 and images == unit:
        step.compile(2 * unit)
    points = _points(step)
    if len(points) < 2:
        say("the largest batch is not known: the step was compiled for one batch size only")
        return None
    estimate = images_that_fit(points[-2:], hbm, unit)
    by = f"the line through the programs for {points[-2][0]} and {points[-1][0]} images"
    if not search:
        if estimate is None:
            say(f"the largest batch is not known: memory does not grow from {points[-2][0]} to {points[-1][0]} images")
            return None
        return {"images_per_device": estimate, "method": "estimate", "by": by}

    def fits(images: int) -> bool:
        return _fits(step.compile(images), hbm) is True

    known = max((count for count, needed in points if needed <= hbm), default=0)
    most, refused = largest_fitting(fits, known, estimate or known, unit)
    return {"images_per_device": most, "method": "compiled", "by": f"{refused} do not fit"}


def _fits(outcome: Program | DoesNotFitError, hbm: int | None) -> bool | None:
    """Returns whether a step fits; None where nothing tells."""
    if isinstance(outcome, DoesNotFitError):
        return False
    return None if hbm is None or outcome.memory is None else outcome.memory.total <= hbm


def _points(step: _Step) -> list[tuple[int, int]]:
    return sorted(
        (images, outcome.memory.total)
        for images, outcome in step.outcomes.items()
        if isinstance(outcome, Program) and outcome.memory is not None
    )


def _check_batch(config: ConfigDict, topology: Topology | None) -> None:
    """Refuses a batch that the devices cannot share, before a compiler is started."""
    unit = config.optim.accumulate * (topology.devices if topology else 1)
    if unit > 0 and config.optim.batch_size % unit:
        raise UsageError(
            f"batch size {config.optim.batch_size} must be a multiple of {unit}, the number of devices times "
            "optim.accumulate: set --batch"
        )


def _check(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    config = config.copy_and_resolve_references()
    if config.eval.batch_size % mesh.size:
        say(
            f"note: `focaljax train` on {mesh.size} devices needs an eval.batch_size that is a multiple of "
            f"{mesh.size}, not {config.eval.batch_size}"
        )
        config.eval.batch_size = mesh.size
    build.check_config(config, mesh)


def _most_boxes(config: ConfigDict) -> int:
    if config.data.source != "shapes":
        return _BOXES
    return config.data.shapes.objects * Augmentation(**config.augment).images_in_view


def _number_of_classes(config: ConfigDict) -> int:
    if config.data.source == "shapes":
        return config.data.shapes.num_classes
    return len(config.data.classes) or _COCO_CLASSES


def _as_dict(program: Program, is_split_only: bool) -> dict[str, Any]:
    values = dataclasses.asdict(program)
    values["flops"], values["bytes_accessed"] = (
        None if math.isnan(values[key]) else values[key] for key in ("flops", "bytes_accessed")
    )
    for one, values_of_one in zip(program.collectives, values["collectives"], strict=True):
        values_of_one["sent_bytes"] = one.sent_bytes
    if is_split_only:
        values |= {"flops": None, "bytes_accessed": None, "traffic": None}
        if values["memory"]:
            values["memory"] |= {"temporaries": None, "code": None}
    return values


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in ("focaljax", "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _writable(path: str) -> pathlib.Path | None:
    """Returns the path of the result, None if none is asked for; compiling, which takes long, comes after it."""
    if not path:
        return None
    out = pathlib.Path(path)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--json={path} cannot be written: {error.strerror}") from None
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UsageError(f"--json={path} cannot be written: name a file in a folder of yours")
    return out


def _write(path: pathlib.Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=2) + "\n")
    say(f"wrote {path}")

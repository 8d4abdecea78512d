"""focaljax export: a trained detector as one file that runs without focaljax.

Usage: focaljax export (--weights FILE | --workdir DIR) --out FILE [FLAGS] [IMAGE...]

  --out FILE            model.stablehlo: a program for jax alone, images in, objects out, suppression inside; or
                        model.onnx: for other runtimes, boxes and scores of all anchors (needs the extra `onnx`)
  --workdir DIR         of a run of `focaljax train`
  --step STEP           with --workdir: which checkpoint, latest (the default), best or the number of a step
  --weights FILE        or a file of weights, as `focaljax predict` takes it, with its --variant, --norm_epsilon and
                        --classes
  --image_size H,W      with --weights: height and width that the file takes (default: what a photo of 640 x 480 gets)
  --platforms P,P,...   of a .stablehlo: some of cpu, cuda, rocm, tpu (default cpu,cuda,tpu)
  --flip                look at each image mirrored too; of a .stablehlo
  --force               overwrite FILE
  --config.KEY=VALUE    with --workdir: overrides a setting of the groups `eval` and `data`, as for `focaljax predict`
  IMAGE                 up to 8 files or folders to check the file with (default: images that the program draws)

Weights, normalisation and decoding are inside; the number of images is free. Beside FILE goes FILE.json: image size,
classes, thresholds, versions. The file is run in a new process that has jax alone (a .onnx by
onnxruntime) with one image and with several, and gets its name only if it finds what the detector finds.
How to use the files: docs/export.md.

Example:
  focaljax export --workdir runs/shapes --out model.stablehlo
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from focaljax import __version__
from focaljax.cli.config import parse_flags, split_config_flags
from focaljax.cli.console import say
from focaljax.cli.detector_flags import define_detector_flags, detector_loader
from focaljax.cli.main import UsageError, nearest
from focaljax.cli.predict import find_images
from focaljax.data.files import read_regular_file
from focaljax.data.images import decode_upright_image
from focaljax.data.shapes_drawing import draw_example, example_rng
from focaljax.data.transforms import AREA_BELOW, resize_and_pad
from focaljax.data.views import View
from focaljax.detector import Detector
from focaljax.evaluation import onnx_program, run_exported
from focaljax.evaluation.export import (
    BFLOAT16,
    FLOAT32,
    ONNX,
    OUTPUTS,
    PLATFORMS,
    Differences,
    ExportError,
    check_among,
    check_differences,
    compare_detections,
    export_detector,
    make_anchor_step,
)
from focaljax.evaluation.inference import make_predict_step

# By a file's suffix the packages that writing and running it takes, and the extra that brings them.
_NEEDS = {".stablehlo": (("flatbuffers",), "train"), ".onnx": (("jax2onnx", "onnxruntime"), "onnx")}
_MOST_IMAGES, _FEWEST_IMAGES = 8, 3

Batch = tuple[np.ndarray, np.ndarray]


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    overrides, others = split_config_flags(arguments)
    flag_values = _flags()
    names = parse_flags(others, flag_values)
    out = _destination(flag_values.out, is_forced=flag_values.force)
    platforms = _platforms(flag_values.platforms)
    if out.suffix == ".onnx":
        if flag_values["platforms"].present:
            raise UsageError("--platforms goes with a .stablehlo: a .onnx is for all that its runtime knows")
        platforms = ("cpu",)
    image_size = _image_size(flag_values)
    files = find_images(names) if names else []
    if len(files) > _MOST_IMAGES:
        raise UsageError(f"{len(files)} images: {_MOST_IMAGES} at most, all go through the network together")
    if "cpu" in platforms:
        # Exporting needs no accelerator, and the process that checks could not have the same one.
        jax.config.update("jax_platforms", "cpu")
    detector = detector_loader(flag_values, overrides)()
    if detector.scales != (1.0,):
        raise UsageError(
            f"scales {', '.join(map(str, detector.scales))}: an exported file takes one view of an image, at scale 1; "
            "leave --scales out, or set --config.eval.tta_scales='(1.0,)'"
        )
    say(f"exporting {detector.description}")
    image_size = image_size or detector.view(np.zeros((480, 640, 3), np.uint8)).image.shape[:2]
    batches = _batches(files, image_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    unchecked = out.with_name(f"{out.name}.unchecked")
    try:
        about = _about(detector, image_size)
        if out.suffix == ".onnx":
            _export_onnx(detector, unchecked, image_size, batches)
        else:
            about |= _export_stablehlo(detector, unchecked, image_size, platforms, batches)
        unchecked.replace(out)
        _about_file(out).write_text(json.dumps(about, indent=2) + "\n")
    finally:
        unchecked.unlink(missing_ok=True)
    say(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB) and {_about_file(out).name}")
    return 0


def _export_stablehlo(
    detector: Detector,
    path: pathlib.Path,
    image_size: tuple[int, int],
    platforms: tuple[str, ...],
    batches: Sequence[Batch],
) -> dict[str, Any]:
    """Writes and checks the program; returns what is particular to it."""
    start = time.perf_counter()
    step = make_predict_step(detector.model, **detector.step_settings)
    program = export_detector(step, detector.variables(), image_size=image_size, platforms=platforms)
    path.write_bytes(program.serialize())
    _say_made("program for " + ", ".join(platforms), path, start)
    if "cpu" in platforms:
        _check_stablehlo(detector, path, batches)
    else:
        say(f"not checked: it is for {', '.join(platforms)}, and checks run on the CPU; add cpu to --platforms")
    return {
        "platforms": list(platforms),
        "is_checked": "cpu" in platforms,
        "flip": detector.step_settings["flip"],
        "calling_convention_version": program.calling_convention_version,
    }


def _check_stablehlo(detector: Detector, path: pathlib.Path, batches: Sequence[Batch]) -> None:
    start = time.perf_counter()
    found, seconds = _run_alone(path, batches)
    say(f"ran in a process with jax alone: {time.perf_counter() - start:.1f} s, {seconds:.2f} s of them the last batch")
    tolerance = BFLOAT16 if detector.model.dtype == jnp.bfloat16 else FLOAT32
    for index, (images, sizes) in enumerate(batches):
        expected = detector.predict_views(images, sizes)
        differences = compare_detections(
            {name: np.asarray(getattr(expected, name)) for name in OUTPUTS},
            {name: found[f"{name}_{index}"] for name in OUTPUTS},
            tolerance=tolerance,
            score_threshold=detector.step_settings["thresholds"]["score_threshold"],
        )
        check_differences(differences, tolerance)
        _say_compared(len(images), "objects", differences)
        if not differences.count:
            say("nothing was found, so little was compared: name images with objects that the detector knows")


def _run_alone(path: pathlib.Path, batches: Sequence[Batch]) -> tuple[dict[str, np.ndarray], float]:
    """Returns what the program finds in a new process without focaljax, and the seconds of the last batch."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = (os.path.join(folder, name) for name in ("inputs.npz", "outputs.npz"))
        arrays: dict[str, Any] = {}
        for index, (images, sizes) in enumerate(batches):
            arrays |= {f"images_{index}": images, f"sizes_{index}": sizes}
        np.savez(inputs, **arrays)
        # -P: the script's folder is no place to import from.
        command = [sys.executable, "-P", run_exported.__file__, str(path), inputs, outputs]
        result = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False
        )
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
            raise ExportError(f"the program does not run in a process of its own, so it was removed: {lines[-1]}")
        with np.load(outputs) as found:
            return {name: found[name] for name in found.files}, float(found["seconds"])


def _export_onnx(detector: Detector, path: pathlib.Path, image_size: tuple[int, int], batches: Sequence[Batch]) -> None:
    """Writes and checks the ONNX file."""
    settings = {name: detector.step_settings[name] for name in ("anchors", "pixels", "softmax")}
    if detector.step_settings["flip"]:
        raise UsageError("--flip: a .onnx ends before the views are merged; leave it out, or set eval.tta_flip=false")
    start = time.perf_counter()
    # Runtimes lack convolutions of bfloat16; the weights are float32.
    model, variables = detector.model.clone(dtype=jnp.float32), detector.variables()
    step = make_anchor_step(model, **settings)
    thresholds = {**detector.step_settings["thresholds"], "suppression": "hard"}
    detect = jax.jit(make_predict_step(model, **{**detector.step_settings, "thresholds": thresholds}))
    onnx_program.write_onnx(step, variables, path, image_size=image_size)
    _say_made("ONNX file", path, start)
    for images, sizes in batches:
        start = time.perf_counter()
        boxes, scores = onnx_program.run_onnx(path, images, sizes)
        seconds = time.perf_counter() - start
        expected = jax.jit(step)(variables, images, sizes)
        differences = Differences(
            count=boxes.shape[0] * boxes.shape[1],
            box=float(np.max(np.abs(boxes - expected[0]))),
            score=float(np.max(np.abs(scores - expected[1]))),
        )
        check_differences(differences, ONNX)
        found = detect(variables, {"image": images, "size": sizes})
        check_among({name: np.asarray(getattr(found, name)) for name in OUTPUTS}, boxes, scores)
        _say_compared(len(images), f"anchors, onnxruntime in {seconds:.1f} s", differences)


def _about_file(out: pathlib.Path) -> pathlib.Path:
    return out.with_name(f"{out.name}.json")


def _about(detector: Detector, image_size: tuple[int, int]) -> dict[str, Any]:
    """Returns what a user of the file has to know."""
    return {
        "detector": detector.description,
        "image_size": list(image_size),
        "keeps_aspect_ratio": keeps_aspect_ratio(detector.view),
        "largest_sides": largest_sides(detector.view),
        "averages_below": averages_below(detector.view),
        "categories": [
            {"id": category_id, "name": name}
            for category_id, name in zip(detector.category_ids, detector.class_names, strict=True)
        ],
        "thresholds": dict(detector.step_settings["thresholds"]),
        "versions": {"focaljax": __version__, "jax": jax.__version__},
    }


def keeps_aspect_ratio(make_view: Callable[[np.ndarray], View]) -> bool:
    """Returns whether the view scales images, as all detectors but MLPerf's do, or stretches them to one shape."""
    wide, tall = (make_view(np.zeros((*shape, 3), np.uint8)).size for shape in ((60, 120), (120, 60)))
    return not np.array_equal(wide, tall)


def largest_sides(make_view: Callable[[np.ndarray], View]) -> list[int]:
    """Returns the longest that a view makes the shorter and the longer side of an image, in pixels."""
    square, *others = (make_view(np.zeros((*shape, 3), np.uint8)).size for shape in ((600, 600), (30, 600), (600, 30)))
    return [int(square.min()), int(max(size.max() for size in others))]


def averages_below(make_view: Callable[[np.ndarray], View]) -> float:
    """Returns the factor of resizing below which a view averages the pixels that fall together; 0: it never does.

    `fixed_size_view` averages and gives whole values, `shortest_edge_view`, as published detectors, does neither.
    """
    return AREA_BELOW if make_view(np.zeros((32, 32, 3), np.uint8)).image.dtype == np.uint8 else 0.0


def _batches(files: Sequence[pathlib.Path], image_size: tuple[int, int]) -> list[Batch]:
    """Returns a batch of one image and one of several, of the files or drawn, resized to fit and padded."""
    height, width = image_size
    images = [decode_upright_image(read_regular_file(file), file_name=str(file), image_id=0) for file in files]
    if not images:
        # Contents of three shapes, so that the padding counts.
        shapes = [(height, width), (height, -(-width // 2)), (-(-height // 2), width)]
        images = [_drawn(*shape, index) for index, shape in enumerate(shapes)]
    images = (images * _FEWEST_IMAGES)[: max(len(images), _FEWEST_IMAGES)]
    rows = [resize_and_pad(image, height=height, width=width) for image in images]
    padded, sizes = np.stack([row[0] for row in rows]), np.array([row[1] for row in rows], np.int32)
    return [(padded[:1], sizes[:1]), (padded, sizes)]


def _drawn(height: int, width: int, index: int) -> np.ndarray:
    """Returns an image of shapes of this aspect, of at least the side that can be drawn."""
    factor = max(1, -(-32 // min(height, width)))
    return draw_example(example_rng(0, "test", index), height=factor * height, width=factor * width)[0]


def _say_made(what: str, path: pathlib.Path, start: float) -> None:
    say(f"made the {what}: {path.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - start:.1f} s")


def _say_compared(images: int, what: str, differences: Differences) -> None:
    say(
        f"batch of {images}: {differences.count} {what}, boxes within {differences.box:.1e} px and scores within "
        f"{differences.score:.1e} of the detector's"
        + (f"; {differences.others} that only one of them found, as can be with bfloat16" if differences.others else "")
    )


def _flags() -> flags.FlagValues:
    flag_values = flags.FlagValues()
    define_detector_flags(flag_values)
    flags.DEFINE_string("out", "", "the file", flag_values=flag_values)
    flags.DEFINE_list("image_size", None, "height and width", flag_values=flag_values)
    flags.DEFINE_list("platforms", "cpu,cuda,tpu", "to compile for", flag_values=flag_values)
    flags.DEFINE_bool("force", False, "overwrite", flag_values=flag_values)
    return flag_values


def _destination(name: str, *, is_forced: bool) -> pathlib.Path:
    if not name:
        raise UsageError("--out=FILE is needed: model.stablehlo or model.onnx")
    out = pathlib.Path(name)
    if out.suffix not in _NEEDS:
        raise UsageError(f"--out={out}: the name must end in .stablehlo or .onnx, which says what is written")
    if out.is_dir():
        raise UsageError(f"--out={out} is a folder: name a file")
    above = next(path for path in out.parents if path.exists())
    if not above.is_dir():
        raise UsageError(f"--out={out}: {above} is a file, not a folder")
    taken = [path for path in (out, _about_file(out)) if path.exists()]
    if taken and not is_forced:
        raise UsageError(f"{taken[0]} exists already; --force overwrites it")
    packages, extra = _NEEDS[out.suffix]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"a {out.suffix} file needs the package {missing[0]}: pip install 'focaljax[{extra}]'")
    return out


def _platforms(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in PLATFORMS:
            raise UsageError(f"--platforms: {name!r} is none of {', '.join(PLATFORMS)}{nearest(name, PLATFORMS)}")
    if not names:
        raise UsageError(f"--platforms is empty: name some of {', '.join(PLATFORMS)}")
    return tuple(dict.fromkeys(names))


def _image_size(flag_values: flags.FlagValues) -> tuple[int, int] | None:
    sides = flag_values.image_size
    if sides is None:
        return None
    if flag_values.workdir:
        raise UsageError(
            "--image_size goes with --weights: a run has data.image_size, --config.data.image_size='(H,W)'"
        )
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and 0 < int(side) <= 8192 for side in sides):
        raise UsageError(f"--image_size={','.join(sides)}: expected height and width in pixels, such as 800,1088")
    return int(sides[0]), int(sides[1])

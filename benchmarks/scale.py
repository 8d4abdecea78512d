"""Measures how cost grows with the work: by batch, image size, boxes on an image, classes, and size of the data set.

python benchmarks/scale.py [--sweeps batch,size,boxes,classes,data] [--backbone resnet50] [--steps 5] ...

The train step is that of RetinaNet with frozen normalisation, in float32, on synthetic images, everything but what is
swept at batch 2, 256 x 256 px, 8 boxes, 80 classes (size: batch 1). The data set is a COCO file of 8 boxes an image,
whose images are links to one small file: seconds until its source can be read from, files looked at and not, and how
much memory it then holds; and seconds until the first batch.

'growth' is the exponent between a point and the one before: 1 is in proportion, less is cheaper by the piece, 2 is
quadratic. Prints tables, draws docs/images/scale.png and writes JSON with the machine, the versions, the seed, the
commit and the date.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import command
import numpy as np
import report

PLOT = pathlib.Path(__file__).parent.parent / "docs" / "images" / "scale.png"
BOXES_AN_IMAGE = 8


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What grows, and what else is other than usual.

    Attributes:
        title: of the axis.
        values: in increasing order.
        settings: from a value to settings of `measure_step`.
    """

    title: str
    values: tuple[int, ...]
    settings: Callable[[int], dict[str, int]]


SWEEPS = {
    "batch": Sweep("images a batch", (1, 2, 4, 8), lambda value: {"batch": value}),
    # By pixels: twice the side is four times the work.
    "size": Sweep("side of the image, px", (128, 256, 384, 512, 640), lambda value: {"size": value, "batch": 1}),
    "boxes": Sweep("boxes on an image", (1, 10, 50, 100, 200, 500), lambda value: {"boxes": value}),
    "classes": Sweep("classes", (1, 20, 80, 365, 1203), lambda value: {"classes": value}),
}
DATA = "data"
ANNOTATIONS = (1_000, 10_000, 100_000, 1_000_000)


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (*SWEEPS, DATA)
    parser.add_argument("--sweeps", type=command.some_of(names), default=names, metavar=",".join(names))
    parser.add_argument("--backbone", default="resnet50", help="default: resnet50")
    parser.add_argument("--steps", type=command.count, default=5, metavar="N", help="timed at each point, default: 5")
    parser.add_argument("--points", type=command.count, metavar="N", help="of each sweep the first N only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=command.RESULTS / "scale.json")
    parser.add_argument(
        "--plot", type=pathlib.Path, default=PLOT, metavar="FILE", help="default: docs/images/scale.png"
    )
    parser.add_argument("--index", nargs=2, help=argparse.SUPPRESS)  # this script as a process of its own
    options = parser.parse_args(arguments)
    if options.index:
        folder, mode = options.index
        print(json.dumps(index_data_set(pathlib.Path(folder), check_images=mode == "checked")))
        return
    sweeps: dict[str, Any] = {}
    for name in options.sweeps:
        values = ANNOTATIONS if name == DATA else SWEEPS[name].values
        points = []
        for value in values[: options.points]:
            print(f"{name} {value:,} ...", file=sys.stderr, flush=True)
            if name == DATA:
                points.append({"value": value, **measure_data_set(value)})
            else:
                settings = SWEEPS[name].settings(value)
                point = measure_step(options.backbone, steps=options.steps, seed=options.seed, **settings)
                points.append({"value": value, **point})
        sweeps[name] = with_growth(name, points)
    import jax

    device = jax.devices()[0]
    versions = {"jax": jax.__version__, "numpy": np.__version__}
    result = {
        "work": {"backbone": options.backbone, "steps": options.steps, "seed": options.seed},
        **report.provenance([{"device": device.device_kind, "versions": versions}], device.platform),
        "sweeps": sweeps,
    }
    print(table(result))
    report.write(options.out, result)
    draw(result, options.plot)


def measure_step(
    backbone: str, *, steps: int, seed: int, batch: int = 2, size: int = 256, boxes: int = 8, classes: int = 80
) -> dict[str, Any]:
    """Returns what `train_step.measure` does for such a network and batch."""
    import train_step

    from focaljax.cli.config import default_config

    config = default_config()
    config.seed = seed
    config.model.update(backbone=backbone, norm="frozen_batch_norm", freeze_at=2)
    config.optim.batch_size = batch
    config.data.image_size = (size, size)
    return train_step.measure(config, classes=classes, boxes=boxes, steps=steps)


def measure_data_set(annotations: int) -> dict[str, Any]:
    """Returns seconds and memory until a data set with so many boxes can be read from, files looked at and not."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_data_set(folder, annotations)
        point: dict[str, Any] = {
            "images": annotations // BOXES_AN_IMAGE,
            "json_mb": round((folder / "annotations.json").stat().st_size / 1e6, 1),
        }
        for mode in ("checked", "unchecked"):
            arguments = [sys.executable, __file__, "--index", name, mode]
            env = os.environ | {"JAX_PLATFORMS": "cpu"}
            answer = json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, env=env).stdout)
            point |= {f"{key}_{mode}": value for key, value in answer.items()}
    return point


def make_data_set(folder: pathlib.Path, annotations: int) -> None:
    """Writes a COCO file and its images folder."""
    import cv2

    (folder / "images").mkdir()
    first = folder / "one.jpg"
    cv2.imwrite(str(first), np.full((48, 64, 3), 90, np.uint8))
    images = annotations // BOXES_AN_IMAGE
    for index in range(images):
        os.symlink(first, folder / "images" / f"{index:012}.jpg")
    rng = np.random.default_rng(0)
    corners, sides = rng.integers(0, 30, (annotations, 2)), rng.integers(1, 18, (annotations, 2))
    document = {
        "images": [{"id": i, "file_name": f"{i:012}.jpg", "height": 48, "width": 64} for i in range(images)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i // BOXES_AN_IMAGE,
                "category_id": i % 80 + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for i, box in enumerate(np.concatenate([corners, sides], axis=1).tolist())
        ],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 81)],
    }
    (folder / "annotations.json").write_text(json.dumps(document))


def index_data_set(folder: pathlib.Path, *, check_images: bool) -> dict[str, float]:
    """Returns seconds to open the source, MiB that it holds, MiB at the peak, and seconds to the first batch."""
    import contextlib

    from focaljax.data.coco import CocoSource
    from focaljax.data.pipeline import training_batches
    from focaljax.data.transforms import Augmentation

    gc.collect()
    before = _resident_mib("VmRSS")
    start = time.perf_counter()
    source = CocoSource(folder / "images", folder / "annotations.json", check_images=check_images)
    opened = time.perf_counter() - start
    gc.collect()
    held, peak = _resident_mib("VmRSS") - before, _resident_mib("VmHWM") - before
    start = time.perf_counter()
    sizes = {"batch_size": 16, "height": 64, "width": 64, "max_boxes": BOXES_AN_IMAGE}
    with contextlib.closing(training_batches(source, **sizes, seed=0, augmentation=Augmentation())) as batches:
        next(batches)
    first = time.perf_counter() - start
    return {
        "seconds": round(opened, 3),
        "mib": round(held, 1),
        "peak_mib": round(peak, 1),
        "first_batch": round(first, 3),
    }


def with_growth(name: str, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds to each point but the first `growth`: of its time by that of the point before, as an exponent."""
    cost = "seconds_checked" if name == DATA else "milliseconds_a_step"
    for before, point in itertools.pairwise(points):
        work = math.log(point["value"] / before["value"]) * (2 if name == "size" else 1)
        point["growth"] = round(math.log(point[cost] / before[cost]) / work, 2)
    return points


def table(result: dict[str, Any]) -> str:
    """Returns the result for a person to read."""
    lines = [f"{result['work']['backbone']}: {result['machine']['processor']}"]
    for name, points in result["sweeps"].items():
        if name == DATA:
            lines += [
                "",
                f"{'annotations':>12}{'images':>9}{'JSON MB':>9}{'opened s':>10}{'growth':>8}{'unchecked s':>13}"
                f"{'holds MiB':>11}{'peak MiB':>10}{'1st batch s':>13}",
            ]
            lines += [
                f"{p['value']:12,}{p['images']:9,}{p['json_mb']:9.1f}{p['seconds_checked']:10.2f}"
                f"{p.get('growth', ''):>8}{p['seconds_unchecked']:13.2f}{p['mib_unchecked']:11.0f}"
                f"{p['peak_mib_unchecked']:10.0f}{p['first_batch_checked']:13.3f}"
                for p in points
            ]
            continue
        lines += [
            "",
            f"{SWEEPS[name].title:>22}{'ms a step':>11}{'growth':>8}{'images/s':>10}{'GFLOP':>9}{'GFLOP/s':>9}"
            f"{'temporaries MiB':>17}{'compiled s':>12}",
        ]
        lines += [
            f"{p['value']:22,}{p['milliseconds_a_step']:11.1f}{p.get('growth', ''):>8}{p['images_per_second']:10.2f}"
            f"{p['gflop_per_step']:9.1f}{p['gflop_per_second']:9.1f}{p['mib_of_temporaries']:17.0f}"
            f"{p['compile_seconds']:12.1f}"
            for p in points
        ]
    notes = "growth: exponent of the time from the point before; 1: in proportion (of the size: to the pixels)"
    return "\n".join([*lines, "", notes])


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws every sweep: time and memory over what grows, both axes logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    sweeps = result["sweeps"]
    figure, axes = plt.subplots(1, len(sweeps), figsize=(3.6 * len(sweeps), 3.4), squeeze=False, layout="constrained")
    for axis, (name, points) in zip(axes[0], sweeps.items()):
        if name == DATA:
            columns = ("seconds_checked", "s, files looked at"), ("seconds_unchecked", "s, files not looked at")
            memory, title, unit = "mib_unchecked", "annotations in the data set", 1.0
        else:
            columns = (("milliseconds_a_step", "s a step"),)
            memory, title, unit = "mib_of_temporaries", SWEEPS[name].title, 1e-3
        values = [point["value"] for point in points]
        for color, (column, label) in zip(("#1b5e8c", "#7fb3d5"), columns):
            axis.plot(values, [unit * point[column] for point in points], "o-", color=color, label=label)
        times = [unit * point[columns[0][0]] for point in points]
        power = 2 if name == "size" else 1
        line = [times[0] * (value / values[0]) ** power for value in values]
        axis.plot(values, line, ":", color="0.6", label="in proportion" + (" to the pixels" if power == 2 else ""))
        axis.plot(values, [point[memory] / 1024 for point in points], "s--", color="#b35900", label="GiB of memory")
        axis.set(xscale="log", yscale="log", xlabel=title)
        axis.set_xticks(values, [f"{value:,}" for value in values], rotation=45 if name == DATA else 0)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _resident_mib(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field + ":"))


if __name__ == "__main__":
    command.run(main)

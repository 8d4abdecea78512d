"""Times the train step of a config on synthetic images: compile time, seconds a step, images/s, GFLOP/s, memory.

python benchmarks/train_step.py --config configs/shapes.py [--steps 20] [--config.KEY=VALUE ...]

The input pipeline is not part of it. Prints the result and writes benchmarks/results/train_step.json with the machine
and the versions.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
import report
from ml_collections import ConfigDict

from focaljax.cli import build
from focaljax.cli.config import load_config, split_config_flags
from focaljax.training import mesh as meshes

WARM_UP = 3


def main() -> None:
    """Runs the benchmark."""
    config_arguments, others = split_config_flags(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--boxes", type=int, default=12)
    options = parser.parse_args(others)
    device = jax.devices()[0]
    result = {
        "config": next(flag for flag in config_arguments if flag.startswith("--config=")).partition("=")[2],
        "overrides": [flag for flag in config_arguments if not flag.startswith("--config=")],
        **measure(load_config(config_arguments), classes=options.classes, boxes=options.boxes, steps=options.steps),
        "device": f"{jax.device_count()} x {device.device_kind}",
        **report.provenance([{"device": device.device_kind, "versions": {"jax": jax.__version__}}], device.platform),
    }
    print(json.dumps(result, indent=2))
    report.write(pathlib.Path(__file__).parent / "results" / "train_step.json", result)


def measure(config: ConfigDict, *, classes: int, boxes: int, steps: int) -> dict[str, Any]:
    """Returns what the config's train step takes: seconds to compile it, ms a step, images/s, GFLOP and MiB.

    Args:
        config: of a run, without its data.
        classes: K.
        boxes: on each image.
        steps: that are timed, after some that are not.
    """
    mesh = meshes.make_mesh()
    model = build.make_model(config, classes)
    optimizer, schedule = build.make_optimizer_and_schedule(config)
    state = build.initial_state(config, model, optimizer, mesh)()
    batch = meshes.put_batch(synthetic_batch(config, classes, boxes), mesh)
    start = time.perf_counter()
    step = build.compiled_train_step(config, model, optimizer, schedule, mesh).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    for _ in range(WARM_UP):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        state, _ = step(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    flops, memory = (step.cost_analysis() or {}).get("flops", float("nan")), step.memory_analysis()
    return {
        "compile_seconds": round(compile_seconds, 2),
        "milliseconds_a_step": round(1e3 * median, 1),
        "fastest": round(1e3 * min(seconds), 1),
        "images_per_second": round(config.optim.batch_size / median, 2),
        "gflop_per_step": round(flops / 1e9, 2),
        "gflop_per_second": round(flops / 1e9 / median, 1),
        "mib_of_state": round(memory.argument_size_in_bytes / 2**20, 1),
        "mib_of_temporaries": round(memory.temp_size_in_bytes / 2**20, 1),
    }


def synthetic_batch(config: ConfigDict, num_classes: int, num_boxes: int) -> dict[str, np.ndarray]:
    """Returns noise with random boxes, in the form of a training batch."""
    rng = np.random.default_rng(config.seed)
    B, (height, width), N = config.optim.batch_size, config.data.image_size, num_boxes
    size = np.array([width, height], np.float32)
    top_left = rng.uniform(0, 0.7, (B, N, 2)) * size
    sides = rng.uniform(0.05, 0.3, (B, N, 2)) * size
    return {
        "image": rng.integers(0, 256, (B, height, width, 3)).astype(np.uint8),
        "size": np.tile(np.array([height, width], np.int32), (B, 1)),
        "boxes": np.concatenate([top_left, top_left + sides], axis=-1).astype(np.float32),
        "labels": rng.integers(0, num_classes, (B, N)).astype(np.int32),
        "is_crowd": np.zeros((B, N), bool),
        "is_box": np.ones((B, N), bool),
    }


if __name__ == "__main__":
    main()

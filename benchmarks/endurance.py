"""Shows what a run survives: kill -9 at random moments, and many steps without growing.

python benchmarks/endurance.py kills [--kills 30] [--seed 0] [--out FILE]
python benchmarks/endurance.py soak [--steps 2000] [--out FILE]

Both start `focaljax train` with configs/shapes.py made small (64 px, three classes, ResNet-tiny).

kills: a run is killed so many times, every other time while a checkpoint is being written, and started again; its
metrics and its detections must equal those of a run that was left alone, byte for byte.

soak: evaluation every 100 steps, a checkpoint every 50; the memory of the process (median over a hundred steps) at the
end must be within 5% of that from step 200 on.

Prints a table and writes JSON with the machine, the versions, the commit and the date; the exit code is 1 where a
promise was not kept.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import command
import report
from interleaved import WorkerError

ROOT = pathlib.Path(__file__).parent.parent
SMALL = {
    "data.shapes.num_train": 32,
    "data.shapes.num_val": 9,
    "data.shapes.num_test": 2,
    "data.shapes.height": 64,
    "data.shapes.width": 64,
    "data.shapes.num_classes": 3,
    "data.image_size": (64, 64),
    "model.fpn_channels": 8,
    "model.head_depth": 1,
    "model.head_channels": 8,
    "optim.warmup_steps": 2,
    "eval.batch_size": 8,
    "cpu_devices": 1,
}
# In seconds after a run begins to train: when it is killed.
SOONEST, LATEST = 0.0, 3.0
GROWTH = 1.05
SETTLED = 200


def main(arguments: list[str] | None = None) -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "soak"))
    parser.add_argument("--kills", type=command.count, default=30, metavar="N", help="default: 30")
    parser.add_argument("--steps", type=command.count, default=2000, metavar="N", help="of the soak, default: 2000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="default: results/endurance_WHAT.json")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.what == "kills":
            result = kills(pathlib.Path(folder), count=chosen.kills, seed=chosen.seed)
        else:
            result = soak(pathlib.Path(folder), steps=chosen.steps)
    for name, value in result.items():
        print(f"{name.replace('_', ' '):40} {value}")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "orbax-checkpoint", "grain")}
    provenance = report.provenance([{"device": None, "versions": versions}], "cpu")
    report.write(chosen.out or command.RESULTS / f"endurance_{chosen.what}.json", result | provenance)
    if not result["kept"]:
        sys.exit(1)


def kills(folder: pathlib.Path, *, count: int, seed: int) -> dict[str, Any]:
    """Kills a run `count` times and compares its results with those of one that was left alone."""
    # Some steps for each life: a life is a few seconds long.
    settings = {"optim.steps": 40 * count, "eval.every": 50, "checkpoint.every": 5, "log.every": 1}
    alone, killed = folder / "alone", folder / "killed"
    start(folder, alone, settings).communicate()
    rng = random.Random(seed)
    lives, in_saving, done = 0, 0, 0
    while done < count:
        process = start(folder, killed, settings)
        lives += 1
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):
                break
        if done % 2:
            time.sleep(rng.uniform(SOONEST, LATEST))
        else:
            wait_for_a_save(killed, process)
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            raise WorkerError(f"the run ended by itself after {done} kills, with {process.returncode}")
        in_saving += bool(unfinished_saves(killed))
        done += 1
    process = start(folder, killed, settings)
    process.communicate()
    names = ("metrics.jsonl", "detections_val.json", "evaluation_val.json")
    same = {name: (alone / name).read_bytes() == (killed / name).read_bytes() for name in names}
    records = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    places = [(record["step"], record["split"]) for record in records]
    return {
        "kills": done,
        "of_them_while_a_checkpoint_was_written": in_saving,
        "steps": settings["optim.steps"],
        "steps_that_stand_twice_in_the_records": len(places) - len(set(places)),
        **{f"equal_{name}": value for name, value in same.items()},
        "kept": all(same.values()) and len(places) == len(set(places)) and process.returncode == 0,
    }


def soak(folder: pathlib.Path, *, steps: int) -> dict[str, Any]:
    """Watches the memory of one long run."""
    settings = {"optim.steps": steps, "eval.every": 100, "checkpoint.every": 50, "log.every": 10}
    workdir = folder / "run"
    process = start(folder, workdir, settings)
    samples: list[tuple[int, int]] = []
    while process.poll() is None:
        step, memory = last_step(workdir), resident_mib(process.pid)
        if step and memory:
            samples.append((step, memory))
        time.sleep(0.2)
    out, _ = process.communicate()
    if process.returncode:
        raise WorkerError(f"the run failed: {out[-500:]}")
    # A hundred steps hold one evaluation and two checkpoints. What follows the last step (curves) does not count.
    hundreds = {
        start: round(statistics.median(found))
        for start in range(0, steps, 100)
        if (found := [memory for step, memory in samples if start <= step < min(start + 100, steps)])
    }
    at_settled, at_end = hundreds[SETTLED], hundreds[max(hundreds)]
    return {
        "steps": steps,
        f"MiB_from_step_{SETTLED}_on": at_settled,
        "MiB_in_the_last_hundred": at_end,
        "most_MiB": max(memory for _, memory in samples),
        "growth": round(at_end / at_settled, 3),
        "MiB_by_hundreds": list(hundreds.values()),
        "kept": at_end <= GROWTH * at_settled,
    }


def start(folder: pathlib.Path, workdir: pathlib.Path, settings: dict[str, Any]) -> "subprocess.Popen[str]":
    """Starts training; what it says can be read."""
    values = {**SMALL, "data.root": str(folder / "data"), **settings}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "focaljax", "train", "--config", str(ROOT / "configs" / "shapes.py"), *flags]
        + ["--workdir", str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_a_save(workdir: pathlib.Path, process: "subprocess.Popen[str]") -> None:
    """Returns when a checkpoint is being written."""
    while process.poll() is None and not unfinished_saves(workdir):
        time.sleep(0.001)


def unfinished_saves(workdir: pathlib.Path) -> list[str]:
    """Returns the names of checkpoints that are not committed."""
    folder = workdir / "checkpoints"
    return [name for name in os.listdir(folder) if "tmp" in name] if folder.is_dir() else []


def last_step(workdir: pathlib.Path) -> int:
    """Returns the step of the last record, 0 if there is none."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError):
        return 0


def resident_mib(pid: int) -> int:
    """Returns the memory that a process holds, 0 if it is gone."""
    try:
        pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE") // 2**20


if __name__ == "__main__":
    command.run(main)

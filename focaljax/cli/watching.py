"""What a run lets others see of it: loggers, pictures at each evaluation, and a line for each start."""

import importlib.metadata
import json
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from focaljax.cli.main import UsageError, nearest
from focaljax.data.example import DataError, Source
from focaljax.evaluation.detections import ImageDetections
from focaljax.evaluation.sheets import comparison_sheet
from focaljax.training import mesh as meshes
from focaljax.training.loggers import WANDB_MODES, Logger, LoggerError, WeightsAndBiases, import_wandb


def check_loggers(config: ConfigDict) -> None:
    """Raises a UsageError where the loggers that the config asks for cannot be had."""
    mode = config.log.wandb
    if mode not in WANDB_MODES:
        raise UsageError(
            f"config: log.wandb must be '', 'offline' or 'online', got {mode!r}{nearest(mode, WANDB_MODES[1:])}"
        )
    if mode:
        try:
            import_wandb()
        except LoggerError as error:
            raise UsageError(f"--config.log.wandb={mode}: {error}") from None


def make_loggers(config: ConfigDict, workdir: pathlib.Path) -> list[Logger]:
    """Returns the loggers that the config asks for besides TensorBoard; none but in the first process.

    Raises:
        UsageError: one cannot be started.
    """
    if not config.log.wandb or not meshes.is_primary():
        return []
    try:
        return [
            WeightsAndBiases(
                workdir, mode=config.log.wandb, project=config.log.wandb_project, settings=config.to_dict()
            )
        ]
    except LoggerError as error:
        raise UsageError(f"--config.log.wandb={config.log.wandb}: {error}") from None


def evaluation_pictures(
    source: Source, split: str, detections: Sequence[ImageDetections], count: int
) -> dict[str, np.ndarray]:
    """Returns pictures of some images, the same ones every time, by names such as 'val/1': truth, then detections.

    Args:
        source: of the split.
        split: its name.
        detections: of its images; those of an image that could not be read are missing.
        count: how many images, evenly spaced over the split; all if there are fewer.
    """
    found = {image.image_id: image for image in detections}
    ids = [image["id"] for image in source.ground_truth()["images"]]
    pictures = {}
    for number, index in enumerate(np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int), start=1):
        if ids[index] in found:
            try:
                example = source[int(index)]
            except (DataError, OSError):  # it could be read a moment ago; it is a finding where it matters
                continue
            pictures[f"{split}/{number}"] = comparison_sheet([example], [found[ids[index]]], source.class_names)
    return pictures


def note_start(workdir: pathlib.Path, *, step: int, devices: str, command: Sequence[str]) -> None:
    """Adds a line to `WORKDIR/starts.jsonl`: when and after which step a run was started, on what, and how.

    Args:
        workdir: of the run.
        step: number of finished steps.
        devices: in words.
        command: the arguments of `focaljax`.
    """
    if not meshes.is_primary():
        return
    start = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "step": step,
        "devices": devices,
        "versions": versions(),
        "command": shlex.join(["focaljax", *command]),
    }
    with (workdir / "starts.jsonl").open("a+b") as file:
        if file.tell():  # after a line that was cut off, on one of its own
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read() == b"\n" else b"\n")
        file.write(json.dumps(start).encode() + b"\n")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide what a run gives."""
    packages = ("focaljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in packages}}

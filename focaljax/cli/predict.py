"""focaljax predict: draw what a trained detector sees in images.

Usage: focaljax predict --workdir DIR --out DIR [--min_score S] [--config.KEY=VALUE ...] IMAGE...

  --workdir DIR         of a run of `focaljax train`; its latest checkpoint is used
  --out DIR             where the pictures and predictions.json go
  --min_score S         detections below are neither drawn nor written (default 0.3)
  --config.KEY=VALUE    overrides a setting of the group `eval`, e.g. --config.eval.max_detections=20
  IMAGE                 files, or folders of images

predictions.json is a list with, for each image, `file_name`, `width`, `height` and `detections`: `label` (the class
name), `score`, and `box` as [x1, y1, x2, y2] in pixels of the image.

Example:
  focaljax predict --workdir runs/shapes --out runs/shapes/predictions photo.jpg more_photos/
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from focaljax.cli import build
from focaljax.cli.build import say
from focaljax.cli.config import parse_flags, split_config_flags
from focaljax.cli.console import track
from focaljax.cli.evaluate import load_detector, saved_run
from focaljax.cli.main import UsageError
from focaljax.data.example import UnreadableImageError
from focaljax.data.images import decode_upright_image
from focaljax.data.transforms import resize_and_pad
from focaljax.evaluation.detections import ImageDetections
from focaljax.evaluation.drawing import draw_detections, write_image
from focaljax.evaluation.prediction import predict_batches
from focaljax.training import mesh as meshes
from focaljax.training.step import PREDICT_KEYS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code: 1 if some image could not be read."""
    overrides, others = split_config_flags(arguments)
    flag_values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "of a run of `focaljax train`", flag_values=flag_values)
    flags.DEFINE_string("out", "", "where the pictures go", flag_values=flag_values)
    flags.DEFINE_float("min_score", 0.3, "lowest score", lower_bound=0.0, upper_bound=1.0, flag_values=flag_values)
    names = parse_flags(others, flag_values)
    config, workdir = saved_run(flag_values.workdir, overrides)
    if not flag_values.out:
        raise UsageError("--out=DIR is needed: the folder for the pictures")
    files = find_images(names)
    classes = build.load_classes(workdir)
    mesh = meshes.make_mesh()
    out = pathlib.Path(flag_values.out)
    out.mkdir(parents=True, exist_ok=True)
    step, variables, predict_step = load_detector(config, workdir, len(classes.names), mesh)
    say(f"predicting with step {step} of {workdir}")

    images: dict[int, np.ndarray] = {}
    failures: list[str] = []
    batches = _batches(files, config.data.image_size, mesh.size, images, failures)
    on_devices = meshes.put_batches(batches, mesh, PREDICT_KEYS)
    found = predict_batches(lambda batch: predict_step(variables, batch), on_devices)
    records = []
    for detections in track(found, "predicting", len(files)):
        index = detections.image_id
        image, kept = images.pop(index), detections.above(flag_values.min_score)
        picture = draw_detections(image, kept.boxes_xyxy, kept.labels, kept.scores, classes.names)
        write_image(out / _picture_name(files, index), picture)
        records.append(_record(files[index], image, kept, classes.names))
    (out / "predictions.json").write_text(json.dumps(records, indent=2) + "\n")
    total = sum(len(record["detections"]) for record in records)
    say(
        f"wrote {len(records)} pictures and predictions.json to {out}: "
        f"{total} objects with score >= {flag_values.min_score:g}"
    )
    for failure in failures:
        say(f"left out: {failure}")
    return 1 if failures else 0


def find_images(names: Sequence[str]) -> list[pathlib.Path]:
    """Returns the image files that the arguments name; a folder stands for the images in it, sorted.

    Raises:
        UsageError: nothing is named, something does not exist, or a folder holds no image.
    """
    if not names:
        raise UsageError("name at least one image or folder of images; see `focaljax predict --help`")
    files: list[pathlib.Path] = []
    for name in names:
        path = pathlib.Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UsageError(f"the folder {name} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise UsageError(f"the image {name} does not exist")
    return files


def _batches(
    files: Sequence[pathlib.Path],
    image_size: Sequence[int],
    batch_size: int,
    images: dict[int, np.ndarray],
    failures: list[str],
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of images; keeps each image, by its index, in `images` until its picture is drawn."""
    height, width = image_size
    rows: list[dict[str, Any]] = []
    for index, file in enumerate(files):
        try:
            image = decode_upright_image(file.read_bytes(), file_name=str(file), image_id=index)
        except UnreadableImageError as error:
            failures.append(str(error))
            continue
        images[index] = image
        padded, _, scale = resize_and_pad(image, np.zeros((0, 4), np.float32), height=height, width=width)
        size = np.round(np.array(image.shape[:2]) * scale).astype(np.int32)
        rows.append(
            {
                "image": padded,
                "size": size,
                "scale": np.asarray(scale, np.float32),
                "original_size": np.array(image.shape[:2], np.int32),
                "image_id": np.int64(index),
                "is_valid": np.True_,
            }
        )
        if len(rows) == batch_size:
            yield _stack(rows)
            rows = []
    if rows:
        padding = [{**rows[-1], "is_valid": np.False_}] * (batch_size - len(rows))
        yield _stack(rows + padding)


def _stack(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _picture_name(files: Sequence[pathlib.Path], index: int) -> str:
    """Returns `STEM.jpg`, with the file's place among the arguments where another file has that stem too."""
    stem = files[index].stem
    is_unique = sum(file.stem == stem for file in files) == 1
    return f"{stem}.jpg" if is_unique else f"{stem}_{index + 1}.jpg"


def _record(
    file: pathlib.Path, image: np.ndarray, detections: ImageDetections, class_names: Sequence[str]
) -> dict[str, Any]:
    return {
        "file_name": str(file),
        "width": image.shape[1],
        "height": image.shape[0],
        "detections": [
            {"label": class_names[label], "score": float(score), "box": [float(x) for x in box]}
            for box, score, label in zip(detections.boxes_xyxy, detections.scores, detections.labels, strict=True)
        ],
    }

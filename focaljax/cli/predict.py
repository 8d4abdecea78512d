"""focaljax predict: draw what a trained detector sees in images.

Usage: focaljax predict (--weights FILE | --workdir DIR) [FLAGS] IMAGE...

  --weights FILE        a RetinaNet of torchvision or detectron2, or of `focaljax convert`: .safetensors, .npz, .pkl,
                        or .pth or .pt (which need torch)
  --workdir DIR         or of a run of `focaljax train`
  --step STEP           with --workdir: which checkpoint, latest (the default), best or the number of a step
  --out DIR             where the pictures and the JSON files go (default: predictions)
  --min_score S         detections below are neither drawn nor written to predictions.json (default 0.3)
  --batch_size B        images of one shape that go through the network together (default: 1 on CPUs, 8 a device else)
  --flip                look at each image mirrored too
  --scales S,S,...      look at each image at these factors of its usual size, such as 0.8,1,1.2
  --variant NAME        with --weights: the published detector they are of, where names and shapes do not tell
  --norm_epsilon E      with --weights: of the backbone's normalisation; 1e-5 for a torchvision v1 of your own
  --classes FILE        with --weights: the names of the classes, as a JSON list or one a line
  --config.KEY=VALUE    with --workdir: overrides a setting of the groups `eval` and `data` (but those of the pixels,
                        which the network was trained with), e.g. --config.eval.max_detections=20
  IMAGE                 files, folders of images, or patterns in quotes such as 'photos/**/*.jpg'

Writes, besides a picture of each image:
  predictions.json      a list with, for each image, `file_name`, `image_id`, `width`, `height` and `detections`:
                        `label` (the class name), `score`, and `box` as [x1, y1, x2, y2] in pixels of the image
  coco_results.json     every detection, whatever --min_score, in COCO's form of results
  coco_images.json      the `images` and `categories` that those refer to, in COCO's form of annotations
An image's id is the number that its file is named by (000000000139.jpg, COCO_val2014_000000000139.jpg) if all the
files are so named, each by another number; else its place among the images, from 1.

Example:
  focaljax predict --weights retinanet_resnet50_fpn_coco.safetensors --out seen photo.jpg more_photos/
"""

import collections
import glob
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from focaljax.cli.config import parse_flags, split_config_flags
from focaljax.cli.console import say, track
from focaljax.cli.detector_flags import define_detector_flags, detector_loader
from focaljax.cli.main import UsageError
from focaljax.data.example import UnreadableImageError
from focaljax.data.files import read_regular_file
from focaljax.data.images import decode_upright_image
from focaljax.detector import Detector
from focaljax.evaluation.coco_metrics import write_coco_results
from focaljax.evaluation.detections import ImageDetections, to_coco_results
from focaljax.evaluation.drawing import draw_detections, write_image
from focaljax.training import mesh as meshes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code: 1 if some image could not be read."""
    overrides, others = split_config_flags(arguments)
    flag_values = _flags()
    names = parse_flags(others, flag_values)
    load = detector_loader(flag_values, overrides, batch_size=flag_values.batch_size, mesh=meshes.make_mesh())
    files = find_images(names)
    out = pathlib.Path(flag_values.out)
    pictures = [out / name for name in picture_names(files)]
    if {picture.resolve() for picture in pictures} & {file.resolve() for file in files}:
        raise UsageError(f"--out={out}: a picture would overwrite an image that is read; name another folder")
    detector = load()
    out.mkdir(parents=True, exist_ok=True)
    say(f"predicting with {detector.description}")

    image_ids = image_ids_of(files)
    images: dict[int, np.ndarray] = {}
    failures: list[str] = []
    found: dict[int, ImageDetections] = {}
    records = {}
    stream = detector.stream(_read(files, images, failures))
    for detections in track(stream, "predicting", len(files)):
        index = detections.image_id
        image, kept = images.pop(index), detections.above(flag_values.min_score)
        picture = draw_detections(image, kept.boxes_xyxy, kept.labels, kept.scores, detector.class_names)
        write_image(pictures[index], picture)
        found[index] = detections
        records[index] = _record(files[index], image_ids[index], image, kept, detector.class_names)
    _write_json_files(out, [records[i] for i in sorted(records)], [found[i] for i in sorted(found)], detector)
    total = sum(len(record["detections"]) for record in records.values())
    say(
        f"wrote {len(records)} pictures, predictions.json and coco_results.json to {out}: "
        f"{total} objects with score >= {flag_values.min_score:g}"
    )
    for failure in failures:
        say(f"left out: {failure}")
    return 1 if failures else 0


def find_images(names: Sequence[str]) -> list[pathlib.Path]:
    """Returns the image files that the arguments name; a folder or a pattern stands for its images, sorted.

    Raises:
        UsageError: nothing is named, something does not exist, or a folder or pattern has no image.
    """
    if not names:
        raise UsageError("name at least one image or folder of images; see `focaljax predict --help`")
    suffixes = ", ".join(IMAGE_SUFFIXES)
    files: list[pathlib.Path] = []
    for name in names:
        path = pathlib.Path(name)
        if path.is_dir():
            inside = _images_among(path.iterdir())
            if not inside:
                raise UsageError(f"the folder {name} holds no image ({suffixes})")
            files += inside
        elif path.is_file():
            files.append(path)
        elif glob.has_magic(name):
            inside = _images_among(pathlib.Path(match) for match in glob.glob(name, recursive=True))
            if not inside:
                raise UsageError(f"the pattern {name} fits no image ({suffixes})")
            files += inside
        else:
            raise UsageError(f"the image {name} does not exist")
    return files


def image_ids_of(files: Sequence[pathlib.Path]) -> list[int]:
    """Returns an id for each image: the numbers in COCO's file names if all are so named, else 1, 2 and so on.

    Example:
        >>> image_ids_of([pathlib.Path("000000000139.jpg"), pathlib.Path("COCO_val2014_000000000042.jpg")])
        [139, 42]
        >>> image_ids_of([pathlib.Path("000000000139.jpg"), pathlib.Path("photo.jpg")])
        [1, 2]
    """
    matches = [re.fullmatch(r"(?:COCO_\w+_)?(\d+)", file.stem, re.ASCII) for file in files]
    numbers = [int(match[1]) for match in matches if match]
    is_named_by_numbers = len(numbers) == len(files) == len(set(numbers))
    return numbers if is_named_by_numbers else list(range(1, len(files) + 1))


def picture_names(files: Sequence[pathlib.PurePath], *, suffix: str = ".jpg") -> list[str]:
    """Returns another `STEM.jpg` (or another suffix) for each file, with its place where several have that stem.

    Example:
        >>> picture_names([pathlib.Path(name) for name in ("a/cat.png", "dog.jpg", "b/cat.png")])
        ['cat_1.jpg', 'dog.jpg', 'cat_3.jpg']
    """
    counts = collections.Counter(file.stem for file in files)
    taken = {stem for stem, count in counts.items() if count == 1}
    names = []
    for place, file in enumerate(files, 1):
        name = file.stem
        if counts[name] > 1:
            name = f"{name}_{place}"
            while name in taken:
                name += "_"
            taken.add(name)
        names.append(f"{name}{suffix}")
    return names


def _flags() -> flags.FlagValues:
    flag_values = flags.FlagValues()
    define_detector_flags(flag_values)
    flags.DEFINE_string("out", "predictions", "where the pictures go", flag_values=flag_values)
    flags.DEFINE_float("min_score", 0.3, "lowest score", lower_bound=0.0, upper_bound=1.0, flag_values=flag_values)
    flags.DEFINE_integer("batch_size", None, "images", lower_bound=1, flag_values=flag_values)
    return flag_values


def _images_among(paths: Any) -> list[pathlib.Path]:
    return sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _read(
    files: Sequence[pathlib.Path], images: dict[int, np.ndarray], failures: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields images by their index; keeps each in `images` until its picture is drawn."""
    for index, file in enumerate(files):
        try:
            images[index] = decode_upright_image(read_regular_file(file), file_name=str(file), image_id=index)
        except (UnreadableImageError, OSError) as error:
            failures.append(str(error))
            continue
        yield index, images[index]


def _record(
    file: pathlib.Path, image_id: int, image: np.ndarray, detections: ImageDetections, class_names: Sequence[str]
) -> dict[str, Any]:
    return {
        "file_name": str(file),
        "image_id": image_id,
        "width": image.shape[1],
        "height": image.shape[0],
        "detections": [
            {"label": class_names[label], "score": float(score), "box": [float(x) for x in box]}
            for box, score, label in zip(detections.boxes_xyxy, detections.scores, detections.labels, strict=True)
        ],
    }


def _write_json_files(
    out: pathlib.Path, records: Sequence[dict[str, Any]], found: Sequence[ImageDetections], detector: Detector
) -> None:
    (out / "predictions.json").write_text(json.dumps(records, indent=2) + "\n")
    of_ids = [
        ImageDetections(record["image_id"], one.boxes_xyxy, one.scores, one.labels)
        for record, one in zip(records, found, strict=True)
    ]
    write_coco_results(out / "coco_results.json", to_coco_results(of_ids, detector.category_ids))
    document = {
        "images": [
            {"id": record["image_id"], **{key: record[key] for key in ("file_name", "width", "height")}}
            for record in records
        ],
        "categories": [
            {"id": category_id, "name": name}
            for category_id, name in zip(detector.category_ids, detector.class_names, strict=True)
        ],
    }
    (out / "coco_images.json").write_text(json.dumps(document, indent=2) + "\n")

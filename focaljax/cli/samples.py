"""focaljax samples: write images of a data set as files, with a COCO annotation file beside them.

Usage: focaljax samples --config FILE --out DIR [--split SPLIT] [--count N] [--config.KEY=VALUE ...]

  --config FILE         names the data set; any source works (COCO, VOC, TFDS, shapes)
  --out DIR             gets images/, annotations.json and sheet.jpg, the images with their boxes drawn
  --split SPLIT         train, val or test (default train)
  --count N             the first N images (default 16)
  --config.KEY=VALUE    overrides one setting, e.g. --config.data.shapes.seed=1

Example:
  focaljax samples --config configs/shapes.py --split test --count 8 --out runs/samples
"""

import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from absl import flags

from focaljax.cli import datasets
from focaljax.cli.config import load_config, parse_flags, split_config_flags
from focaljax.cli.console import say, track
from focaljax.cli.data_reports import report_data
from focaljax.cli.main import UsageError
from focaljax.cli.predict import picture_names
from focaljax.data.subset import FirstImages
from focaljax.evaluation.drawing import draw_detections, write_image
from focaljax.evaluation.sheets import contact_sheet

_MOST_ON_SHEET = 36


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    config_arguments, others = split_config_flags(arguments)
    flag_values = flags.FlagValues()
    flags.DEFINE_string("out", "", "where the files go", flag_values=flag_values)
    flags.DEFINE_string("split", "train", "train, val or test", flag_values=flag_values)
    flags.DEFINE_integer("count", 16, "how many images", lower_bound=1, flag_values=flag_values)
    if unexpected := parse_flags(others, flag_values):
        raise UsageError(f"unexpected argument {unexpected[0]!r}; see `focaljax samples --help`")
    if not flag_values.out:
        raise UsageError("--out=DIR is needed: the folder for the images")
    config = load_config(config_arguments)
    source = FirstImages(datasets.make_source(config, flag_values.split), flag_values.count)
    report_data(source, flag_values.split)

    out = pathlib.Path(flag_values.out)
    (out / "images").mkdir(parents=True, exist_ok=True)
    truth = source.ground_truth()
    images = list(truth["images"])
    pictures: list[np.ndarray] = []
    names = picture_names([pathlib.PurePath(_safe_name(image["file_name"])) for image in images], suffix=".png")
    for index in track(range(len(source)), "writing images", len(source)):
        example = source[index]
        # PNG: lossless, so that these files train like their source.
        images[index] = {**images[index], "file_name": names[index]}
        write_image(out / "images" / images[index]["file_name"], example.image)
        if len(pictures) < _MOST_ON_SHEET:
            boxes, labels, is_crowd = example.boxes_xyxy, example.labels, example.is_crowd
            pictures.append(draw_detections(example.image, boxes, labels, None, source.class_names, is_crowd=is_crowd))
    (out / "annotations.json").write_text(json.dumps({**truth, "images": images}) + "\n")
    write_image(out / "sheet.jpg", contact_sheet(pictures, 6, max_side=320))
    objects = len(truth["annotations"])
    say(f"wrote {len(images)} images with {objects} objects to {out}: images/, annotations.json, sheet.jpg")
    return 0


def _safe_name(file_name: str) -> str:
    """Returns a file's name without folders and without characters that some file system or terminal would act on."""
    stem = pathlib.PurePath(file_name.replace("\\", "/")).stem
    # 60 letters of 4 bytes, the suffix and a number are below the 255 bytes that file systems allow.
    short = re.sub(r"[^\w.-]", "_", stem)[:60].strip(".")
    return f"{short or 'image'}.png"

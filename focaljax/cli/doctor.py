"""focaljax doctor: what is wrong with a data set, what the config's anchors miss of it, and what would fit.

Usage: focaljax doctor --config FILE [--split SPLITS] [--out DIR] [--samples N] [--nopixels] [--config.KEY=VALUE ...]

  --config FILE         names the data set, the image size, the anchors and the matching; any source works
  --split SPLITS        train, val, test, or several: train,val (default: all that the config names)
  --out DIR             gets doctor.html, all numbers with plots, in one file
  --samples N           also draws N training images as the network gets them, augmented, with their boxes:
                        DIR/samples.jpg, and on the page (default 0; needs --out)
  --nopixels            does not decode images; then duplicate images are not found
  --config.KEY=VALUE    overrides one setting, e.g. --config.anchors.ratios='(0.3, 1.0, 3.0)'

Prints what was found, the worst first, then the numbers; anchors that fit better are printed as overrides to be
pasted. No model is made. Reading the images of a large set takes most of the time; --nopixels leaves that out. How to
read the numbers: docs/data.md.

Example:
  focaljax doctor --config configs/shapes.py --samples 16 --out runs/doctor
"""

import concurrent.futures
import copy
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from focaljax.cli import build, datasets
from focaljax.cli.config import load_config, parse_flags, split_config_flags
from focaljax.cli.console import say, track
from focaljax.cli.doctor_anchors import examine_anchors
from focaljax.cli.doctor_findings import ExaminedSplit, all_findings
from focaljax.cli.doctor_page import write_page
from focaljax.cli.doctor_tables import all_tables, print_findings, print_proposal, print_table
from focaljax.cli.main import UsageError, nearest
from focaljax.cli.prediction import anchor_settings, largest_sides_of
from focaljax.data.augmentation import Augmentation
from focaljax.data.deadline import with_deadline
from focaljax.data.duplicates import ImageHash, hash_image
from focaljax.data.example import Source, UnreadableImageError
from focaljax.data.statistics import count_boxes, duplicate_boxes, read_split_boxes, resized
from focaljax.detection import assign_anchors, pyramid_anchors
from focaljax.evaluation.drawing import draw_detections, write_image
from focaljax.evaluation.sheets import contact_sheet


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    config_arguments, others = split_config_flags(arguments)
    flag_values = flags.FlagValues()
    flags.DEFINE_list("split", [], "train, val, test", flag_values=flag_values)
    flags.DEFINE_string("out", "", "where the page goes", flag_values=flag_values)
    flags.DEFINE_integer("samples", 0, "how many training images to draw", lower_bound=0, flag_values=flag_values)
    flags.DEFINE_boolean("pixels", True, "whether images are decoded", flag_values=flag_values)
    if unexpected := parse_flags(others, flag_values):
        raise UsageError(f"unexpected argument {unexpected[0]!r}; see `focaljax doctor --help`")
    if flag_values.samples and not flag_values.out:
        raise UsageError("--samples needs --out=DIR: the folder for the picture")
    config = load_config(config_arguments)
    _check(config)
    splits = _splits(config, flag_values.split)
    out = pathlib.Path(flag_values.out)
    _make_folder(out)

    sources = _sources(config, splits)
    # What they need and lack shows now, not after all images were read.
    train = sources.get("train") or datasets.make_source(config, "train") if flag_values.samples else None
    examined = [_examine(config, source, split, pixels=flag_values.pixels) for split, source in sources.items()]
    fit = examine_anchors(config, examined[0].name, examined[0].fitted)
    findings = all_findings(
        examined,
        fit,
        max_boxes=config.data.max_boxes,
        images_in_view=Augmentation(**config.augment).images_in_view,
        largest_sides=largest_sides_of(config),
    )
    print_findings(findings, examined)
    tables = all_tables(examined, fit)
    for table in tables:
        print_table(table)
    print_proposal(fit)
    if flag_values.out:
        sheet = None
        if train is not None:
            sheet = _draw_samples(config, train, flag_values.samples)
            write_image(out / "samples.jpg", sheet)
        write_page(out / "doctor.html", config_arguments, examined, fit, findings, tables, sheet)
        say(f"wrote {out}: doctor.html{'' if sheet is None else ', samples.jpg'}")
    return 0


def _make_folder(out: pathlib.Path) -> None:
    """Makes the folder for the results before the long part begins; the current one stands for none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: the folder {out} cannot be made: {error.strerror}") from None


def _check(config: ConfigDict) -> None:
    """Raises a UsageError where a setting that is used here has a value that a part does not accept."""
    box = jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32), jnp.zeros(1, bool), jnp.zeros(1, bool)
    try:
        build.check_numbers(config)
        anchors = pyramid_anchors(tuple(config.data.image_size), **anchor_settings(config))
        jax.eval_shape(lambda *arrays: assign_anchors(*arrays, **config.matching), anchors[0], *box)
    except (ValueError, TypeError) as error:
        raise UsageError(f"config: {error}") from None


def _splits(config: ConfigDict, asked: Sequence[str]) -> list[str]:
    """Returns the splits asked for in the order of `datasets.SPLITS`; all that the config names if none is."""
    for split in asked:
        if split not in datasets.SPLITS:
            raise UsageError(
                f"--split: {split!r} is none of {', '.join(datasets.SPLITS)}{nearest(split, datasets.SPLITS)}; "
                "write several as train,val"
            )
    if asked:
        return [split for split in datasets.SPLITS if split in asked]
    by_name = config.data.source in ("tfds", "shapes")
    named = [split for split in datasets.SPLITS if config.data[split]["name" if by_name else "annotations"]]
    return named or ["train"]  # whose absence is then an error that says what to set


def _sources(config: ConfigDict, splits: Sequence[str]) -> dict[str, Source]:
    """Returns the sources, all with the classes of the first, which is the training split if that is among them."""
    sources: dict[str, Source] = {}
    for split in splits:
        first = next(iter(sources.values()), None)
        classes = None if first is None else datasets.Classes(first.class_names, first.category_ids)
        sources[split] = datasets.make_source(config, split, classes=classes)
    return sources


def _examine(config: ConfigDict, source: Source, split: str, *, pixels: bool) -> ExaminedSplit:
    height, width = config.data.image_size
    boxes = read_split_boxes(source)
    return ExaminedSplit(
        name=split,
        # As it is now: what is drawn later adds to it.
        report=copy.deepcopy(source.report),
        boxes=boxes,
        fitted=resized(boxes, height=height, width=width, largest_sides=largest_sides_of(config)),
        counts=count_boxes(boxes),
        duplicates=duplicate_boxes(boxes),
        hashes=_hash_images(source, split, config.data.timeout) if pixels else None,
    )


def _hash_images(source: Source, split: str, timeout: float) -> list[ImageHash | None]:
    """Returns the hashes of all images in their order, None for those that cannot be read."""

    def read(index: int) -> ImageHash | None:
        try:
            return hash_image(source[index].image)
        except UnreadableImageError:
            return None

    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        hashes = with_deadline(pool.map(read, range(len(source))), timeout, what="image")
        return list(track(hashes, f"reading the images of {split}", len(source)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a thread that hangs would be waited for


def _draw_samples(config: ConfigDict, train: Source, count: int) -> np.ndarray:
    """Returns a sheet of the first training images, as the network gets them."""
    names = {image["id"]: os.path.basename(image["file_name"]) for image in train.ground_truth()["images"]}
    batches = datasets.training_batches(config, train, start_step=0)
    pictures: list[np.ndarray] = []
    captions: list[str] = []
    for _ in track(
        range(-(-count // config.optim.batch_size)), "drawing samples", -(-count // config.optim.batch_size)
    ):
        batch = next(batches)
        for row, image_id in enumerate(batch["image_id"].tolist()):
            is_box = batch["is_box"][row]
            boxes, labels, is_crowd = (batch[key][row][is_box] for key in ("boxes", "labels", "is_crowd"))
            image = batch["image"][row]
            pictures.append(draw_detections(image, boxes, labels, None, train.class_names, is_crowd=is_crowd))
            captions.append(names[image_id])
    return contact_sheet(pictures[:count], 4, captions=captions[:count], max_side=480)

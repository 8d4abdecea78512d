"""Of `focaljax doctor`: what is wrong with a data set, or may be, in words."""

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np

from focaljax.cli.doctor_anchors import AnchorFit
from focaljax.data.duplicates import ImageHash, equal_groups, near_groups
from focaljax.data.report import DataReport
from focaljax.data.statistics import SplitBoxes, SplitCounts, images_without

# Marks, the worst first: surely wrong; to be looked at; worth a thought.
FAULT, SUSPECT, HINT = "fault", "suspect", "hint"

_EXAMPLES = 3
# A class on this share of a split's images is expected on all of them.
_EXPECTED_SHARE = 0.9
# Objects of the most frequent class to one of the rarest.
_LARGE_IMBALANCE = 10.0
# A side that is shorter by more than this share is not as was asked for; by less it can be the rounding of a small one.
_SHORTER = 0.02
# Of the objects, without an anchor at the positive threshold.
_MANY_MISSED = 0.02
# Smaller objects, in strides of the finest level, often lie too far from any anchor's centre.
_SMALL_STRIDES = 2


@dataclasses.dataclass(frozen=True)
class ExaminedSplit:
    """What was read of a split.

    Attributes:
        name: train, val or test.
        report: of its source.
        boxes: in pixels of the images.
        fitted: in pixels of the network's input, without those that training drops there.
        counts: of `boxes`.
        duplicates: rows of `boxes` that stand twice.
        hashes: of the images, None for one that cannot be read; None if no pixels were read.
    """

    name: str
    report: DataReport
    boxes: SplitBoxes
    fitted: SplitBoxes
    counts: SplitCounts
    duplicates: np.ndarray
    hashes: list[ImageHash | None] | None


@dataclasses.dataclass(frozen=True)
class Remark:
    """One finding: its mark (`FAULT`, `SUSPECT` or `HINT`) and what was found, in a line."""

    mark: str
    text: str


def all_findings(
    splits: Sequence[ExaminedSplit],
    fit: AnchorFit,
    *,
    max_boxes: int,
    images_in_view: int = 1,
    largest_sides: tuple[int, int] | None = None,
) -> list[Remark]:
    """Returns everything worth a line, faults first.

    Args:
        splits: in the order train, val, test.
        fit: the anchors of the first of them.
        max_boxes: `data.max_boxes` of the config.
        images_in_view: how many images one view of the config's augmentation may hold.
        largest_sides: of the config's multi-scale training, see `Augmentation.largest_sides`.
    """
    found = [Remark(FAULT, text) for split in splits for text in _faults_of(split)]
    found += [Remark(FAULT, text) for text in _equal_images(splits)]
    # Without training objects a class cannot be learnt, without others only not be measured.
    found += [Remark(FAULT, text) for split in splits if split.name == "train" for text in _absent_classes(split)]
    found += [Remark(FAULT, text) for text in _lost_boxes(splits, max_boxes, images_in_view)]
    found += [Remark(SUSPECT, text) for split in splits if split.name != "train" for text in _absent_classes(split)]
    found += [Remark(SUSPECT, text) for text in _alike_images(splits)]
    found += [Remark(SUSPECT, text) for text in _images_lacking_a_class(splits)]
    found += [Remark(HINT, text) for text in _anchor_hints(fit)]
    if largest_sides:
        found += [Remark(HINT, text) for text in _held_smaller(splits[0], largest_sides)]
    found += [Remark(HINT, text) for text in _hints_of(splits[0])]
    return found


def _faults_of(split: ExaminedSplit) -> Iterator[str]:
    for line in split.report.lines():
        yield f"{split.name}: {line}"
    if len(split.duplicates):
        yield f"{split.name}: {len(split.duplicates)} x object annotated twice: " + _places(
            split, split.boxes.image_index[split.duplicates]
        )
    if dropped := len(split.boxes.labels) - len(split.fitted.labels):
        yield (
            f"{split.name}: {dropped} of {len(split.boxes.labels)} boxes have a side below one pixel at "
            "data.image_size; training drops them: enlarge it"
        )
    unreadable = [index for index, found in enumerate(split.hashes or []) if found is None]
    if unreadable:
        yield f"{split.name}: {len(unreadable)} x image cannot be decoded: {_places(split, unreadable)}"


def _equal_images(splits: Sequence[ExaminedSplit]) -> Iterator[str]:
    """Yields images with the same pixels, those of several splits first: they make an evaluation too good."""
    places, hashes = _hashed(splits)
    groups = equal_groups([found.pixels for found in hashes])
    leaks = [group for group in groups if len({places[image][0] for image in group}) > 1]
    yield from _by_splits("in both", "x image stands {where} {splits} (leakage)", leaks, places, splits)
    of_split = [
        [[image for image in group if places[image][0] == split] for group in groups] for split in range(len(splits))
    ]
    within = [group for groups_of in of_split for group in groups_of if len(group) > 1]
    yield from _by_splits("twice in", "x image stands {where} {splits}", within, places, splits)


def _alike_images(splits: Sequence[ExaminedSplit]) -> Iterator[str]:
    """Yields images that look alike and have not the same pixels."""
    places, hashes = _hashed(splits)
    # Of images with the same pixels, which have a line of their own, the first.
    one_of_each = list({found.pixels: image for image, found in reversed(list(enumerate(hashes)))}.values())[::-1]
    groups = [[one_of_each[place] for place in group] for group in near_groups([hashes[i].look for i in one_of_each])]
    yield from _by_splits("in", "x group of images that look almost the same, {where} {splits}", groups, places, splits)


def _hashed(splits: Sequence[ExaminedSplit]) -> tuple[list[tuple[int, int]], list[ImageHash]]:
    """Returns the (split, image) of all images that could be read, and their hashes."""
    found = [
        ((place, index), image_hash)
        for place, split in enumerate(splits)
        for index, image_hash in enumerate(split.hashes or [])
        if image_hash is not None
    ]
    return [place for place, _ in found], [image_hash for _, image_hash in found]


def _by_splits(
    where: str,
    text: str,
    groups: Sequence[Sequence[int]],
    places: Sequence[tuple[int, int]],
    splits: Sequence[ExaminedSplit],
) -> Iterator[str]:
    """Yields a line for each set of splits that groups of images lie in."""
    lines: dict[str, list[str]] = collections.defaultdict(list)
    for group in groups:
        names = [splits[split].name for split in sorted({places[image][0] for image in group})]
        files = [splits[split].boxes.file_names[index] for split, index in (places[image] for image in group)]
        lines[" and ".join(names)].append(" = ".join(files[:_EXAMPLES]) + (" = ..." if len(files) > _EXAMPLES else ""))
    for which, twins in lines.items():
        yield f"{len(twins)} {text.format(where=where, splits=which)}: {_first(twins)}"


def _absent_classes(split: ExaminedSplit) -> Iterator[str]:
    absent, names = np.flatnonzero(split.counts.objects_of_class == 0), split.boxes.class_names
    if len(absent):
        of_all = f"{len(absent)} of {len(names)} classes"
        yield f"{split.name}: {of_all} have no object: {_first([names[label] for label in absent])}"


def _lost_boxes(splits: Sequence[ExaminedSplit], max_boxes: int, images_in_view: int) -> Iterator[str]:
    """Yields whether `data.max_boxes` cuts off boxes of training images, or of several of them in one view."""
    for split in splits:
        boxes_of_image = np.bincount(split.fitted.image_index, minlength=1)
        fuller, largest = int((boxes_of_image > max_boxes).sum()), int(boxes_of_image.max()) * images_in_view
        if split.name != "train" or not max_boxes or largest <= max_boxes:
            continue
        views = f" in a view of {images_in_view} of them" if images_in_view > 1 else ""
        images = f"{fuller} images have" if fuller else f"{images_in_view} images in one view may have"
        yield (
            f"train: {images} more than data.max_boxes={max_boxes} boxes, the smallest of which "
            f"are left out: --config.data.max_boxes={largest}, or 0, keeps all{views}"
        )


def _images_lacking_a_class(splits: Sequence[ExaminedSplit]) -> Iterator[str]:
    """Yields the images without a class that almost all images have: their annotation may be incomplete."""
    images = sum(len(split.boxes) for split in splits)
    for label, name in enumerate(splits[0].boxes.class_names):
        lacking = {split.name: (split, images_without(split.boxes, label)) for split in splits}
        count = sum(len(indices) for _, indices in lacking.values())
        if count and images - count >= _EXPECTED_SHARE * images:
            yield (
                f"{count} of {images} images have no {name}, which is on all others: "
                + "; ".join(
                    f"{len(at)} in {which} ({_places(split, at)})" for which, (split, at) in lacking.items() if at
                )
            )


def _anchor_hints(fit: AnchorFit) -> Iterator[str]:
    missed = int(fit.before.is_missed.sum())
    unassigned = int((fit.before.is_missed & fit.before.is_unassigned).sum())
    objects = int(fit.before.is_object.sum())
    if missed > _MANY_MISSED * objects:
        yield (
            f"{fit.split}: {missed} of {objects} objects ({missed / objects:.1%}) have no anchor with an IoU of "
            f"{fit.positive_iou:g}; {unassigned} of them are assigned none at all"
        )
        small = _SMALL_STRIDES * 2 ** min(fit.levels)
        small_missed = int((np.sqrt(fit.boxes.sides.prod(axis=1)) < small)[fit.before.is_missed].sum())
        if small_missed > missed / 2:
            yield (
                f"{fit.split}: {small_missed} of these {missed} are smaller than {small} px, {_SMALL_STRIDES} times "
                "the finest level's stride: a larger data.image_size reaches more of them than other anchors"
            )
    if fit.after is not None and fit.is_worth_a_change:
        yield (
            f"fitted anchors reach {fit.after.matched_share:.1%} of the objects, the config's "
            f"{fit.before.matched_share:.1%}: see the overrides below"
        )


def _held_smaller(split: ExaminedSplit, largest_sides: tuple[int, int]) -> Iterator[str]:
    """Yields whether images cannot be as large in the network's input as multi-scale training asks."""
    if not len(split.boxes):
        return
    short, long = split.boxes.sizes.min(axis=1), split.boxes.sizes.max(axis=1)
    wanted = short * np.minimum(largest_sides[0] / short, largest_sides[1] / long)
    held = split.fitted.sizes.min(axis=1)
    is_smaller = held < (1 - _SHORTER) * wanted - 1
    if is_smaller.any():
        yield (
            f"{split.name}: {is_smaller.sum()} of {len(is_smaller)} images do not fit into data.image_size with the "
            f"shorter side that augment.short_sides asks for: {held[is_smaller].mean():.0f} px at most instead of "
            f"{wanted[is_smaller].mean():.0f}, on average"
        )


def _hints_of(split: ExaminedSplit) -> Iterator[str]:
    counts, names = split.counts, split.boxes.class_names
    empty = int((counts.objects_of_image == 0).sum())
    if empty:
        yield f"{split.name}: {empty} of {len(split.boxes)} images have no object; they count as background alone"
    present = np.flatnonzero(counts.objects_of_class)
    if len(present) > 1:
        most = present[counts.objects_of_class[present].argmax()]
        fewest = present[counts.objects_of_class[present].argmin()]
        ratio = counts.objects_of_class[most] / counts.objects_of_class[fewest]
        if ratio >= _LARGE_IMBALANCE:
            yield (
                f"{split.name}: classes are out of balance: {counts.objects_of_class[most]} of {names[most]}, "
                f"{counts.objects_of_class[fewest]} of {names[fewest]}, {ratio:.0f} to 1: compare AP by class"
            )


def _places(split: ExaminedSplit, images: Sequence[int] | np.ndarray) -> str:
    return _first([os.path.basename(split.boxes.file_names[index]) for index in dict.fromkeys(images)])


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")

"""Of `focaljax doctor`: what a config's anchors are to a split's boxes, and what others would be."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from focaljax.cli.config import override_config
from focaljax.cli.prediction import anchor_settings
from focaljax.data.statistics import SplitBoxes, some_images
from focaljax.detection import pyramid_anchors
from focaljax.detection.anchor_fit import AnchorShapes, fit_anchors
from focaljax.detection.coverage import AnchorCoverage, measure_coverage

# Anchors are compared with the boxes of so many images at most: a hundred of 600 px take four seconds of a core.
_MOST_IMAGES = 250
# A gain of a smaller share of boxes is not worth other anchors.
_SHARE_WORTH_A_CHANGE = 0.01


@dataclasses.dataclass(frozen=True)
class Coverage:
    """A coverage in the figures that are shown; crowd regions count nowhere.

    Attributes:
        measured: for each box.
        is_object: bool `[M]`, the box is no crowd region.
        is_missed: bool `[M]`, no anchor reaches the positive threshold on the object.
        is_unassigned: bool `[M]`, no anchor is assigned to the object.
        positives: int `[n]`, assigned anchors of the images with objects.
        imbalance: float `[n]`, background anchors for each assigned one, of the same images.
    """

    measured: AnchorCoverage
    is_object: np.ndarray
    is_missed: np.ndarray
    is_unassigned: np.ndarray
    positives: np.ndarray
    imbalance: np.ndarray

    @property
    def matched_share(self) -> float:
        """The share of objects on which an anchor reaches the positive threshold; NaN without objects."""
        return 1.0 - _mean(self.is_missed[self.is_object])

    @property
    def mean_iou(self) -> float:
        """Mean over objects of the IoU with the best anchor; NaN without objects."""
        return _mean(self.measured.best_iou[self.is_object])


@dataclasses.dataclass(frozen=True)
class AnchorFit:
    """The config's anchors on a split, and fitted ones.

    Attributes:
        split: its name.
        boxes: those compared, in pixels of the network's input.
        num_images: of the split; `boxes` may be of fewer.
        levels: of the pyramid.
        positive_iou: the threshold.
        before: coverage by the config's anchors.
        after: by the fitted ones; None without objects.
        overrides: that set the fitted ones, in the form of the command line.
    """

    split: str
    boxes: SplitBoxes
    num_images: int
    levels: tuple[int, ...]
    positive_iou: float
    before: Coverage
    after: Coverage | None
    overrides: tuple[str, ...]

    @property
    def is_worth_a_change(self) -> bool:
        """Whether the fitted anchors reach notably more objects than the config's."""
        return self.after is not None and self.after.matched_share >= self.before.matched_share + _SHARE_WORTH_A_CHANGE


def examine_anchors(config: ConfigDict, split: str, fitted: SplitBoxes) -> AnchorFit:
    """Returns how the config's anchors meet the boxes of a split, and anchors fitted to them.

    Args:
        config: the whole config.
        split: its name.
        fitted: its boxes in pixels of the network's input.
    """
    boxes = some_images(fitted, _MOST_IMAGES)
    settings = anchor_settings(config)
    sides = fitted.sides[~fitted.is_crowd]
    overrides: tuple[str, ...] = ()
    after = None
    if len(sides):
        start = AnchorShapes(settings["sizes"], settings["scales"], settings["ratios"])
        strides = [2**level for level in settings["levels"]]
        positive_iou = config.matching.positive_iou
        shapes = fit_anchors(sides, start, strides=strides, positive_iou=positive_iou, seed=config.seed)
        overrides = tuple(f"--config.anchors.{name}={value}" for name, value in dataclasses.asdict(shapes).items())
        # By way of the overrides: what is promised is what pasting them gives.
        after = _coverage(override_config(ConfigDict(config.to_dict()), overrides), boxes)
    return AnchorFit(
        split=split,
        boxes=boxes,
        num_images=len(fitted),
        levels=settings["levels"],
        positive_iou=config.matching.positive_iou,
        before=_coverage(config, boxes),
        after=after,
        overrides=overrides,
    )


def _coverage(config: ConfigDict, boxes: SplitBoxes) -> Coverage:
    anchors = pyramid_anchors(tuple(config.data.image_size), **anchor_settings(config))
    counts = np.bincount(boxes.image_index, minlength=len(boxes))
    matching: dict[str, Any] = dict(config.matching)
    measured = measure_coverage(anchors, boxes.boxes_xyxy, boxes.is_crowd, counts, **matching)
    is_object = ~boxes.is_crowd
    has_objects = np.bincount(boxes.image_index, is_object, minlength=len(boxes)) > 0
    return Coverage(
        measured=measured,
        is_object=is_object,
        is_missed=is_object & (measured.best_iou < config.matching.positive_iou),
        is_unassigned=is_object & (measured.assigned == 0),
        positives=measured.positives[has_objects],
        imbalance=(measured.background / np.maximum(measured.positives, 1))[has_objects],
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")

"""Training images made of several: mosaics of four, and mixup of two, each with the boxes of all of them.

Numpy arrays in and out, on the host; whatever is random, which other images come in too, is a pure function of the
`np.random.Generator` that is passed. An image that is not mixed is the same as without these settings.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from focaljax.data.augmentation import Augmentation
from focaljax.data.example import Example
from focaljax.data.transforms import augment, fill_with_mean, generator_beside

# Generators beside that of an image, by number. `augment` takes the next two after the one that it is given, hence the
# gaps; the second image of a mixup has as many of its own.
_MOSAIC, _POINT, _MIXUP, _TILES, _SECOND = 3, 4, 5, (8, 12, 16), 32
# The four meet in the middle half of the image, so that each has at least a sixteenth of it.
_NEAREST_TO_EDGE = 0.25


@dataclasses.dataclass(frozen=True)
class TrainingView:
    """What the network sees of one or of several images.

    Attributes:
        image: uint8 `[height, width, 3]`, the content top-left, zeros elsewhere.
        boxes_xyxy: float32 `[M, 4]`, in pixels of `image`, of objects and crowd regions.
        labels: int32 `[M]`.
        is_crowd: bool `[M]`.
        size: int32 `[2]`, height and width of the content.
        images: how many images it is made of.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    size: np.ndarray
    images: int = 1


def training_view(
    rng: np.random.Generator,
    example: Example,
    draw_example: Callable[[np.random.Generator], Example],
    *,
    augmentation: Augmentation,
    height: int,
    width: int,
    out: np.ndarray | None = None,
) -> TrainingView:
    """Returns the augmented image, which may have become one of a mosaic, and may be blended with another.

    Mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412; for detectors Zhang et al. 2019,
    https://arxiv.org/abs/1902.04103): the mean of two padded images with weights w and 1 - w, w from
    Beta(alpha, alpha), and the boxes of both, each with full weight in the loss. The second image is augmented, and
    made a mosaic, with the same probabilities.

    Args:
        rng: decides everything; of a kind that jumps, such as Philox and PCG64.
        example: the image.
        draw_example: gives an image of the same source, drawn with the generator that it is called with.
        augmentation: probabilities and ranges.
        height, width: shape of the result, in pixels.
        out: uint8 `[height, width, 3]`, all zeros, to write the image into; None for a new array.

    Raises:
        ValueError: an argument has the wrong shape or dtype.
    """
    settings: dict[str, Any] = {"augmentation": augmentation, "height": height, "width": width}
    if not (augmentation.mosaic or augmentation.mixup):
        return _alone(rng, example, out=out, **settings)
    first = _alone_or_mosaic(rng, example, draw_example, out=out, **settings)
    draws = generator_beside(rng, _MIXUP)
    if draws.random() >= augmentation.mixup:
        return first
    share, another = draws.beta(augmentation.mixup_alpha, augmentation.mixup_alpha), draw_example(draws)
    second = _alone_or_mosaic(generator_beside(rng, _SECOND), another, draw_example, **settings)
    return blend(first, second, share)


def mosaic(
    rng: np.random.Generator,
    examples: Sequence[Example],
    *,
    augmentation: Augmentation,
    height: int,
    width: int,
    out: np.ndarray | None = None,
) -> TrainingView:
    """Returns four images around one point, with their boxes; it fills the whole output.

    The point is drawn from the middle half of the output. Each image is augmented by itself, at a scale from
    `augmentation.mosaic_scale`, cropped to its quarter and put at the point; where it is too small for its quarter, the
    rest has the colour `focaljax.data.transforms.FILL`. The idea is YOLOv4's (Bochkovskiy et al. 2020,
    https://arxiv.org/abs/2004.10934).

    Args:
        rng: decides everything. The first image's flips and colours are those that it has alone.
        examples: four; top-left, top-right, bottom-left, bottom-right.
        augmentation: what is done to each.
        height, width: shape of the result, in pixels, at least 2.
        out: uint8 `[height, width, 3]`, to write the image into; None for a new array.

    Raises:
        ValueError: the shape is smaller than 2 x 2, or an argument has the wrong shape or dtype.
    """
    if min(height, width) < 2:
        raise ValueError(f"a mosaic needs a height and width of at least 2 pixels, got {height} and {width}.")
    rngs = [rng, *(generator_beside(rng, number) for number in _TILES)]
    point_y, point_x = (
        min(side - 1, max(1, int(side * (_NEAREST_TO_EDGE + draw * (1 - 2 * _NEAREST_TO_EDGE)))))
        for side, draw in zip((height, width), generator_beside(rng, _POINT).random(2).tolist())
    )
    image = np.empty((height, width, 3), np.uint8) if out is None else out
    fill_with_mean(image)
    parts = []
    for index, (one_rng, example) in enumerate(zip(rngs, examples, strict=True)):
        is_top, is_left = index < 2, index % 2 == 0
        view = _alone(
            one_rng,
            example,
            augmentation=augmentation,
            height=point_y if is_top else height - point_y,
            width=point_x if is_left else width - point_x,
            mosaic_fit=(height, width),
        )
        rows, columns = view.size.tolist()
        y, x = (point_y - rows if is_top else point_y), (point_x - columns if is_left else point_x)
        image[y : y + rows, x : x + columns] = view.image[:rows, :columns]
        parts.append(dataclasses.replace(view, boxes_xyxy=view.boxes_xyxy + np.array([x, y, x, y], np.float32)))
    return _joined(parts, image, np.array([height, width], np.int32))


def blend(first: TrainingView, second: TrainingView, share: float) -> TrainingView:
    """Returns the mean of two views, the first with the weight `share` in 0..1, with the boxes of both.

    The first view's image is written over.
    """
    cv2.addWeighted(first.image, share, second.image, 1 - share, 0, dst=first.image)
    return _joined([first, second], first.image, np.maximum(first.size, second.size))


def _alone_or_mosaic(
    rng: np.random.Generator,
    example: Example,
    draw_example: Callable[[np.random.Generator], Example],
    *,
    augmentation: Augmentation,
    **settings,
) -> TrainingView:
    draws = generator_beside(rng, _MOSAIC)
    if draws.random() >= augmentation.mosaic:
        return _alone(rng, example, augmentation=augmentation, **settings)
    others = [draw_example(draws) for _ in _TILES]
    return mosaic(rng, [example, *others], augmentation=augmentation, **settings)


def _alone(rng: np.random.Generator, example: Example, *, out: np.ndarray | None = None, **settings) -> TrainingView:
    view = augment(
        rng,
        example.image,
        example.boxes_xyxy,
        example.is_crowd,
        fitted_from=example.fitted_from,
        out=out,
        **settings,
    )
    labels, is_crowd = example.labels[view.is_kept], example.is_crowd[view.is_kept]
    return TrainingView(view.image, view.boxes_xyxy, labels, is_crowd, view.size)


def _joined(parts: Sequence[TrainingView], image: np.ndarray, size: np.ndarray) -> TrainingView:
    """Returns a view with this image and the boxes of all parts."""
    boxes, labels, is_crowd = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes_xyxy", "labels", "is_crowd")
    )
    return TrainingView(image, boxes, labels, is_crowd, size, sum(part.images for part in parts))

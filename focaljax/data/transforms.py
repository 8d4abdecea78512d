"""Resizing, flips, scale jitter and colour jitter of one image and its boxes, on the host.

Numpy arrays in and out; whatever is random is a pure function of the `np.random.Generator` that is passed. Images are
uint8 `[H, W, 3]`, RGB. Boxes are `[N, 4]` xyxy in pixels, with edges at 0 and W (H): a box around a whole image is
`[0, 0, W, H]`, so a resize multiplies it by exactly new / old.
"""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

# Below this factor a bilinear sample skips source pixels altogether, so averaging is worth its cost (about 1 ms for a
# 640x480 image; bilinear takes 0.1 to 0.4 ms).
_AREA_BELOW = 0.5

# Pixels; a training image keeps no box with a shorter side. Less than 1, as float32 rounds sides.
SHORTEST_SIDE = 1 - 1e-3

# RGB to YIQ (NTSC). The last two rows sum to 0, so a turn of (I, Q) leaves greys as they are, and Y is the luma.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_INVERSE = np.linalg.inv(_YIQ)
_LUMA = _YIQ[0]

# OpenCV's codes of flips left to right, upside down.
_FLIP_CODES = {(True, False): 1, (False, True): 0, (True, True): -1}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a training image may be changed; every random choice is made afresh each time that an image is read.

    The defaults flip half of the images left to right and change nothing else.

    Attributes:
        horizontal_flip: probability of a left-right flip, in 0..1.
        vertical_flip: probability of an upside-down flip, in 0..1.
        scale: smallest and largest scale relative to the size that just fits the output, `0 < smallest <= largest`.
        min_visible: the share of a box's area, in 0..1, that a crop must leave for the box to stay.
        brightness, contrast, saturation: each factor is drawn from `1 - value .. 1 + value`, value in 0..1.
        hue: the hue is turned by a share of the full circle drawn from `-hue .. hue`, hue in 0..0.5.

    Raises:
        ValueError: a value is not a number in its range.

    >>> Augmentation(scale=(0.8, 1.25), brightness=0.2).horizontal_flip
    0.5
    >>> Augmentation(hue=2)
    Traceback (most recent call last):
    ...
    ValueError: augmentation: hue must be a number in 0..0.5, got 2.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    min_visible: float = 0.25
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    @property
    def flips_only(self) -> bool:
        """Whether the image that just fits is all that is needed of an image: no other scale, no other colours."""
        return self.scale == (1.0, 1.0) and not (self.brightness or self.contrast or self.saturation or self.hue)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "scale":
                object.__setattr__(self, "scale", _scale_range("augmentation: scale", value))
                continue
            upper = 0.5 if field.name == "hue" else 1.0
            if not _is_number(value) or not 0 <= value <= upper:
                raise ValueError(f"augmentation: {field.name} must be a number in 0..{upper:g}, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class ScaledCrop:
    """An image that was scaled, cropped and padded to a fixed shape, with the boxes that are left.

    Attributes:
        image: uint8 `[height, width, 3]`, the content top-left, zeros elsewhere.
        boxes_xyxy: float32 `[M, 4]`, in pixels of `image`, clipped to the content.
        is_kept: bool `[N]`, which of the N boxes that came in the M boxes are, in the same order.
        size: int32 `[2]`, height and width of the content.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    is_kept: np.ndarray
    size: np.ndarray


def resize_and_pad(
    image: np.ndarray, *, height: int, width: int, out: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the image resized to fit and padded, and the height and width of its content.

    The aspect is kept up to the rounding to whole pixels, the content lies top-left, the padding is 0. Interpolation is
    bilinear; below half size it is the mean over the pixels that fall together (`INTER_AREA`).

    Args:
        image: uint8 `[H, W, 3]`.
        height, width: shape of the result, in pixels.
        out: uint8 `[height, width, 3]`, all zeros, to write the result into (a row of a batch); None for a new array.

    Returns:
        The padded image, uint8 `[height, width, 3]`, and the size of its content, from which
        `focaljax.data.resize.restore_boxes` takes boxes back into the original image.

    Raises:
        ValueError: an argument has the wrong shape or dtype.

    >>> padded, size = resize_and_pad(np.full((100, 200, 3), 255, np.uint8), height=64, width=64)
    >>> size, int(padded[31, 63, 0]), int(padded[32, 63, 0])
    ((32, 64), 255, 0)
    """
    _check_image(image)
    old_size = image.shape[0], image.shape[1]
    size = fitted_size(old_size, height=height, width=width)
    return _write_resized(image, size, _fit_factor(old_size, height, width), height, width, out), size


def fitted_size(size: tuple[int, int], *, height: int, width: int) -> tuple[int, int]:
    """Returns the height and width of the content that `resize_and_pad` makes of an image of this size, in pixels."""
    return _resized_size(size, size, _fit_factor(size, height, width), height, width)


def random_scale_and_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    is_crowd: np.ndarray | None = None,
    *,
    height: int,
    width: int,
    scale_range: tuple[float, float],
    min_visible: float = 0.25,
    flips: tuple[bool, bool] = (False, False),
    fitted_from: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> ScaledCrop:
    """Returns the image at a random scale in a fixed shape: cropped where it is too large, padded where too small.

    The scale is drawn uniformly from `scale_range` and is relative to the size that just fits, as in large-scale jitter
    (Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177). The crop lies anywhere in the image with equal probability.
    It is taken before the resize, in whole source pixels, so that only visible pixels are resized. Unlike there, a
    smaller image is not moved about in the padding but lies top-left, so that `size` describes the content.

    A box whose visible share is below `min_visible` is dropped: what a sliver shows is often not recognisable, and a
    detector would be taught to find objects that cannot be seen. Its remaining pixels count as background. Crowd
    regions stay, however little of them is left, because their pixels must not become background. A box with a side
    below one pixel is dropped in any case.

    Args:
        rng: three numbers are drawn from it, whatever the other arguments are.
        image: uint8 `[H, W, 3]`.
        boxes_xyxy: `[N, 4]` in pixels of `image`; N may be 0.
        is_crowd: bool `[N]`; None if no box is a crowd region.
        height, width: shape of the result, in pixels.
        scale_range: smallest and largest scale; (1, 1) gives the same image as `resize_and_pad`.
        min_visible: share of a box's area that must stay visible, in 0..1.
        flips: whether image and boxes are mirrored left to right, and upside down: x1 becomes W - x2, x2 becomes
            W - x1. The crop is one of the mirrored image; its pixels are mirrored last, after the resize.
        fitted_from: if `image` is the content that `resize_and_pad` makes of an image for this shape, the height and
            width of that image, in whose pixels the boxes are. The result is the same as for that image.
        out: uint8 `[height, width, 3]`, all zeros, to write the result into; None for a new array.

    Returns:
        The image, its boxes and its geometry.

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    _check(image, boxes_xyxy)
    smallest, largest = _scale_range("scale_range", scale_range)
    if not 0 <= min_visible <= 1:
        raise ValueError(f"min_visible must be in 0..1, got {min_visible!r}.")
    if is_crowd is not None and is_crowd.shape != (len(boxes_xyxy),):
        raise ValueError(f"is_crowd must have shape {(len(boxes_xyxy),)}, one entry a box, got {is_crowd.shape}.")
    old_height, old_width = old_size = fitted_from or (image.shape[0], image.shape[1])
    draw_scale, draw_y, draw_x = rng.random(3).tolist()
    factor = _fit_factor(old_size, height, width) * (smallest + draw_scale * (largest - smallest))
    crop_height = min(old_height, max(1, round(height / factor)))
    crop_width = min(old_width, max(1, round(width / factor)))
    y = int(draw_y * (old_height - crop_height + 1))
    x = int(draw_x * (old_width - crop_width + 1))
    size = _resized_size(old_size, (crop_height, crop_width), factor, height, width)
    if fitted_from is None:
        top = old_height - crop_height - y if flips[1] else y
        left = old_width - crop_width - x if flips[0] else x
        image = image[top : top + crop_height, left : left + crop_width]
    elif image.shape[:2] != size or (smallest, largest) != (1, 1):
        raise ValueError(f"fitted_from {fitted_from} needs an image of {size} and scale (1, 1), got {image.shape[:2]}.")
    padded = _write_resized(image, size, factor, height, width, out, flips)

    old_boxes = _flip_boxes(boxes_xyxy, old_size, flips).astype(np.float64)
    low, high = np.array([x, y, x, y]), np.array([x + crop_width, y + crop_height] * 2)
    is_visible = _areas(np.minimum(np.maximum(old_boxes, low), high)) >= min_visible * _areas(old_boxes)
    if is_crowd is not None:
        is_visible |= np.asarray(is_crowd, bool)
    scale_y, scale_x = size[0] / crop_height, size[1] / crop_width
    boxes = (old_boxes - low) * np.array([scale_x, scale_y, scale_x, scale_y])
    boxes = np.minimum(np.maximum(boxes, 0), np.array([size[1], size[0]] * 2)).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    is_kept = is_visible & (np.minimum(sides[:, 0], sides[:, 1]) >= SHORTEST_SIDE)
    return ScaledCrop(padded, boxes[is_kept], is_kept, np.array(size, np.int32))


def color_jitter(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> np.ndarray:
    """Returns the image with its brightness, contrast, saturation and hue changed at random, in this order.

    All four are linear in a pixel's (R, G, B), so they are one 3x4 matrix, applied and rounded once: brightness scales,
    contrast moves away from the image's mean luma, saturation moves away from the pixel's luma, hue turns the pixel
    about the grey axis of YIQ. This differs from torchvision's ColorJitter, which shifts the hue in HSV (there the luma
    changes), clips after every step, and draws the order.

    Args:
        rng: four numbers are drawn from it, whatever the other arguments are.
        image: uint8 `[H, W, 3]`.
        brightness, contrast, saturation: each factor is drawn from `1 - value .. 1 + value`, value in 0..1.
        hue: share of the full circle, in 0..0.5; the turn is drawn from `-hue .. hue`.

    Returns:
        A new uint8 `[H, W, 3]`; `image` itself if all four are 0.

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.

    >>> grey = np.full((2, 2, 3), 100, np.uint8)
    >>> bool((color_jitter(np.random.default_rng(0), grey, saturation=1.0, hue=0.5) == grey).all())
    True
    """
    _check_image(image)
    ranges = (brightness, contrast, saturation, hue)
    if not all(0 <= value <= most for value, most in zip(ranges, (1, 1, 1, 0.5))):
        raise ValueError(f"brightness, contrast and saturation must be in 0..1 and hue in 0..0.5, got {list(ranges)}.")
    draws = rng.uniform(-1.0, 1.0, 4)
    if not any(ranges):
        return image
    draws *= ranges
    bright, contrasted, saturated = 1.0 + draws[:3]
    mean_luma = float(_LUMA @ cv2.mean(image)[:3])
    angle = 2 * math.pi * draws[3]
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = _YIQ_INVERSE @ np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ _YIQ
    saturate = saturated * np.eye(3) + (1 - saturated) * _LUMA
    matrix = np.empty((3, 4))
    matrix[:, :3] = bright * contrasted * (turn @ saturate)
    # Saturation and hue leave greys as they are, so contrast's grey offset passes through them unchanged.
    matrix[:, 3] = (1 - contrasted) * bright * mean_luma
    return cv2.transform(image, matrix.astype(np.float32))


def augment(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    is_crowd: np.ndarray,
    *,
    augmentation: Augmentation,
    height: int,
    width: int,
    fitted_from: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> ScaledCrop:
    """Returns the image and boxes after flips, colour jitter, and scaling with crop and padding.

    Colour comes before the padding so that the padding stays 0. The same numbers are drawn whichever steps are switched
    on, so that a change of one setting leaves the draws of the others alone.

    Args:
        rng: the only source of randomness.
        image: uint8 `[H, W, 3]`.
        boxes_xyxy: `[N, 4]` in pixels of `image`; N may be 0.
        is_crowd: bool `[N]`.
        augmentation: probabilities and ranges.
        height, width: shape of the result, in pixels.
        fitted_from: as in `random_scale_and_crop`, for an augmentation that `flips_only`.
        out: uint8 `[height, width, 3]`, all zeros, to write the image into; None for a new array.

    Returns:
        The image and the boxes that are still visible; index labels and other values of the objects by its `is_kept`.

    Raises:
        ValueError: an argument has the wrong shape or dtype.
    """
    draw_horizontal, draw_vertical = rng.random(2).tolist()
    colors = {name: getattr(augmentation, name) for name in ("brightness", "contrast", "saturation", "hue")}
    image = color_jitter(rng, image, **colors)
    return random_scale_and_crop(
        rng,
        image,
        boxes_xyxy,
        is_crowd,
        height=height,
        width=width,
        scale_range=augmentation.scale,
        min_visible=augmentation.min_visible,
        flips=(draw_horizontal < augmentation.horizontal_flip, draw_vertical < augmentation.vertical_flip),
        fitted_from=fitted_from,
        out=out,
    )


def _fit_factor(size: tuple[int, int], height: int, width: int) -> float:
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 pixel, got {height} and {width}.")
    return min(height / size[0], width / size[1])


def _resized_size(
    size: tuple[int, int], crop: tuple[int, int], factor: float, height: int, width: int
) -> tuple[int, int]:
    """Returns the height and width of a crop of an image of this size after resizing by `factor`."""
    # A cropped axis fills the output: round(height / factor) source pixels may be half a source pixel off.
    return (
        height if crop[0] < size[0] else min(height, max(1, round(crop[0] * factor))),
        width if crop[1] < size[1] else min(width, max(1, round(crop[1] * factor))),
    )


def _write_resized(
    image: np.ndarray,
    size: tuple[int, int],
    factor: float,
    height: int,
    width: int,
    out: np.ndarray | None,
    flips: tuple[bool, bool] = (False, False),
) -> np.ndarray:
    """Writes the image, resized by `factor` to `size` and mirrored, top-left into the zeros of `out`."""
    if out is None:
        out = np.zeros((height, width, 3), np.uint8)
    elif out.shape != (height, width, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 of shape {(height, width, 3)}, got {out.dtype} {out.shape}.")
    target = out[: size[0], : size[1]]
    if image.shape[:2] != size:
        interpolation = cv2.INTER_AREA if factor < _AREA_BELOW else cv2.INTER_LINEAR
        if not any(flips):
            cv2.resize(image, size[::-1], dst=target, interpolation=interpolation)
            return out
        image = cv2.resize(image, size[::-1], interpolation=interpolation)
    if any(flips):
        cv2.flip(image, _FLIP_CODES[flips], dst=target)
    else:
        target[...] = image
    return out


def _flip_boxes(boxes_xyxy: np.ndarray, size: tuple[int, int], flips: tuple[bool, bool]) -> np.ndarray:
    """Returns the boxes of an image of this size after the flips; float32 where there is one."""
    for axis in (0, 1):
        if flips[axis]:
            boxes_xyxy = boxes_xyxy.astype(np.float32)
            side = np.float32(size[1 - axis])
            boxes_xyxy[:, [axis, axis + 2]] = side - boxes_xyxy[:, [axis + 2, axis]]
    return boxes_xyxy


def _areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return sides[:, 0] * sides[:, 1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _scale_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(_is_number(number) for number in value)
    if not is_pair or not 0 < value[0] <= value[1] < math.inf:
        raise ValueError(f"{name} must be two numbers, 0 < smallest <= largest, such as (0.8, 1.25), got {value!r}.")
    return float(value[0]), float(value[1])


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image must be a non-empty uint8 array of shape [H, W, 3], got {image.dtype} {image.shape}.")


def _check(image: np.ndarray, boxes_xyxy: np.ndarray) -> None:
    _check_image(image)
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4:
        raise ValueError(f"boxes_xyxy must have shape [N, 4] ((0, 4) without boxes), got {boxes_xyxy.shape}.")

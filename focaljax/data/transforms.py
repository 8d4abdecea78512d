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

# Sides may lose this many pixels to float32 rounding before they count as shorter than a pixel.
_SIDE_TOLERANCE = 1e-3

# RGB to YIQ (NTSC). The last two rows sum to 0, so a turn of (I, Q) leaves greys as they are, and Y is the luma.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_INVERSE = np.linalg.inv(_YIQ)
_LUMA = _YIQ[0]

_Region = tuple[int, int, int, int]  # y, x, height, width in source pixels


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
    full = (0, 0, image.shape[0], image.shape[1])
    return _resize_region(image, full, _fit_factor(image, height, width), height, width, out)


def flip_horizontal(image: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image and the boxes mirrored left to right.

    Args:
        image: uint8 `[H, W, 3]`.
        boxes_xyxy: `[N, 4]` in pixels; N may be 0.

    Returns:
        The mirrored image, and boxes as float32 `[N, 4]`: x1 becomes W - x2, x2 becomes W - x1.

    >>> flip_horizontal(np.zeros((4, 10, 3), np.uint8), np.array([[0.0, 1, 2, 3]]))[1].tolist()
    [[8.0, 1.0, 10.0, 3.0]]
    """
    _check(image, boxes_xyxy)
    x1, y1, x2, y2 = np.asarray(boxes_xyxy, np.float32).T
    width = np.float32(image.shape[1])
    return cv2.flip(image, 1), np.stack([width - x2, y1, width - x1, y2], axis=-1)


def flip_vertical(image: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image and the boxes mirrored upside down.

    Args:
        image: uint8 `[H, W, 3]`.
        boxes_xyxy: `[N, 4]` in pixels; N may be 0.

    Returns:
        The mirrored image, and boxes as float32 `[N, 4]`: y1 becomes H - y2, y2 becomes H - y1.
    """
    _check(image, boxes_xyxy)
    x1, y1, x2, y2 = np.asarray(boxes_xyxy, np.float32).T
    height = np.float32(image.shape[0])
    return cv2.flip(image, 0), np.stack([x1, height - y2, x2, height - y1], axis=-1)


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
    draw_scale, draw_y, draw_x = rng.random(3)
    factor = _fit_factor(image, height, width) * (smallest + draw_scale * (largest - smallest))
    old_height, old_width = image.shape[:2]
    crop_height = min(old_height, max(1, round(height / factor)))
    crop_width = min(old_width, max(1, round(width / factor)))
    y = int(draw_y * (old_height - crop_height + 1))
    x = int(draw_x * (old_width - crop_width + 1))
    region = (y, x, crop_height, crop_width)
    padded, size = _resize_region(image, region, factor, height, width, out)

    old_boxes = np.asarray(boxes_xyxy, np.float64)
    visible = np.clip(old_boxes, [x, y, x, y], [x + crop_width, y + crop_height] * 2)
    is_visible = _areas(visible) >= min_visible * _areas(old_boxes)
    if is_crowd is not None:
        is_visible |= np.asarray(is_crowd, bool)
    boxes = _map_boxes(boxes_xyxy, region, size)
    is_kept = is_visible & ((boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= 1 - _SIDE_TOLERANCE)
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
    ranges = np.array([brightness, contrast, saturation, hue], np.float64)
    if not ((ranges >= 0) & (ranges <= [1, 1, 1, 0.5])).all():
        raise ValueError(
            f"brightness, contrast and saturation must be in 0..1 and hue in 0..0.5, got {ranges.tolist()}."
        )
    draws = rng.uniform(-1.0, 1.0, 4) * ranges
    if not ranges.any():
        return image
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
    out: np.ndarray | None = None,
) -> ScaledCrop:
    """Returns the image and boxes after flips, colour jitter, and scaling with crop and padding, always in this order.

    Colour comes before the padding so that the padding stays 0. The same numbers are drawn whichever steps are switched
    on, so that a change of one setting leaves the draws of the others alone.

    Args:
        rng: the only source of randomness.
        image: uint8 `[H, W, 3]`.
        boxes_xyxy: `[N, 4]` in pixels of `image`; N may be 0.
        is_crowd: bool `[N]`.
        augmentation: probabilities and ranges.
        height, width: shape of the result, in pixels.
        out: uint8 `[height, width, 3]`, all zeros, to write the image into; None for a new array.

    Returns:
        The image and the boxes that are still visible; index labels and other values of the objects by its `is_kept`.

    Raises:
        ValueError: an argument has the wrong shape or dtype.
    """
    draw_horizontal, draw_vertical = rng.random(2)
    if draw_horizontal < augmentation.horizontal_flip:
        image, boxes_xyxy = flip_horizontal(image, boxes_xyxy)
    if draw_vertical < augmentation.vertical_flip:
        image, boxes_xyxy = flip_vertical(image, boxes_xyxy)
    image = color_jitter(
        rng,
        image,
        brightness=augmentation.brightness,
        contrast=augmentation.contrast,
        saturation=augmentation.saturation,
        hue=augmentation.hue,
    )
    return random_scale_and_crop(
        rng,
        image,
        boxes_xyxy,
        is_crowd,
        height=height,
        width=width,
        scale_range=augmentation.scale,
        min_visible=augmentation.min_visible,
        out=out,
    )


def _fit_factor(image: np.ndarray, height: int, width: int) -> float:
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 pixel, got {height} and {width}.")
    return min(height / image.shape[0], width / image.shape[1])


def _resize_region(
    image: np.ndarray, region: _Region, factor: float, height: int, width: int, out: np.ndarray | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Writes `region` of `image`, resized by `factor`, top-left into the zeros of `out`."""
    if out is None:
        out = np.zeros((height, width, 3), np.uint8)
    elif out.shape != (height, width, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 of shape {(height, width, 3)}, got {out.dtype} {out.shape}.")
    y, x, old_height, old_width = region
    # A cropped axis fills the output: round(height / factor) source pixels may be half a source pixel off.
    new_height = height if old_height < image.shape[0] else min(height, max(1, round(old_height * factor)))
    new_width = width if old_width < image.shape[1] else min(width, max(1, round(old_width * factor)))
    source = image[y : y + old_height, x : x + old_width]
    target = out[:new_height, :new_width]
    if (old_height, old_width) == (new_height, new_width):
        target[...] = source
    else:
        interpolation = cv2.INTER_AREA if factor < _AREA_BELOW else cv2.INTER_LINEAR
        cv2.resize(source, (new_width, new_height), dst=target, interpolation=interpolation)
    return out, (new_height, new_width)


def _map_boxes(boxes_xyxy: np.ndarray, region: _Region, size: tuple[int, int]) -> np.ndarray:
    """Returns the boxes in pixels of `region` resized to `size`, clipped to it."""
    y, x, old_height, old_width = region
    scale_y, scale_x = size[0] / old_height, size[1] / old_width
    boxes = (np.asarray(boxes_xyxy, np.float64) - [x, y, x, y]) * [scale_x, scale_y, scale_x, scale_y]
    return np.clip(boxes, 0, [size[1], size[0], size[1], size[0]]).astype(np.float32)


def _areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)


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

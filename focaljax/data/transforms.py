"""Resizing, flips, scale jitter and crops of one image and its boxes, on the host.

Numpy arrays in and out; whatever is random is a pure function of the `np.random.Generator` that is passed. Images are
uint8 `[H, W, 3]`, RGB. Boxes are `[N, 4]` xyxy in pixels, with edges at 0 and W (H): a box around a whole image is
`[0, 0, W, H]`, so a resize multiplies it by exactly new / old.
"""

import dataclasses

import cv2
import numpy as np

from focaljax.data.augmentation import Augmentation
from focaljax.data.checks import check_boxes, check_image, checked_scale_range
from focaljax.data.colors import color_jitter
from focaljax.data.crops import Window, boxes_in_window, cropped_window, expanded_window

# Below this factor a bilinear sample skips source pixels altogether, so averaging is worth its cost (about 1 ms for a
# 640x480 image; bilinear takes 0.1 to 0.4 ms).
AREA_BELOW = 0.5

# Pixels; a training image keeps no box with a shorter side. Less than 1, as float32 rounds sides.
SHORTEST_SIDE = 1 - 1e-3

# The colour where a window reaches beyond its image: the mean of ImageNet's, which the network sees as nearly 0.
FILL = (124, 116, 104)

# OpenCV's codes of flips left to right, upside down.
_FLIP_CODES = {(True, False): 1, (False, True): 0, (True, True): -1}


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
    image: np.ndarray,
    *,
    height: int,
    width: int,
    largest_sides: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the image resized to fit and padded, and the height and width of its content.

    The aspect is kept up to the rounding to whole pixels, the content lies top-left, the padding is 0. Interpolation is
    bilinear; below half size it is the mean over the pixels that fall together (`INTER_AREA`).

    Args:
        image: uint8 `[H, W, 3]`.
        height, width: shape of the result, in pixels.
        largest_sides: pixels that the shorter and the longer side of the content do not exceed, up to rounding; None:
            the shape is the only bound.
        out: uint8 `[height, width, 3]`, all zeros, to write the result into (a row of a batch); None for a new array.

    Returns:
        The padded image, uint8 `[height, width, 3]`, and the size of its content, from which
        `focaljax.data.resize.restore_boxes` takes boxes back into the original image.

    Raises:
        ValueError: an argument has the wrong shape or dtype.

    Example:
        >>> padded, size = resize_and_pad(np.full((100, 200, 3), 255, np.uint8), height=64, width=64)
        >>> size, int(padded[31, 63, 0]), int(padded[32, 63, 0])
        ((32, 64), 255, 0)
    """
    check_image(image)
    old_size = image.shape[0], image.shape[1]
    factor = _fit_factor(old_size, height, width, largest_sides)
    size = _resized_size(old_size, old_size, factor, height, width)
    return _write_resized(image, size, factor, height, width, out), size


def fitted_size(
    size: tuple[int, int], *, height: int, width: int, largest_sides: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Returns the height and width of the content that `resize_and_pad` makes of an image of this size, in pixels."""
    return _resized_size(size, size, _fit_factor(size, height, width, largest_sides), height, width)


def random_scale_and_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    is_crowd: np.ndarray | None = None,
    *,
    height: int,
    width: int,
    scale_range: tuple[float, float],
    fit: tuple[int, int] | None = None,
    min_visible: float = 0.25,
    flips: tuple[bool, bool] = (False, False),
    window: Window | None = None,
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
        fit: the height and width that an image at scale 1 just fits; None: `height` and `width`.
        min_visible: share of a box's area that must stay visible, in 0..1.
        flips: whether image and boxes are mirrored left to right, and upside down: x1 becomes W - x2, x2 becomes
            W - x1. The crop is one of the mirrored image; its pixels are mirrored last, after the resize.
        window: of the image, and is taken for the whole of it; where it reaches beyond, it has the colour `FILL`.
        fitted_from: if `image` is the content that `resize_and_pad` makes of an image for this shape, the height and
            width of that image, in whose pixels the boxes are. The result is the same as for that image.
        out: uint8 `[height, width, 3]`, all zeros, to write the result into; None for a new array.

    Returns:
        The image, its boxes and its geometry.

    Raises:
        ValueError: an argument has the wrong shape, dtype or range.
    """
    check_image(image)
    check_boxes(boxes_xyxy, is_crowd)
    smallest, largest = checked_scale_range("scale_range", scale_range)
    if not 0 <= min_visible <= 1:
        raise ValueError(f"min_visible must be in 0..1, got {min_visible!r}.")
    if window is None:
        old_height, old_width = old_size = fitted_from or (image.shape[0], image.shape[1])
    else:
        old_height, old_width = old_size = window[3] - window[1], window[2] - window[0]
        boxes_xyxy = boxes_xyxy - np.array(window[:2] * 2, np.float32)
    draw_scale, draw_y, draw_x = rng.random(3).tolist()
    factor = _fit_factor(old_size, *(fit or (height, width))) * (smallest + draw_scale * (largest - smallest))
    crop_height = min(old_height, max(1, round(height / factor)))
    crop_width = min(old_width, max(1, round(width / factor)))
    y = int(draw_y * (old_height - crop_height + 1))
    x = int(draw_x * (old_width - crop_width + 1))
    size = _resized_size(old_size, (crop_height, crop_width), factor, height, width)
    # Of the crop's pixels to those of the result, along x and y.
    scales, shifts = (size[1] / crop_width, size[0] / crop_height), (0.0, 0.0)
    if fitted_from is None:
        top = (old_height - crop_height - y if flips[1] else y) + (window[1] if window else 0)
        left = (old_width - crop_width - x if flips[0] else x) + (window[0] if window else 0)
        image, scales, shifts = _part(image, (left, top, left + crop_width, top + crop_height), size, factor, flips)
    elif image.shape[:2] != size or (smallest, largest) != (1, 1) or window:
        raise ValueError(f"fitted_from {fitted_from} needs an image of {size} and scale (1, 1), got {image.shape[:2]}.")
    padded = _write_resized(image, size, factor, height, width, out, flips)

    old_boxes = _flip_boxes(boxes_xyxy, old_size, flips).astype(np.float64)
    low, high = np.array([x, y, x, y]), np.array([x + crop_width, y + crop_height] * 2)
    is_visible = _areas(np.minimum(np.maximum(old_boxes, low), high)) >= min_visible * _areas(old_boxes)
    if is_crowd is not None:
        is_visible |= np.asarray(is_crowd, bool)
    boxes = (old_boxes - low) * np.array(scales * 2) + np.array(shifts * 2)
    boxes = np.minimum(np.maximum(boxes, 0), np.array([size[1], size[0]] * 2)).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    is_kept = is_visible & (np.minimum(sides[:, 0], sides[:, 1]) >= SHORTEST_SIDE)
    return ScaledCrop(padded, boxes[is_kept], is_kept, np.array(size, np.int32))


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
    mosaic_fit: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> ScaledCrop:
    """Returns the image and boxes after flips, colour jitter, SSD's window, and scaling with crop and padding.

    Colour comes before the padding so that the padding stays 0. The same numbers are drawn whichever steps are switched
    on, so that a change of one setting leaves the draws of the others alone.

    Args:
        rng: the only source of randomness.
        image: uint8 `[H, W, 3]`.
        boxes_xyxy: `[N, 4]` in pixels of `image`; N may be 0.
        is_crowd: bool `[N]`.
        augmentation: probabilities and ranges; what mixes images is not done here but in `focaljax.data.mixing`.
        height, width: shape of the result, in pixels.
        fitted_from: as in `random_scale_and_crop`, for an augmentation that `flips_only`.
        mosaic_fit: for an image in a mosaic, height and width of the whole; its scale is `augmentation.mosaic_scale`.
        out: uint8 `[height, width, 3]`, all zeros, to write the image into; None for a new array.

    Returns:
        The image and the boxes that are still visible; index labels and other values of the objects by its `is_kept`.

    Raises:
        ValueError: an argument has the wrong shape or dtype.
    """
    check_boxes(boxes_xyxy, is_crowd)
    draw_horizontal, draw_vertical = rng.random(2).tolist()
    window, size, is_inside = None, fitted_from or (image.shape[0], image.shape[1]), np.ones(len(boxes_xyxy), bool)
    if augmentation.ssd_expand or augmentation.ssd_crop:
        window = _ssd_window(generator_beside(rng, 1), size, boxes_xyxy[~is_crowd], augmentation)
        size = window[3] - window[1], window[2] - window[0]
        boxes_xyxy, is_inside = boxes_in_window(boxes_xyxy, is_crowd, window)
    scale = augmentation.mosaic_scale if mosaic_fit else augmentation.scale
    if augmentation.short_sides and not mosaic_fit:
        short_side = generator_beside(rng, 2).choice(augmentation.short_sides)
        largest_sides = int(short_side), augmentation.longest_side
        scale = (_fit_factor(size, height, width, largest_sides) / _fit_factor(size, height, width),) * 2
    colors = {name: getattr(augmentation, name) for name in ("brightness", "contrast", "saturation", "hue")}
    image = color_jitter(rng, image, **colors)
    view = random_scale_and_crop(
        rng,
        image,
        boxes_xyxy[is_inside],
        is_crowd[is_inside],
        height=height,
        width=width,
        scale_range=scale,
        fit=mosaic_fit,
        min_visible=augmentation.min_visible,
        flips=(draw_horizontal < augmentation.horizontal_flip, draw_vertical < augmentation.vertical_flip),
        window=window,
        fitted_from=fitted_from,
        out=out,
    )
    is_kept = is_inside.copy()
    is_kept[is_inside] = view.is_kept
    return dataclasses.replace(view, is_kept=is_kept)


def fill_with_mean(image: np.ndarray) -> None:
    """Writes the colour `FILL` into every pixel of an image, uint8 `[H, W, 3]`."""
    image[0] = FILL
    image[1:] = image[0]  # whole rows: a hundred times as fast as pixels


def generator_beside(rng: np.random.Generator, number: int) -> np.random.Generator:
    """Returns a generator of other numbers, which follow from the state of this one; it draws nothing from it.

    Args:
        rng: of a kind that jumps, such as Philox and PCG64.
        number: from 1; other numbers are other generators.
    """
    return np.random.Generator(rng.bit_generator.jumped(number))  # type: ignore[attr-defined]


def _ssd_window(
    rng: np.random.Generator, size: tuple[int, int], boxes_xyxy: np.ndarray, augmentation: Augmentation
) -> Window:
    """Returns what SSD's zoom-out and crop, each with its probability, leave to be seen of an image of this size."""
    draw_expand, draw_crop = rng.random(2).tolist()
    window = expanded_window(rng, size, largest=augmentation.ssd_expand_max)
    if draw_expand >= augmentation.ssd_expand:
        window = (0, 0, size[1], size[0])
    return cropped_window(rng, window, boxes_xyxy) if draw_crop < augmentation.ssd_crop else window


def _fit_factor(size: tuple[int, int], height: int, width: int, largest_sides: tuple[int, int] | None = None) -> float:
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 pixel, got {height} and {width}.")
    factor = min(height / size[0], width / size[1])
    if largest_sides is None:
        return factor
    return min(factor, largest_sides[0] / min(size), largest_sides[1] / max(size))


def _resized_size(
    size: tuple[int, int], crop: tuple[int, int], factor: float, height: int, width: int
) -> tuple[int, int]:
    """Returns the height and width of a crop of an image of this size after resizing by `factor`."""
    # A cropped axis fills the output: round(height / factor) source pixels may be half a source pixel off.
    return (
        height if crop[0] < size[0] else min(height, max(1, round(crop[0] * factor))),
        width if crop[1] < size[1] else min(width, max(1, round(crop[1] * factor))),
    )


def _part(
    image: np.ndarray, part: Window, size: tuple[int, int], factor: float, flips: tuple[bool, bool]
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Returns a part of an image, and the scales and shifts along x and y that take its pixels to the result's.

    Where the part reaches beyond the image it is resized to `size` and filled up with `FILL`. What of it is image then
    begins and ends at whole pixels of the result, and scales and shifts are those of that, after the flips.
    """
    (left, right), (to_left, to_right), scale_x, shift_x = _along(part[::2], image.shape[1], size[1], flips[0])
    (top, bottom), (to_top, to_bottom), scale_y, shift_y = _along(part[1::2], image.shape[0], size[0], flips[1])
    inside = image[top:bottom, left:right]
    filled = inside
    if inside.shape[:2] != (part[3] - part[1], part[2] - part[0]):
        filled = np.empty((*size, 3), np.uint8)
        fill_with_mean(filled)
        new_size = to_right - to_left, to_bottom - to_top
        if min(new_size) > 0:
            target = filled[to_top:to_bottom, to_left:to_right]
            target[...] = cv2.resize(inside, new_size, interpolation=_interpolation(factor))
    return filled, (scale_x, scale_y), (shift_x, shift_y)


def _along(
    part: tuple[int, int], side: int, size: int, is_flipped: bool
) -> tuple[tuple[int, int], tuple[int, int], float, float]:
    """Returns one axis of a part: what of it is image, where in the result that is, and the scale and shift of that."""
    low, high = part
    begin, end = min(max(low, 0), side), min(max(high, 0), side)
    scale = size / (high - low)
    to_begin, to_end = round((begin - low) * scale), round((end - low) * scale)
    if to_begin < to_end:
        scale = (to_end - to_begin) / (end - begin)
    shift = size - to_end - (high - end) * scale if is_flipped else to_begin - (begin - low) * scale
    return (begin, end), (to_begin, to_end), scale, shift


def _interpolation(factor: float) -> int:
    return cv2.INTER_AREA if factor < AREA_BELOW else cv2.INTER_LINEAR


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
        interpolation = _interpolation(factor)
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

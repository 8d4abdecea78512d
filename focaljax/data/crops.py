"""The windows of SSD's augmentation: which part of an image, or of its surroundings, is looked at.

Source: Liu et al. 2016 (https://arxiv.org/abs/1512.02325), section 2.2, and for zoom-out section 3.6. Numpy, on the
host. A window is `(x1, y1, x2, y2)` in whole pixels of the image; it may reach beyond the image.
"""

import math

import numpy as np

Window = tuple[int, int, int, int]

# What is asked of a crop: an object that it overlaps with at least this IoU. None: the crop is the whole image; 0.0:
# any crop. Each that can be met is as likely as the others.
SSD_CHOICES = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
# So many crops are drawn, of which the first that is as asked is taken. SSD's authors draw 50.
_TRIES = 50
# Of each side, so that the area is a tenth of the image's at least.
_SMALLEST_SIDE = math.sqrt(0.1)
_MOST_ELONGATED = 2.0


def expanded_window(rng: np.random.Generator, size: tuple[int, int], *, largest: float = 4.0) -> Window:
    """Returns a window around an image, so that its objects become smaller (zoom-out).

    Both sides of the window are those of the image times one factor, drawn uniformly from `1..largest`; the image lies
    anywhere in it with equal probability.

    Args:
        rng: three numbers are drawn from it.
        size: height and width of the image, in pixels.
        largest: factor on both sides, at least 1.

    Example:
        >>> x1, y1, x2, y2 = expanded_window(np.random.default_rng(0), (10, 20))
        >>> x1 <= 0 and y1 <= 0 and x2 >= 20 and y2 >= 10
        True
    """
    draw_factor, draw_y, draw_x = rng.random(3).tolist()
    factor = 1 + draw_factor * (largest - 1)
    height, width = round(size[0] * factor), round(size[1] * factor)
    y = -int(draw_y * (height - size[0] + 1))
    x = -int(draw_x * (width - size[1] + 1))
    return x, y, x + width, y + height


def cropped_window(rng: np.random.Generator, window: Window, boxes_xyxy: np.ndarray) -> Window:
    """Returns a random part of the window, as SSD crops: with one of `SSD_CHOICES`, drawn at random.

    Each side is between sqrt(0.1) and 1 of the window's, so that the area is between a tenth and all of it; one side is
    at most twice the other; and where there are objects, the centre of one of them is inside. A choice that none of 50
    draws meets, such as an IoU where there is no object, leaves it to the other choices, as in the authors' code.

    Args:
        rng: as many numbers are drawn from it whatever comes out.
        window: to be cropped.
        boxes_xyxy: `[N, 4]`, the objects, without crowd regions; N may be 0.
    """
    choices, draws = rng.permutation(len(SSD_CHOICES)).tolist(), rng.random((_TRIES, 4))
    start, sides = np.array(window[:2]), np.array([window[2] - window[0], window[3] - window[1]])
    new_sides = np.maximum(1, np.rint(sides * (_SMALLEST_SIDE + draws[:, :2] * (1 - _SMALLEST_SIDE))))
    corners = start + np.floor(draws[:, 2:] * (sides - new_sides + 1))
    tries = np.concatenate([corners, corners + new_sides], axis=1)
    is_as_asked = new_sides.max(axis=1) <= _MOST_ELONGATED * new_sides.min(axis=1)
    ious = np.zeros(_TRIES)
    if len(boxes_xyxy):
        is_as_asked &= _has_center(tries, boxes_xyxy).any(axis=1)
        ious = _pairwise_iou(tries, boxes_xyxy).max(axis=1)
    for smallest_iou in (SSD_CHOICES[choice] for choice in choices):
        if smallest_iou is None:
            break
        if (is_chosen := is_as_asked & (ious >= smallest_iou)).any():
            x1, y1, x2, y2 = tries[is_chosen.argmax()].astype(int).tolist()
            return x1, y1, x2, y2
    return window


def boxes_in_window(boxes_xyxy: np.ndarray, is_crowd: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes clipped to the window, and which of them stay, bool `[N]`.

    An object stays if its centre is in the window. A crowd region stays if any of it is, because its pixels must not
    become background.

    Example:
        >>> boxes, is_crowd = np.array([[0, 0, 8, 8], [0, 0, 11, 8], [9, 0, 11, 8.0]]), np.array([False, False, True])
        >>> clipped, is_inside = boxes_in_window(boxes, is_crowd, (5, 0, 10, 8))
        >>> is_inside.tolist(), clipped[is_inside].tolist()
        ([False, True, True], [[5.0, 0.0, 10.0, 8.0], [9.0, 0.0, 10.0, 8.0]])
    """
    low, high = np.array(window[:2] * 2), np.array(window[2:] * 2)
    clipped = np.minimum(np.maximum(boxes_xyxy, low), high)
    is_seen = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return clipped, np.where(is_crowd, is_seen, _has_center(np.array([window]), boxes_xyxy)[0])


def _has_center(windows_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Returns which windows, `[M, 4]`, hold the centre of which boxes, `[N, 4]`, as bool `[M, N]`."""
    centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    windows = windows_xyxy[:, None]
    return ((windows[..., :2] < centers) & (centers < windows[..., 2:])).all(axis=-1)


def _pairwise_iou(windows_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Returns the IoU of windows, `[M, 4]`, and boxes with an area, `[N, 4]`, as `[M, N]`."""
    windows = windows_xyxy[:, None]
    shared = np.minimum(windows[..., 2:], boxes_xyxy[:, 2:]) - np.maximum(windows[..., :2], boxes_xyxy[:, :2])
    intersections = np.maximum(shared, 0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) for boxes in (windows, boxes_xyxy)]
    return intersections / (areas[0] + areas[1] - intersections)

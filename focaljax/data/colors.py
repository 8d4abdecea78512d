"""Colour jitter of one image, on the host."""

import math

import cv2
import numpy as np

from focaljax.data.checks import check_image

# RGB to YIQ (NTSC). The last two rows sum to 0, so a turn of (I, Q) leaves greys as they are, and Y is the luma.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_INVERSE = np.linalg.inv(_YIQ)
_LUMA = _YIQ[0]


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

    Example:
        >>> grey = np.full((2, 2, 3), 100, np.uint8)
        >>> bool((color_jitter(np.random.default_rng(0), grey, saturation=1.0, hue=0.5) == grey).all())
        True
    """
    check_image(image)
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

"""Backgrounds, fills, colours and the camera's faults for the embedded data set `shapes`.

As in `focaljax.data.shapes_drawing`, pixels are made with integer arithmetic, so that they are the same everywhere.
"""

import colorsys
import math
import statistics

import cv2
import numpy as np

Colour = tuple[int, int, int]

_GREY_WEIGHTS = (77, 150, 29)  # of 256: the eye's sensitivity to red, green and blue
# Table from a random byte to a normally distributed number, in 64ths of a standard deviation.
_NORMAL_QUANTILES = np.array(
    [round(64 * statistics.NormalDist().inv_cdf((i + 0.5) / 256)) for i in range(256)], np.int32
)


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns a uint8 `[height, width, 3]` texture: three colours spread over gradients, noise and stripes."""
    layers = [ramp(rng, height, width)]
    for cells in (3, 7, 20, 56):
        if rng.random() < 0.6:
            layers.append(_smooth_noise(rng, height, width, cells))
    if rng.random() < 0.35:
        layers.append(stripes(rng, height, width, period=int(rng.integers(8, 48))))
    weights = rng.integers(1, 9, len(layers))
    weights = weights * 256 // weights.sum()
    tone = np.zeros((height, width), np.uint16)
    for layer, weight in zip(layers, weights):
        tone += layer * np.uint16(weight)
    # Three colours near each other: texture to be told from objects, but not as strong as they are.
    hue, value = rng.random(), 0.3 + 0.5 * rng.random()
    colours = [
        _hsv(hue + 0.2 * (rng.random() - 0.5), 0.05 + 0.4 * rng.random(), value + 0.3 * (rng.random() - 0.5))
        for _ in range(3)
    ]
    return tint((tone >> 8).astype(np.uint8), colours)


def draw_clutter(rng: np.random.Generator, image: np.ndarray, *, count: int, lines_only: bool = False) -> None:
    """Draws `count` thin lines, open arcs and specks into `image`, in place: things that are not objects."""
    height, width = image.shape[:2]
    for _ in range(count):
        colour = _random_colour(rng)
        x, y = int(rng.integers(width)), int(rng.integers(height))
        kind = 0 if lines_only else int(rng.integers(3))
        if kind == 0:
            end = int(rng.integers(width)), int(rng.integers(height))
            cv2.line(image, (x, y), end, colour, 1, cv2.LINE_AA)
        elif kind == 1:
            radius, start, sweep = int(rng.integers(5, 31)), int(rng.integers(360)), int(rng.integers(60, 201))
            cv2.ellipse(image, (x, y), (radius, radius), 0, start, start + sweep, colour, 1, cv2.LINE_AA)
        else:
            for _ in range(int(rng.integers(3, 9))):
                offset = rng.integers(-14, 15, 2)
                speck = x + int(offset[0]), y + int(offset[1])
                cv2.circle(image, speck, int(rng.integers(1, 3)), colour, -1, cv2.LINE_AA)


def degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Returns `image` as a poor camera would see it: blurred (one in three), with noise of a random strength."""
    if rng.random() < 1 / 3:
        size = 3 if rng.random() < 0.7 else 5
        image = cv2.GaussianBlur(image, (size, size), 0)  # 0: the binomial kernel, exact in fixed point
    noise = cv2.LUT(
        np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape),
        (_NORMAL_QUANTILES * int(rng.integers(1, 8)) >> 6).astype(np.int16),
    )
    return cv2.add(image, noise, dtype=cv2.CV_8U)


def ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns a uint8 gradient of a random direction that spans 0..255."""
    dx, dy = (int(step) for step in rng.integers(-16, 17, 2))
    # 16 bits of fraction, so that the division is one for the image instead of one for each pixel.
    unit = (255 << 16) // max(1, abs(dx) * (width - 1) + abs(dy) * (height - 1))
    dx, dy = dx * unit, dy * unit
    low = min(0, dx * (width - 1)) + min(0, dy * (height - 1))
    rows = np.arange(height, dtype=np.int32) * np.int32(dy) - np.int32(low)
    columns = np.arange(width, dtype=np.int32) * np.int32(dx)
    return ((rows[:, None] + columns) >> 16).astype(np.uint8)


def stripes(rng: np.random.Generator, height: int, width: int, *, period: int) -> np.ndarray:
    """Returns uint8 soft stripes of a random direction, about `period` pixels wide."""
    turn = math.tau * rng.random()
    dx, dy = round(1024 * math.cos(turn) / period), round(1024 * math.sin(turn) / period)
    phase = np.arange(height, dtype=np.int32)[:, None] * dy + np.arange(width, dtype=np.int32) * dx
    phase = (phase + int(rng.integers(1024))) & 1023
    return np.clip(2 * np.abs(phase - 512) - 384, 0, 255).astype(np.uint8)  # a triangle wave with its ends cut off


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Returns uint8 noise whose grains are about 1 / `cells` of the image."""
    grid = np.frombuffer(rng.bytes(cells * cells), np.uint8).reshape(cells, cells)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)


def tint(tone: np.ndarray, colours: list[Colour]) -> np.ndarray:
    """Returns an RGB image from uint8 tones: 0 becomes the first of the colours, 255 the last, evenly spread."""
    position = np.arange(256) * (len(colours) - 1)
    low = np.minimum(position // 255, len(colours) - 2)
    weight = (position - low * 255)[:, None]
    table = np.array(colours)
    table = (table[low] * (255 - weight) + table[low + 1] * weight + 127) // 255
    return cv2.LUT(cv2.merge([tone, tone, tone]), table.astype(np.uint8)[None])


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _random_colour(rng: np.random.Generator, hue: float | None = None) -> Colour:
    if hue is None:
        return _hsv(rng.random(), 0.35 + 0.6 * rng.random(), 0.25 + 0.75 * rng.random())
    return _hsv(hue + 0.1 * (rng.random() - 0.5), 0.55 + 0.4 * rng.random(), 0.4 + 0.6 * rng.random())


def colour_unlike(
    rng: np.random.Generator,
    other: list[int] | Colour,
    contrast: int,
    *,
    hue: float | None = None,
    near: Colour | None = None,
) -> Colour:
    """Returns a random colour at least `contrast` away from `other` where a few tries find one.

    Args:
        rng: the source of the colour.
        other: RGB, 0..255.
        contrast: the distance wanted, 0..255, the mean of brightness and the largest channel's difference.
        hue: if given, in 0..1, the colour is a strong one of about this hue.
        near: if given, the colour is a mixture of this and a random one.
    """
    best, best_distance = (0, 0, 0), -1
    for _ in range(8):
        colour = _random_colour(rng, hue)
        if near is not None:
            colour = (colour[0] + near[0]) // 2, (colour[1] + near[1]) // 2, (colour[2] + near[2]) // 2
        channels = [a - b for a, b in zip(colour, other)]
        brightness = abs(sum(weight * channel for weight, channel in zip(_GREY_WEIGHTS, channels))) // 256
        distance = (brightness + max(abs(channel) for channel in channels)) // 2
        if distance > best_distance:
            best, best_distance = colour, distance
        if distance >= contrast:
            break
    return best

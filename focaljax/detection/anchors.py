"""Anchors: the boxes of fixed sizes and shapes that tile each level of the feature pyramid."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

LAYOUTS = ("centered", "torchvision")


def feature_shape(image_size: tuple[int, int], level: int) -> tuple[int, int]:
    """Returns the height and width of pyramid level P`level` (stride 2^level) for an image of `image_size`.

    Each of the network's stride-2 layers halves a side and rounds up, as padding by one pixel on both sides does.

    Args:
        image_size: height and width in pixels.
        level: 3 for P3, and so on.

    Example:
        >>> feature_shape((100, 64), 3)
        (13, 8)
    """
    height, width = image_size
    stride = 2**level
    return -(-height // stride), -(-width // stride)


def pyramid_anchors(
    image_size: tuple[int, int],
    *,
    levels: Sequence[int] = (3, 4, 5, 6, 7),
    sizes: Sequence[float] = (32.0, 64.0, 128.0, 256.0, 512.0),
    scales: Sequence[float] = (1.0, 2.0 ** (1 / 3), 2.0 ** (2 / 3)),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    layout: str = "centered",
) -> tuple[Array, ...]:
    """Returns the anchors of each pyramid level, in the order of the network's outputs.

    The anchor at feature position (i, j) of a level with stride s is centred at pixel (x, y) = (j s, i s), where the
    receptive field of that position is centred; torchvision and detectron2 place it there too, TensorFlow's detectors
    half a stride further. An anchor has the area `(size scale)^2` and the shape height / width = ratio.

    The layout 'torchvision' is for weights trained by torchvision and equals its anchors bit for bit, oddities
    included: `size scale` is cut to an integer and the corners around the position are rounded (halves to even); ratios
    come before scales; and a level's stride is the image's side over the level's, rounded down, which is too short
    where the level's side was rounded up: P6 of 800 px has 13 rows and the stride 61, not 64.

    Args:
        image_size: height and width of the (padded) image in pixels.
        levels: pyramid levels; level l has the stride 2^l.
        sizes: for each level, the side of its square anchor of scale 1, in pixels.
        scales: factors on the size, in 1/octave steps by default.
        ratios: height over width.
        layout: one of `LAYOUTS`.

    Returns:
        For each level `[h w S R, 4]` float32, corners in pixels: row by row over positions, at each position scale by
        scale, and ratio by ratio within a scale ('torchvision': ratio by ratio, and scale by scale within a ratio).
        Anchors may reach outside the image.

    Raises:
        ValueError: `layout` is unknown, `sizes` and `levels` differ in length, or a size, scale or ratio is not
            positive; or 'torchvision' rounds an anchor to nothing.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 4, 'Anchors'.

    Example:
        >>> p3, p4 = pyramid_anchors((16, 16), levels=(3, 4), sizes=(8.0, 16.0), scales=(1.0,), ratios=(1.0,))
        >>> print(p3)
        [[-4. -4.  4.  4.]
         [ 4. -4. 12.  4.]
         [-4.  4.  4. 12.]
         [ 4.  4. 12. 12.]]
        >>> p4.shape
        (1, 4)
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if len(sizes) != len(levels):
        raise ValueError(f"sizes has {len(sizes)} entries, levels {len(levels)}: one size a level is needed")
    for name, values in (("sizes", sizes), ("scales", scales), ("ratios", ratios)):
        if not len(values) or min(values) <= 0:
            raise ValueError(f"{name} must be positive numbers, at least one, got {tuple(values)}")
    result = []
    for level, size in zip(levels, sizes, strict=True):
        shape = feature_shape(image_size, level)
        if layout == "centered":
            strides = (2**level, 2**level)
            cell = _cell_anchors(size, scales, ratios)
        else:
            strides = (image_size[0] // shape[0], image_size[1] // shape[1])
            cell = _torchvision_cell_anchors(size, scales, ratios)
        result.append(_level_anchors(shape, strides, cell))
    return tuple(result)


def _cell_anchors(size: float, scales: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Returns the anchors of one position around the origin, `[S R, 4]` float64."""
    sides = size * np.asarray(scales, np.float64)[:, None]
    roots = np.sqrt(np.asarray(ratios, np.float64))[None, :]
    half = 0.5 * np.stack([sides / roots, sides * roots], axis=-1).reshape(-1, 2)
    return np.concatenate([-half, half], axis=-1)


def _torchvision_cell_anchors(size: float, scales: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Returns torchvision's anchors of one position around the origin, `[R S, 4]` float32."""
    # All in float32, in its order: a corner near a half would otherwise be rounded the other way.
    sides = np.asarray([int(size * scale) for scale in scales], np.float32)[None, :]
    roots = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    half = np.stack([(1 / roots) * sides, roots * sides], axis=-1).reshape(-1, 2) / 2
    corners = np.round(np.concatenate([-half, half], axis=-1))
    if not corners.all():
        raise ValueError(
            "sizes, scales and ratios must give anchors that layout 'torchvision' does not round to nothing, got size "
            f"{size}, scales {tuple(scales)}, ratios {tuple(ratios)}: use larger ones, or layout 'centered'"
        )
    return corners


def _level_anchors(shape: tuple[int, int], strides: tuple[int, int], cell: np.ndarray) -> Array:
    # Built from iotas on the device: as a constant, a large image's anchors would be megabytes in the program.
    y = jnp.arange(shape[0], dtype=jnp.float32) * strides[0]
    x = jnp.arange(shape[1], dtype=jnp.float32) * strides[1]
    centers = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
    corners = jnp.tile(centers, 2)[:, :, None, :] + jnp.asarray(cell, jnp.float32)
    return corners.reshape(-1, 4)

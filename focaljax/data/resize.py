"""The resizing that the published detectors were trained and measured with: by the shorter side, at most so long.

`transforms.resize_and_pad` fits an image into one fixed shape; here every image keeps a size of its own, and a batch is
padded to what its images need. Numpy arrays in and out, on the host.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

_DTYPES = (np.uint8, np.float32, np.float64)


def shortest_edge_size(height: int, width: int, *, min_size: int = 800, max_size: int = 1333) -> tuple[int, int]:
    """Returns the height and width to which an image is resized.

    The shorter side becomes `min_size`, or, where the longer one would exceed `max_size`, that becomes `max_size`:
    `scale = min(min_size / shorter, max_size / longer)`, both sides times the scale, rounded down.

    Rounded down as torchvision does, in the same order of operations, so that the sizes are equal; the product falls
    just short of a whole number now and then, and a side is a pixel shorter than `min_size` or `max_size`. torchvision
    fails where a side becomes 0; here it stays 1.

    Args:
        height: of the image, pixels.
        width: likewise.
        min_size: of the shorter side, pixels.
        max_size: of the longer side, pixels; at least `min_size`.

    Returns:
        Height and width in pixels, at least 1.

    Raises:
        ValueError: a size is less than 1 pixel, or `max_size` less than `min_size`.

    Source: Lin et al. 2016 (arXiv 1612.03144), section 5.1, the shorter side; the longer one as in torchvision's
    `GeneralizedRCNNTransform`.

    Example:
        >>> shortest_edge_size(480, 640), shortest_edge_size(300, 1000)
        ((800, 1066), (399, 1333))
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 pixel, got {height} and {width}")
    if not 1 <= min_size <= max_size:
        raise ValueError(f"sizes must satisfy 1 <= min_size <= max_size, got min_size {min_size}, max_size {max_size}")
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the image resized by bilinear interpolation, not rounded to whole values.

    Output pixel i samples the input at `(i + 1/2) old / new - 1/2`, at least 0, on each axis (edges of the two images
    coincide). There is no averaging where an image shrinks, as in the published detectors, which `resize_and_pad`
    does below half size.

    The result is within 1e-4 (of values in 0..255) of exact arithmetic. torch's interpolation in float32 is not: its
    sample positions are rounded to float32, which moves values by some 0.05 in a large image.

    Args:
        image: uint8, float32 or float64 `[H, W, 3]`.
        height: new, pixels.
        width: new, pixels.

    Returns:
        `[height, width, 3]`, float32 (float64 for a float64 image).

    Raises:
        TypeError: the image is of another type.
        ValueError: the image has another shape, or a size is less than 1 pixel.

    Example:
        >>> print(resize_bilinear(np.array([[[0] * 3, [200] * 3]], np.uint8), 1, 4)[0, :, 0])
        [  0.  50. 150. 200.]
    """
    if image.dtype not in _DTYPES:
        raise TypeError(f"image must be uint8, float32 or float64, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be non-empty of shape [H, W, 3], got {image.shape}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 pixel, got {height} and {width}")
    # Not on uint8: OpenCV would round the result to whole values, an error of up to 0.8.
    image = image.astype(np.result_type(image.dtype, np.float32), copy=False)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def padded_size(sizes: Sequence[tuple[int, int]], *, multiple: int = 32) -> tuple[int, int]:
    """Returns the height and width of the smallest batch that holds images of these sizes, in whole multiples.

    Args:
        sizes: height and width of each image in pixels; at least one.
        multiple: of which both sides are; 32 is the coarsest stride of the backbone.

    Raises:
        ValueError: there is no image, or `multiple` is less than 1.

    Example:
        >>> padded_size([(800, 1066), (1199, 800)])
        (1216, 1088)
    """
    if not len(sizes):
        raise ValueError("sizes is empty: a batch has at least one image")
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    height, width = (-(-max(sides) // multiple) * multiple for sides in zip(*sizes, strict=True))
    return height, width


def restore_boxes(boxes_xyxy: np.ndarray, size: tuple[int, int], original_size: tuple[int, int]) -> np.ndarray:
    """Returns the boxes of a resized image in pixels of the image as it came.

    Each side has a ratio of its own, old / new, because both are rounded to whole pixels; the ratios are float32, as
    torchvision's are.

    Args:
        boxes_xyxy: floating `[..., 4]`, corners in pixels of the resized image, without its padding.
        size: height and width of the resized image.
        original_size: height and width of the image as it came.

    Returns:
        `[..., 4]`, of the type of `boxes_xyxy`.

    Example:
        >>> print(restore_boxes(np.array([10.0, 10.0, 1066.0, 800.0]), (800, 1066), (480, 640)))
        [  6.00375235   6.00000024 640.0000006  480.00001907]
    """
    scale = np.array(original_size, np.float32) / np.array(size, np.float32)
    return (boxes_xyxy * scale[[1, 0, 1, 0]]).astype(boxes_xyxy.dtype)

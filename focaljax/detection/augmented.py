"""Test-time augmentation: the candidates of flipped and resized views of an image, brought together."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from focaljax.detection.nms import Detections
from focaljax.detection.postprocess import Candidates, suppress

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def flip_boxes(boxes_xyxy: Array, width: ArrayLike) -> Array:
    """Returns the boxes in the image mirrored left to right: `x1' = width - x2`, `x2' = width - x1`.

    Its own inverse. Flip candidates rather than detections, whose padding rows would no longer be 0.

    Args:
        boxes_xyxy: `[..., 4]`, corners in pixels.
        width: of the image without its padding, in pixels: what is mirrored is the image, not the padded array.

    Returns:
        `[..., 4]`, corners in pixels, float32 (float64 where the boxes are).

    Example:
        >>> import jax.numpy as jnp
        >>> print(flip_boxes(jnp.array([0.0, 2.0, 3.0, 4.0]), 10))
        [ 7.  2. 10.  4.]
    """
    boxes_xyxy = _as_boxes(boxes_xyxy)
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    width = jnp.asarray(width, boxes_xyxy.dtype)
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def rescale_boxes(boxes_xyxy: Array, from_size: ArrayLike, to_size: ArrayLike) -> Array:
    """Returns the boxes of an image in pixels of the same image at another size.

    Each side has its own factor, `x' = x to_width / from_width`, for sizes are rounded to whole pixels.

    Args:
        boxes_xyxy: `[..., 4]`, corners in pixels.
        from_size: `[2]`, height and width of the image, without padding, in which the boxes are.
        to_size: `[2]`, height and width of the image in which they are to be.

    Returns:
        `[..., 4]`, corners in pixels, float32 (float64 where the boxes are).

    Raises:
        ValueError: a size is not a height and a width.

    Example:
        >>> import jax.numpy as jnp
        >>> print(rescale_boxes(jnp.array([2.0, 2.0, 4.0, 6.0]), (8, 8), (4, 16)))
        [4. 1. 8. 3.]
    """
    boxes_xyxy = _as_boxes(boxes_xyxy)
    sizes = []
    for name, size in (("from_size", from_size), ("to_size", to_size)):
        sizes.append(jnp.asarray(size, boxes_xyxy.dtype))
        if sizes[-1].shape != (2,):
            raise ValueError(f"{name} must be a height and a width, shape (2,), got {sizes[-1].shape}")
    # Multiplied first: the same size gives the same boxes, and so do whole numbers that divide.
    (from_height, from_width), (to_height, to_width) = sizes
    to_sides = jnp.stack([to_width, to_height, to_width, to_height])
    return boxes_xyxy * to_sides / jnp.stack([from_width, from_height, from_width, from_height])


def merge_views(
    views: Sequence[Candidates],
    *,
    nms_iou: float = 0.5,
    max_detections: int = 100,
    suppression: str = "hard",
    soft_sigma: float = 0.5,
) -> Detections:
    """Returns the detections of one image from the candidates of several views of it.

    All candidates, with the scores that they have, go through one suppression, so that of an object that several views
    found the best box stays. With hard suppression a view given twice changes nothing, but for boxes without area,
    which suppress nothing.

    Args:
        views: at least one; their boxes in pixels of one frame (see `flip_boxes` and `rescale_boxes`). Of equal scores
            that of the earlier view comes first.
        nms_iou: as in `suppress`.
        max_detections: D.
        suppression: as in `suppress`.
        soft_sigma: as in `suppress`.

    Returns:
        `Detections` with D rows.

    Raises:
        ValueError: there is no view, or as `suppress`.

    Example:
        >>> import jax.numpy as jnp
        >>> view = Candidates(jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([0.5]), jnp.array([3]))
        >>> mirrored = Candidates(flip_boxes(jnp.array([[6.0, 0.0, 10.0, 4.5]]), 10), jnp.array([0.75]), jnp.array([3]))
        >>> found = merge_views([view, mirrored], max_detections=2)
        >>> print(found.scores, found.boxes_xyxy[0])
        [0.75 0.  ] [0.  0.  4.  4.5]
    """
    if not views:
        raise ValueError("views is empty: give the candidates of one view at least, such as the image as it is")
    return suppress(
        jax.tree.map(lambda *fields: jnp.concatenate(fields), *views),
        nms_iou=nms_iou,
        max_detections=max_detections,
        suppression=suppression,
        soft_sigma=soft_sigma,
    )


def _as_boxes(boxes_xyxy: Array) -> Array:
    boxes_xyxy = jnp.asarray(boxes_xyxy)
    if boxes_xyxy.ndim == 0 or boxes_xyxy.shape[-1] != 4:
        raise ValueError(f"boxes_xyxy must have the shape [..., 4], got {boxes_xyxy.shape}")
    return boxes_xyxy.astype(jnp.promote_types(boxes_xyxy.dtype, jnp.float32))

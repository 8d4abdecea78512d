"""Detection of objects in batches of images on the device, in one view of each image or in several."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from focaljax.detection import (
    Candidates,
    Detections,
    candidates,
    flip_boxes,
    merge_views,
    pyramid_anchors,
    rescale_boxes,
    softmax_log_odds,
)
from focaljax.models.retinanet import normalize_images

Array = jax.Array
Batch = Mapping[str, Any]

# The entries of a batch that the device needs; the others (image ids, original sizes) stay on the host.
VIEW_KEYS = ("image", "size", "more_views")
# The arguments of `postprocess` that can be set: those of `candidates`, then those of the suppression.
_OF_CANDIDATES = ("score_threshold", "pre_nms_top_k")
THRESHOLDS = (*_OF_CANDIDATES, "nms_iou", "suppression", "soft_sigma", "max_detections")


@dataclasses.dataclass(frozen=True)
class TestTimeAugmentation:
    """Views of an image besides the plain one; what is found in all of them goes through one non-maximum suppression.

    Attributes:
        flip: each view is also taken mirrored left to right.
        scales: factors on the size that an image usually gets, one view each; (1,) is the plain one alone.

    Raises:
        ValueError: a scale is not above 0, or there is none or the same twice.

    Example:
        >>> TestTimeAugmentation(flip=True, scales=(0.8, 1.0, 1.2)).num_views
        6
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    # pytest takes classes of this name for tests.
    __test__ = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if not self.scales or not all(0.0 < scale < 10.0 for scale in self.scales):
            raise ValueError(f"scales must be factors above 0 and below 10, at least one, got {self.scales}")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales names a factor twice: {self.scales}; leave one out")

    @property
    def num_views(self) -> int:
        """How many times the network runs on each image."""
        return len(self.scales) * (2 if self.flip else 1)


def make_predict_step(
    model: nn.Module,
    *,
    anchors: Mapping[str, Any],
    thresholds: Mapping[str, Any],
    pixels: Mapping[str, Any] | None = None,
    flip: bool = False,
    softmax: bool = False,
) -> Callable[[Any, Batch], Detections]:
    """Returns the prediction step, a pure function of (variables, batch), not yet compiled.

    Each view is decoded by itself; the candidates of all views of an image go through one non-maximum suppression.

    Args:
        model: gives class logits and box deltas for each level.
        anchors: arguments of `pyramid_anchors` besides the image size.
        thresholds: keyword arguments of `postprocess`.
        pixels: arguments of `normalize_images`: mean, std, channel_order; None: its defaults.
        flip: each view is also looked at mirrored left to right.
        softmax: the model was trained with a softmax loss, see `softmax_log_odds`; False: with sigmoids.

    Returns:
        A function from the model's variables and a batch to `Detections` with a leading batch axis, boxes in pixels of
        the batch's images. The batch has `image` `[B, H, W, 3]`, RGB in 0..255, uint8 or float; `size` int `[B, 2]`,
        height and width without padding; and perhaps `more_views`, a tuple of the same images at other sizes, each with
        its `image` and `size`.
    """
    before = {name: value for name, value in thresholds.items() if name in _OF_CANDIDATES}
    after = {name: value for name, value in thresholds.items() if name not in _OF_CANDIDATES}

    def candidates_of(variables: Any, images: Array, sizes: Array) -> Candidates:
        normalized = normalize_images(images, sizes, **(pixels or {}))
        _, height, width, _ = images.shape
        anchors_xyxy = pyramid_anchors((height, width), **anchors)
        class_logits, box_deltas = model.apply(variables, normalized, train=False)
        if softmax:
            class_logits = jax.tree.map(softmax_log_odds, class_logits)
        find = lambda logits, deltas, size: candidates(logits, deltas, anchors_xyxy, size, **before)  # noqa: E731
        return jax.vmap(find)(class_logits, box_deltas, sizes)

    def predict_step(variables: Any, batch: Batch) -> Detections:
        found = []
        for index, view in enumerate((batch, *batch.get("more_views", ()))):
            images, sizes = view["image"], view["size"]
            of_view = [candidates_of(variables, images, sizes)]
            if flip:
                mirrored = candidates_of(variables, mirror_contents(images, sizes), sizes)
                boxes_xyxy = jax.vmap(flip_boxes)(mirrored.boxes_xyxy, sizes[:, 1])
                of_view.append(dataclasses.replace(mirrored, boxes_xyxy=boxes_xyxy))
            if index > 0:
                rescale = lambda boxes_xyxy, old=sizes: jax.vmap(rescale_boxes)(boxes_xyxy, old, batch["size"])  # noqa: E731
                of_view = [dataclasses.replace(one, boxes_xyxy=rescale(one.boxes_xyxy)) for one in of_view]
            found += of_view
        return jax.vmap(lambda *of_image: merge_views(of_image, **after))(*found)

    return predict_step


def mirror_contents(images: Array, sizes: Array) -> Array:
    """Returns the images mirrored left to right, each inside its padding: the content stays top-left.

    Args:
        images: `[B, H, W, C]`.
        sizes: int `[B, 2]`, height and width of the contents.

    Example:
        >>> print(mirror_contents(jnp.array([1, 2, 3, 0]).reshape(1, 1, 4, 1), jnp.array([[1, 3]])).ravel())
        [3 2 1 0]
    """
    width = images.shape[2]
    columns = (sizes[:, 1:] - 1 - jnp.arange(width)) % width
    return jnp.take_along_axis(images, columns[:, None, :, None], axis=2)

"""What a data set holds, from its annotations alone: its boxes side by side, counts, and boxes that stand twice."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from focaljax.data.example import Source
from focaljax.data.transforms import SHORTEST_SIDE, fitted_size
from focaljax.detection.boxes import intersection_and_union


@dataclasses.dataclass(frozen=True)
class SplitBoxes:
    """The boxes of a split as training takes them, repaired; n images, M boxes, those of an image side by side.

    Attributes:
        boxes_xyxy: float32 `[M, 4]`, corners in pixels.
        labels: int32 `[M]`, class index in 0..K-1.
        is_crowd: bool `[M]`.
        image_index: int64 `[M]`, of 0..n-1, ascending.
        sizes: int64 `[n, 2]`, height and width in the same pixels.
        image_ids: n ids.
        file_names: n names.
        class_names: K names.
    """

    boxes_xyxy: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    image_index: np.ndarray
    sizes: np.ndarray
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def sides(self) -> np.ndarray:
        """Float32 `[M, 2]`, height and width of each box in pixels."""
        return (self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2])[:, ::-1]

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """What there is how often in a split; n images, K classes. Crowd regions are no objects.

    Attributes:
        objects: number of objects.
        crowds: number of crowd regions.
        objects_of_class: int64 `[K]`.
        images_of_class: int64 `[K]`, images with at least one object of the class.
        objects_of_image: int64 `[n]`.
        boxes_of_image: int64 `[n]`, crowd regions included.
    """

    objects: int
    crowds: int
    objects_of_class: np.ndarray
    images_of_class: np.ndarray
    objects_of_image: np.ndarray
    boxes_of_image: np.ndarray


def read_split_boxes(source: Source) -> SplitBoxes:
    """Returns the boxes of a source; no image is decoded."""
    images = source.ground_truth()["images"]
    sizes = np.array([(image["height"], image["width"]) for image in images], np.int64).reshape(-1, 2)
    # In place of pixels: a zero that looks like an image of any size.
    examples = [
        source.with_image(index, np.broadcast_to(np.uint8(0), (*size, 3))) for index, size in enumerate(sizes.tolist())
    ]
    return SplitBoxes(
        boxes_xyxy=np.concatenate([np.zeros((0, 4), np.float32), *(example.boxes_xyxy for example in examples)]),
        labels=np.concatenate([np.zeros(0, np.int32), *(example.labels for example in examples)]),
        is_crowd=np.concatenate([np.zeros(0, bool), *(example.is_crowd for example in examples)]),
        image_index=np.repeat(np.arange(len(examples)), [len(example.labels) for example in examples]),
        sizes=sizes,
        image_ids=tuple(example.image_id for example in examples),
        file_names=tuple(example.file_name for example in examples),
        class_names=tuple(source.class_names),
    )


def resized(split: SplitBoxes, *, height: int, width: int, largest_sides: tuple[int, int] | None = None) -> SplitBoxes:
    """Returns the boxes in pixels of the network's input: resized to fit, without augmentation.

    Left out are boxes with a side below one pixel there, which training drops.

    Args:
        split: boxes in pixels of their images.
        height: of the input, pixels.
        width: likewise.
        largest_sides: see `focaljax.data.transforms.resize_and_pad`.
    """
    fitted = [
        fitted_size((h, w), height=height, width=width, largest_sides=largest_sides) for h, w in split.sizes.tolist()
    ]
    sizes = np.array(fitted, np.int64).reshape(-1, 2)
    factors = (sizes / np.maximum(split.sizes, 1))[split.image_index]
    boxes = (split.boxes_xyxy * factors[:, [1, 0, 1, 0]]).astype(np.float32)
    is_kept = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= SHORTEST_SIDE
    return dataclasses.replace(
        split,
        boxes_xyxy=boxes[is_kept],
        labels=split.labels[is_kept],
        is_crowd=split.is_crowd[is_kept],
        image_index=split.image_index[is_kept],
        sizes=sizes,
    )


def some_images(split: SplitBoxes, most: int) -> SplitBoxes:
    """Returns `most` images with objects, spread evenly over the split, with their boxes.

    The split itself if it has no more images; fewer if fewer have an object.
    """
    if len(split) <= most:
        return split
    having = np.unique(split.image_index[~split.is_crowd])
    chosen = having[np.linspace(0, len(having) - 1, min(most, len(having))).astype(np.int64)]
    place = np.full(len(split), -1)
    place[chosen] = np.arange(len(chosen))
    is_kept = place[split.image_index] >= 0
    return dataclasses.replace(
        split,
        boxes_xyxy=split.boxes_xyxy[is_kept],
        labels=split.labels[is_kept],
        is_crowd=split.is_crowd[is_kept],
        image_index=place[split.image_index[is_kept]],
        sizes=split.sizes[chosen],
        image_ids=tuple(split.image_ids[index] for index in chosen),
        file_names=tuple(split.file_names[index] for index in chosen),
    )


def count_boxes(split: SplitBoxes) -> SplitCounts:
    """Returns the counts of a split."""
    num_images, num_classes = len(split), len(split.class_names)
    is_object = ~split.is_crowd
    image_index, labels = split.image_index[is_object], split.labels[is_object]
    pairs = np.unique(np.stack([image_index, labels], axis=1), axis=0)
    return SplitCounts(
        objects=int(is_object.sum()),
        crowds=int(split.is_crowd.sum()),
        objects_of_class=np.bincount(labels, minlength=num_classes),
        images_of_class=np.bincount(pairs[:, 1], minlength=num_classes),
        objects_of_image=np.bincount(image_index, minlength=num_images),
        boxes_of_image=np.bincount(split.image_index, minlength=num_images),
    )


def images_without(split: SplitBoxes, label: int) -> list[int]:
    """Returns the positions of the images that have no object of a class."""
    having = split.image_index[(split.labels == label) & ~split.is_crowd]
    return np.setdiff1d(np.arange(len(split)), having).tolist()


def duplicate_boxes(split: SplitBoxes, *, min_iou: float = 0.95) -> np.ndarray:
    """Returns which objects stand twice: an earlier one of the same image and class has almost the same box.

    Args:
        split: the boxes.
        min_iou: from this IoU on two boxes are the same.

    Returns:
        Rows of `split.boxes_xyxy`, ascending.
    """
    rows = np.flatnonzero(~split.is_crowd)
    group = split.image_index[rows] * len(split.class_names) + split.labels[rows]
    order = np.argsort(group, kind="stable")
    _, counts = np.unique(group, return_counts=True)
    largest = int(counts.max(initial=0))
    if largest < 2:
        return rows[:0]
    is_duplicate = _stands_before(split.boxes_xyxy[rows[order]].T, group[order], largest, min_iou)
    return np.sort(rows[order][np.asarray(is_duplicate)])


@functools.partial(jax.jit, static_argnames="min_iou")
def _stands_before(boxes: jax.Array, group: jax.Array, largest: int, min_iou: float) -> jax.Array:
    """Returns bool `[M]`: one of the `largest` - 1 boxes before it is of the same group and has an IoU of `min_iou`."""
    place = jnp.arange(len(group))

    def compare(shift: jax.Array, found: jax.Array) -> jax.Array:
        before, group_before = jnp.roll(boxes, shift, axis=1), jnp.roll(group, shift)
        intersection, union = intersection_and_union(boxes, before)
        return found | ((group == group_before) & (place >= shift) & (intersection >= min_iou * union))

    return jax.lax.fori_loop(1, largest, compare, jnp.zeros(len(group), bool))


def mean_and_quantiles(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Returns the mean, the smallest, the quartiles, and the largest of some values; NaN of none.

    Example:
        >>> mean_and_quantiles([1.0, 2.0, 3.0, 4.0, 10.0])
        (4.0, 1.0, 2.0, 3.0, 4.0, 10.0)
    """
    if not len(values):
        return (float("nan"),) * 6
    return (float(np.mean(values)), *np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0)).tolist())

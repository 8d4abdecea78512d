"""The one in-memory form that every data source gives, and the errors that reading data may raise."""

import dataclasses
from typing import Any, Protocol

import numpy as np

from focaljax.data.report import DataReport


class DataError(ValueError):
    """Data that no sensible training or evaluation can start from; the message says what to do."""


class UnreadableImageError(DataError):
    """One image that cannot be decoded, named by file and image id."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and its objects.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        boxes_xyxy: float32 `[N, 4]`, corners in pixels, `0 <= x1 < x2 <= W` and `0 <= y1 < y2 <= H`; N may be 0.
        labels: int32 `[N]`, class index in 0..K-1.
        is_crowd: bool `[N]`; a crowd region marks a group of objects: neither a target nor background.
        image_id: the source's own id of the image (COCO's `id`).
        file_name: where the image came from, for messages.
        fitted_from: None; or, where `image` is what `focaljax.data.transforms.resize_and_pad` makes of an image,
            without the padding, the height and width of that image: it is the one whose pixels the boxes count.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    image_id: int
    file_name: str
    fitted_from: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image whose pixels the boxes count."""
        return self.fitted_from or (self.image.shape[0], self.image.shape[1])


class Source(Protocol):
    """A random-access detection data set: what the input pipeline and the evaluation need of one.

    Attributes:
        class_names: K names, in label order.
        category_ids: K ids, in label order: label `k` stands for COCO category `category_ids[k]`.
        max_boxes: the largest number of boxes (crowds included) that one image has.
        report: what was repaired or left out when the annotations were read.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    max_boxes: int
    report: DataReport

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes image `index`; raises `UnreadableImageError` if it cannot."""
        ...

    def with_image(self, index: int, image: np.ndarray) -> Example:
        """Returns example `index` with this image, which is not read."""
        ...

    def fingerprint(self) -> str:
        """Returns a text that is another one if any image may be another one, by the times and sizes of the files."""
        ...

    def ground_truth(self) -> dict[str, Any]:
        """Returns the split in COCO's annotation form (`images`, `annotations`, `categories`), for evaluation."""
        ...

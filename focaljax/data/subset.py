"""A part of a data set, to try something on few images."""

from typing import Any

import numpy as np

from focaljax.data.example import Example, Source


class FirstImages:
    """The first images of a source, as a source of their own; see `focaljax.data.example.Source`.

    A model that cannot learn eight images by heart has a fault; that is what this is good for.

    Args:
        source: any source.
        count: how many images; all if there are fewer.

    Raises:
        ValueError: if `count` is less than 1.
    """

    def __init__(self, source: Source, count: int) -> None:
        if count < 1:
            raise ValueError(f"the number of images must be at least 1, got {count}")
        self._source = source
        self._count = min(count, len(source))
        self.class_names = source.class_names
        self.category_ids = source.category_ids
        self.max_boxes = source.max_boxes
        self.report = source.report

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._count:
            raise IndexError(f"image index {index} is not in 0..{self._count - 1}")
        return self._source[index]

    def with_image(self, index: int, image: np.ndarray) -> Example:
        """Returns example `index` with this image, which is not read."""
        return self._source.with_image(index, image)

    def fingerprint(self) -> str:
        """Returns that of the whole source."""
        return self._source.fingerprint()

    def ground_truth(self) -> dict[str, Any]:
        """Returns the part's images and annotations in COCO's form, with all categories."""
        whole = self._source.ground_truth()
        images = whole["images"][: self._count]
        ids = {image["id"] for image in images}
        annotations = [annotation for annotation in whole["annotations"] if annotation["image_id"] in ids]
        return {**whole, "images": images, "annotations": annotations}

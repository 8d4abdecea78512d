"""What every contestant of the input benchmark is given: the same files, and the same boxes for each."""

import itertools
import os
import pathlib
from collections.abc import Iterator

BATCH = 16
BATCHES_A_CALL = 8
# Corners in pixels; the images of COCO have seven objects on average.
BOXES_XYXY = tuple((8.0 * k, 6.0 * k, 8.0 * k + 48, 6.0 * k + 40) for k in range(7))


def list_images(folder: str) -> list[str]:
    """Returns the paths of the images, in their order."""
    return sorted(os.path.join(folder, name) for name in os.listdir(folder))


def endless_batches(paths: list[str]) -> Iterator[list[str]]:
    """Yields batches of paths in their order, over and over."""
    endless = itertools.cycle(paths)
    while True:
        yield list(itertools.islice(endless, BATCH))


def fitted_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Returns the height and width of an image that was resized to fit into a square."""
    factor = min(side / height, side / width)
    return min(side, max(1, round(height * factor))), min(side, max(1, round(width * factor)))


def parse_name(name: str) -> tuple[str, int]:
    """Returns kind and side from a contestant's name, such as 'focaljax/evaluation/640/2'; the last are the threads."""
    _, kind, side, _ = name.split("/")
    return kind, int(side)


def summary(sizes, means) -> dict:
    """Returns what a contestant answers: of its first batch, sizes and mean values of the images without padding."""
    return {
        "sizes": [[int(height), int(width)] for height, width in sizes],
        "means": [round(float(mean), 3) for mean in means],
    }


def document(folder: str) -> dict:
    """Returns the images and boxes in COCO's annotation form, the sizes left to the files."""
    names = [pathlib.PurePath(path).name for path in list_images(folder)]
    boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in BOXES_XYXY]
    return {
        "images": [{"id": index + 1, "file_name": name} for index, name in enumerate(names)],
        "annotations": [
            {"id": 1 + len(boxes) * index + k, "image_id": index + 1, "category_id": 1, "bbox": box}
            for index in range(len(names))
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "object"}],
    }

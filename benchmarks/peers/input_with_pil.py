"""The contestant of the input benchmark that decodes and resizes with Pillow, in threads."""

import concurrent.futures
import itertools

import numpy as np
from input_files import BATCH, BATCHES_A_CALL, endless_batches, fitted_size, parse_name, summary
from input_on_host import OnHost
from PIL import Image

PACKAGES = ("Pillow", "numpy")


class Library(OnHost):
    """Builds contestants by name; see `OnHost`."""

    def build(self, name: str) -> dict:
        """Returns what to call for the one part, "value"."""
        _, side = parse_name(name)
        batches, pool = endless_batches(self.paths), concurrent.futures.ThreadPoolExecutor(self.threads)

        def run():
            return list(pool.map(lambda paths: read_batch(paths, side), itertools.islice(batches, BATCHES_A_CALL)))

        run.first_batch = lambda: read_batch(self.paths[:BATCH], side)
        return {"value": run}

    def answer(self, parts: dict) -> dict:
        """Returns a summary of the first batch."""
        images, sizes = parts["value"].first_batch()
        return summary(sizes, [image[:height, :width].mean() for image, (height, width) in zip(images, sizes)])


def read_batch(paths: list[str], side: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Returns uint8 `[B, side, side, 3]`, resized to fit and padded, and the sizes without padding."""
    images, sizes = np.zeros((len(paths), side, side, 3), np.uint8), []
    for row, path in zip(images, paths):
        with Image.open(path) as image:
            height, width = fitted_size(image.height, image.width, side)
            row[:height, :width] = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        sizes.append((height, width))
    return images, sizes

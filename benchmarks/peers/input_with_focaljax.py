"""The contestants of the input benchmark that are focaljax's own pipeline, and decoding alone, which is their floor."""

import concurrent.futures
import itertools
import tempfile

import simplejpeg
from input_files import BATCH, BATCHES_A_CALL, document, endless_batches, parse_name, summary
from input_on_host import OnHost

from focaljax.data.augmentation import Augmentation
from focaljax.data.cache import CachedSource
from focaljax.data.coco import AnnotatedImages
from focaljax.data.pipeline import evaluation_batches, training_batches
from focaljax.data.subset import FirstImages

PACKAGES = ("focaljax", "grain", "numpy", "opencv-python-headless", "simplejpeg")
# 0.9 MB each, of 640 x 480 pixels.
IMAGES_KEPT = 512
ALL_STEPS = {"scale": (0.8, 1.25), "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
AUGMENTATIONS = {
    "still": Augmentation(horizontal_flip=0.0),
    "flips": Augmentation(),
    "flips, kept": Augmentation(),
    "all steps": Augmentation(**ALL_STEPS),
    "all steps, kept": Augmentation(**ALL_STEPS),
}


class Library(OnHost):
    """Builds contestants by name; see `OnHost`."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self._source = AnnotatedImages(self.folder, document(self.folder), where="benchmark")
        self._kept_in = tempfile.TemporaryDirectory()

    def build(self, name: str) -> dict:
        """Returns what to call for the one part: "value" for the plain work, "training" otherwise."""
        kind, side = parse_name(name)
        if kind == "decode":
            return {"decode": self._decode()}
        arguments = {"batch_size": BATCH, "height": side, "width": side, "num_threads": self.threads}
        if kind == "evaluation":
            passes = (evaluation_batches(self._source, **arguments) for _ in itertools.count())
            run = self.run(itertools.chain.from_iterable(passes))
            run.first_batch = lambda: next(evaluation_batches(self._source, **arguments))
            return {"value": run}
        source = self._source
        if kind.endswith("kept"):
            source = CachedSource(FirstImages(source, IMAGES_KEPT), self._kept_in.name, "train")
        batches = training_batches(
            source, max_boxes=source.max_boxes, seed=self.seed, augmentation=AUGMENTATIONS[kind], **arguments
        )
        return {"training": self.run(batches)}

    def answer(self, parts: dict) -> dict:
        """Returns a summary of the first batch."""
        batch = parts["value"].first_batch()
        sizes = batch["size"].tolist()
        means = [image[:height, :width].mean() for image, (height, width) in zip(batch["image"], sizes)]
        return summary(sizes, means)

    def _decode(self):
        """Returns a call that reads and decodes as many images as the others."""

        def decode(paths):
            for path in paths:
                with open(path, "rb") as file:
                    simplejpeg.decode_jpeg(file.read(), "RGB", strict=False)

        batches, pool = endless_batches(self.paths), concurrent.futures.ThreadPoolExecutor(self.threads)
        return lambda: list(pool.map(decode, itertools.islice(batches, BATCHES_A_CALL)))

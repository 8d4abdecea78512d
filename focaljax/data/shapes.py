"""The embedded data set `shapes` as a TFDS builder: drawn from a seed, written once as array_record, no TensorFlow."""

import contextlib
import dataclasses
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from focaljax.data.example import DataError
from focaljax.data.shapes_drawing import CLASS_NAMES, SPLITS, draw_example, example_rng

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise ImportError(
        "the data set 'shapes' is stored with tensorflow-datasets, which is not installed (or lacks a part: "
        f"{error}); pip install 'focaljax[tfds]'"
    ) from error

Progress = Callable[[int, int], None]


@dataclasses.dataclass(eq=False, kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """What a copy of `shapes` holds; its name carries every field, so that each configuration has its own folder.

    Attributes:
        num_train: images in the split 'train'; a split of 0 images is left out.
        num_val: images in the split 'val'.
        num_test: images in the split 'test'.
        height: of the images in pixels.
        width: of the images in pixels.
        num_classes: 1..5, the first so many of `shapes_drawing.CLASS_NAMES`.
        objects: the largest number of objects of an image.
        typical_colour: the share of objects with the colour of their class, 0..1; at 0 only the form tells.
        seed: 0..2**64 - 1.

    Raises:
        ValueError: if a count is negative or all splits are empty.
    """

    name: str = ""
    num_train: int = 2000
    num_val: int = 200
    num_test: int = 300
    height: int = 160
    width: int = 160
    num_classes: int = 5
    objects: int = 12
    typical_colour: float = 0.97
    seed: int = 0

    def __post_init__(self) -> None:
        counts = self.sizes.values()
        if min(counts) < 0 or max(counts) == 0:
            raise ValueError(f"num_train, num_val, num_test must be 0 or more and not all 0, got {tuple(counts)}")
        self.name = (
            f"{self.height}x{self.width}-classes{self.num_classes}-objects{self.objects}"
            f"-colour{round(100 * self.typical_colour)}-seed{self.seed}"
            f"-train{self.num_train}-val{self.num_val}-test{self.num_test}"
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images of each split."""
        return dict(zip(SPLITS, (self.num_train, self.num_val, self.num_test)))


class ShapesBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes `shapes` in the feature layout of TFDS's `coco`; see `prepare_shapes`.

    Image `i` of a split depends on (seed, split, i), the image's size, the number of classes and the maximum of
    objects; it is the same in a larger split. Records keep that order. `area` is that of the box, in square pixels.
    """

    name = "shapes"
    VERSION = tfds.core.Version("1.0.0")  # raised whenever the same configuration gives other pixels or boxes
    RELEASE_NOTES = {"1.0.0": "The first version."}

    def __init__(
        self, *, config: ShapesConfig | None = None, on_progress: Progress | None = None, **kwargs: Any
    ) -> None:
        self._on_progress = on_progress
        super().__init__(config=config or ShapesConfig(), **kwargs)

    def _info(self) -> Any:
        config = self.builder_config
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            description="Filled shapes on textured backgrounds, drawn from a seed, for object detection.",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(config.height, config.width, 3), encoding_format="png"),
                    "image/filename": features.Text(),
                    "image/id": np.int64,
                    "objects": features.Sequence(
                        {
                            "area": np.float32,
                            "bbox": features.BBoxFeature(),
                            "id": np.int64,
                            "is_crowd": np.bool_,
                            "label": features.ClassLabel(names=CLASS_NAMES[: config.num_classes]),
                        }
                    ),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split, count in self.builder_config.sizes.items() if count}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        done = sum(count for name, count in config.sizes.items() if SPLITS.index(name) < SPLITS.index(split))
        annotation_id = 1
        for index in range(config.sizes[split]):
            encoded, boxes_xyxy, labels = _draw_encoded(config, split, index)
            yield index, _to_features(config, split, index, encoded, boxes_xyxy, labels, annotation_id)
            annotation_id += len(labels)
            if self._on_progress is not None:
                self._on_progress(done + index + 1, sum(config.sizes.values()))

    def _log_download_bytes(self) -> None:
        """Keeps TFDS from printing; there is no download."""

    def _log_download_done(self) -> None:
        """Keeps TFDS from printing; there is no download."""


def prepare_shapes(
    data_dir: str | os.PathLike[str],
    *,
    num_train: int = 2000,
    num_val: int = 200,
    num_test: int = 300,
    height: int = 160,
    width: int = 160,
    num_classes: int = 5,
    objects: int = 12,
    typical_colour: float = 0.97,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> str:
    """Returns the folder of a prepared copy of `shapes`, which is drawn and written if it is not there yet.

    The folder appears whole or not at all, and may be asked for by several processes at once. It takes about 5 ms and
    50 kB an image of the default size; a split is held in memory until it is written.

    Args:
        data_dir: the folder that holds all TFDS data sets; the copy is put into `shapes/CONFIGURATION/VERSION` there.
        num_train: see `ShapesConfig` for this and the following.
        num_val: images in 'val'.
        num_test: images in 'test'.
        height: of the images in pixels, at least 32.
        width: of the images in pixels, at least 32.
        num_classes: 1..5.
        objects: the largest number of objects of an image, 0..100.
        typical_colour: the share of objects with the colour of their class, 0..1, in whole percent.
        seed: 0..2**64 - 1.
        on_progress: called with (images done, images in all) after each image.

    Raises:
        ValueError: if a value is outside its range.
        DataError: if the folder cannot be written, or a split is too large to be held in memory (1 GB).
    """
    config = ShapesConfig(
        num_train=num_train,
        num_val=num_val,
        num_test=num_test,
        height=height,
        width=width,
        num_classes=num_classes,
        objects=objects,
        typical_colour=typical_colour,
        seed=seed,
    )
    # Any bad value is an error here, before a folder is made.
    _draw_encoded(config, "train", 0)
    with _silent_tfds():
        builder = ShapesBuilder(config=config, data_dir=os.path.abspath(data_dir), on_progress=on_progress)
        if builder.is_prepared():
            return str(builder.data_dir)
        try:
            # TFDS makes a folder for downloads even where there are none.
            with tempfile.TemporaryDirectory() as downloads:
                builder.download_and_prepare(download_dir=downloads, file_format="array_record")
        except OSError as error:
            # Another process may have put the same data there since: its folder is as good as ours.
            if not os.path.isfile(os.path.join(builder.data_dir, "dataset_info.json")):
                raise DataError(
                    f"shapes cannot be written to {builder.data_dir}: {error}; choose a data folder that is writable "
                    "and has room"
                ) from error
        except ImportError as error:
            raise DataError(
                f"shapes {config.name}: a split is over 1 GB, for which tensorflow-datasets needs TensorFlow; ask for "
                "fewer or smaller images"
            ) from error
    return str(builder.data_dir)


def _draw_encoded(config: ShapesConfig, split: str, index: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Returns (PNG, boxes_xyxy, labels) of one image."""
    image, boxes_xyxy, labels = draw_example(
        example_rng(config.seed, split, index),
        height=config.height,
        width=config.width,
        num_classes=config.num_classes,
        max_objects=config.objects,
        typical_colour=config.typical_colour,
    )
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes(), boxes_xyxy, labels


def _to_features(
    config: ShapesConfig,
    split: str,
    index: int,
    encoded: bytes,
    boxes_xyxy: np.ndarray,
    labels: np.ndarray,
    first_annotation_id: int,
) -> dict[str, Any]:
    """Returns one image in the layout of the builder's features."""
    objects = [
        {
            "area": (x2 - x1) * (y2 - y1),
            "bbox": tfds.features.BBox(
                ymin=y1 / config.height, xmin=x1 / config.width, ymax=y2 / config.height, xmax=x2 / config.width
            ),
            "id": first_annotation_id + row,
            "is_crowd": False,
            "label": label,
        }
        for row, ((x1, y1, x2, y2), label) in enumerate(zip(boxes_xyxy.tolist(), labels.tolist()))
    ]
    return {
        "image": io.BytesIO(encoded),
        "image/filename": f"{split}_{index:06d}.png",
        "image/id": index + 1,
        "objects": objects,
    }


@contextlib.contextmanager
def _silent_tfds() -> Iterator[None]:
    """Switches the progress bars and warnings of TFDS off for a while."""
    bars_were_on = getattr(tfds.core.utils.tqdm_utils, "_active", True)
    logger = logging.getLogger("absl")
    level = logger.level
    tfds.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars_were_on:
            tfds.enable_progress_bar()

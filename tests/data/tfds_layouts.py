"""Small data sets in the layouts of TFDS's `coco` and `voc`, written with TFDS's own writer."""

import io
import pathlib
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

COCO_NAMES = ["person", "bicycle", "car"]
VOC_NAMES = ["aeroplane", "bicycle"]


def encode(height: int, width: int, *, suffix: str = ".jpg", seed: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.imencode(suffix, cv2.resize(coarse, (width, height)))[1].tobytes()


def coco_features() -> Any:
    objects = {
        "area": np.int64,
        "bbox": tfds.features.BBoxFeature(),
        "id": np.int64,
        "is_crowd": np.bool_,
        "label": tfds.features.ClassLabel(names=COCO_NAMES),
    }
    return {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "objects": tfds.features.Sequence(objects),
    }


def coco_object(xyxy: tuple[float, ...], size: tuple[int, int], **values: Any) -> dict[str, Any]:
    (x1, y1, x2, y2), (height, width) = xyxy, size
    bbox = tfds.features.BBox(ymin=y1 / height, xmin=x1 / width, ymax=y2 / height, xmax=x2 / width)
    return {"area": 7, "id": 1, "is_crowd": False, "label": 0, **values, "bbox": bbox}


def coco_image(image_id: int, size: tuple[int, int], objects: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    image = {"image": io.BytesIO(encode(*size, seed=image_id)), "image/filename": f"{image_id:012d}.jpg"}
    return {**image, "image/id": image_id, "objects": objects, **values}


def prepare(
    data_dir: pathlib.Path,
    splits: dict[str, list[dict[str, Any]]],
    features: dict[str, Any],
    *,
    name: str = "coco",
    config: str | None = "2017",
    version: str = "1.1.0",
) -> pathlib.Path:
    """Writes a data set with TFDS's own writer; returns its folder."""
    own_name, own_version = name, version

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = own_name
        VERSION = tfds.core.Version(own_version)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    tfds.disable_progress_bar()
    builder_config = tfds.core.BuilderConfig(name=config) if config else None
    builder = Writer(data_dir=str(data_dir), config=builder_config)
    builder.download_and_prepare(file_format="array_record", download_dir=str(data_dir / "downloads"))
    return pathlib.Path(builder.data_dir)

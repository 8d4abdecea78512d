"""A small prepared data set in the layout of TFDS's `coco`, and a small one of COCO's files."""

import json
import pathlib

import cv2
import numpy as np
import pytest

from focaljax.data.coco import CocoSource
from tests.data.tfds_layouts import coco_features, coco_image, coco_object, prepare


@pytest.fixture(scope="session")
def coco_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    data_dir = tmp_path_factory.mktemp("coco")
    train = [
        coco_image(
            139,
            (48, 64),
            [
                coco_object((1.25, 2.5, 33.17, 40.09), (48, 64), id=501, label=2, area=900),
                coco_object((0, 0, 64, 48), (48, 64), id=502, label=0, is_crowd=True, area=3000),
            ],
        ),
        coco_image(7, (33, 45), []),
        coco_image(581929, (427, 640), [coco_object((473.07, 395.93, 511.72, 427.0), (427, 640), id=503, label=1)]),
    ]
    validation = [coco_image(9, (20, 30), [coco_object((2, 3, 9, 8), (20, 30), id=1)])]
    prepare(data_dir, {"train": train, "validation": validation}, coco_features())
    return data_dir


def annotation(annotation_id, image_id, category_id, bbox, **members):
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "iscrowd": 0,
        **members,
    }


@pytest.fixture
def document():
    """Three 40 x 30 images (width x height), the second empty, and three classes, one of which never occurs."""
    return {
        "images": [
            {"id": image_id, "file_name": f"{name}.png", "width": 40, "height": 30}
            for image_id, name in ((50, "c"), (9, "a"), (700, "b"))
        ],
        "annotations": [
            annotation(11, 50, 90, [1.5, 2, 10, 20.25], area=123.5),
            annotation(13, 700, 4, [0, 0, 40, 30], area=1200, iscrowd=1),
            annotation(12, 50, 4, [5, 5, 1, 1], area=1),
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 4, "name": "ant"}, {"id": 17, "name": "cat"}],
    }


@pytest.fixture
def load(tmp_path):
    """Writes images and annotations, and returns the source that reads them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for shade, name in enumerate("abc"):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((30, 40, 3), 50 * shade, np.uint8))

    def load(document, **options):
        text = document if isinstance(document, str) else json.dumps(document)
        (tmp_path / "annotations.json").write_text(text)
        return CocoSource(folder, tmp_path / "annotations.json", **options)

    load.folder = folder
    load.annotations = tmp_path / "annotations.json"
    return load


def kinds(source):
    return [finding.kind for finding in source.report.findings]

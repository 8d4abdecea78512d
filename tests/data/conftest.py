"""A small prepared data set in the layout of TFDS's `coco`."""

import pathlib

import pytest

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

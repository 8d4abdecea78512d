"""From a config to sources: each kind by its settings, and other splits with the training split's classes."""

import cv2
import numpy as np
import pytest

from focaljax.cli import datasets
from focaljax.cli.config import default_config, load_config
from focaljax.cli.main import UsageError
from tests.cli.conftest import TINY
from tests.data.test_pipeline import FakeSource

OBJECT = (
    "<object><name>{name}</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>"
)


@pytest.fixture
def voc_root(tmp_path):
    """VOC's layout: two images in the training list, one, of one class only, in the validation list."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name, classes in (("a", ("dog", "cat")), ("b", ("dog",)), ("c", ("dog",))):
        cv2.imwrite(str(tmp_path / "JPEGImages" / f"{name}.jpg"), np.full((40, 30, 3), 90, np.uint8))
        size = "<size><width>30</width><height>40</height><depth>3</depth></size>"
        objects = "".join(OBJECT.format(name=label) for label in classes)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("c\n")
    return tmp_path


def test_voc_by_settings_and_val_with_the_classes_of_train(voc_root):
    config = default_config()
    config.data.source = "voc"
    config.data.root = str(voc_root)
    for split in ("train", "val"):
        config.data[split].update(images="JPEGImages", annotations="Annotations", name=f"ImageSets/Main/{split}.txt")
    train = datasets.make_source(config, "train")
    assert (len(train), train.class_names) == (2, ("cat", "dog"))
    val = datasets.make_source(config, "val", classes=datasets.Classes(train.class_names, train.category_ids))
    # 'dog' alone would be label 0.
    assert (len(val), val[0].labels.tolist()) == (1, [1])


def test_tfds_by_name_reads_a_prepared_data_set(data_root):
    shapes = load_config([f"--config={TINY}", f"--config.data.root={data_root}"])
    drawn = datasets.make_source(shapes, "train")
    config = default_config()
    config.data.source = "tfds"
    config.data.root = str(data_root)
    config.data.tfds_name = f"shapes/{next(iter((data_root / 'shapes').iterdir())).name}"
    config.data.train.name = "train[:50%]"
    part = datasets.make_source(config, "train")
    assert len(part) == len(drawn) // 2
    np.testing.assert_array_equal(part[0].boxes_xyxy, drawn[0].boxes_xyxy)


@pytest.mark.parametrize(("mixing", "rows"), [({}, 3), ({"mosaic": 0.1}, 12), ({"mosaic": 0.1, "mixup": 0.1}, 24)])
def test_there_are_rows_for_the_boxes_of_all_images_that_are_mixed(mixing, rows):
    config = default_config()
    config.data.image_size = (32, 32)
    config.augment.update(mixing)
    source = FakeSource(4)  # of at most three boxes
    assert next(datasets.training_batches(config, source, 0))["boxes"].shape == (16, rows, 4)
    config.data.max_boxes = 5
    assert next(datasets.training_batches(config, source, 0))["boxes"].shape == (16, 5, 4)


def test_limit_takes_the_first_images(data_root):
    config = load_config([f"--config={TINY}", f"--config.data.root={data_root}", "--config.data.train.limit=3"])
    assert len(datasets.make_source(config, "train")) == 3


def test_classes_survive_the_workdir(data_root, tmp_path):
    config = load_config([f"--config={TINY}", f"--config.data.root={data_root}"])
    source = datasets.make_source(config, "train")
    datasets.save_classes(source, tmp_path)
    assert datasets.load_classes(tmp_path) == datasets.Classes(source.class_names, source.category_ids)
    (tmp_path / "classes.json").write_text("[{}]")
    with pytest.raises(UsageError, match=r"classes\.json cannot be read"):
        datasets.load_classes(tmp_path)

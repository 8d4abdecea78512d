"""From a config to sources: each kind by its settings, and other splits with the training split's classes."""

import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.cli import build
from focaljax.cli.config import default_config, load_config
from focaljax.cli.data_reports import reporting_damage, write_data_report
from focaljax.cli.main import UsageError
from focaljax.data.report import DataReport, Finding
from focaljax.training import mesh as meshes
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
    train = build.make_source(config, "train")
    assert (len(train), train.class_names) == (2, ("cat", "dog"))
    val = build.make_source(config, "val", classes=build.Classes(train.class_names, train.category_ids))
    # 'dog' alone would be label 0.
    assert (len(val), val[0].labels.tolist()) == (1, [1])


def test_tfds_by_name_reads_a_prepared_data_set(data_root):
    shapes = load_config([f"--config={TINY}", f"--config.data.root={data_root}"])
    drawn = build.make_source(shapes, "train")
    config = default_config()
    config.data.source = "tfds"
    config.data.root = str(data_root)
    config.data.tfds_name = f"shapes/{next(iter((data_root / 'shapes').iterdir())).name}"
    config.data.train.name = "train[:50%]"
    part = build.make_source(config, "train")
    assert len(part) == len(drawn) // 2
    np.testing.assert_array_equal(part[0].boxes_xyxy, drawn[0].boxes_xyxy)


@pytest.mark.parametrize(("mixing", "rows"), [({}, 3), ({"mosaic": 0.1}, 12), ({"mosaic": 0.1, "mixup": 0.1}, 24)])
def test_there_are_rows_for_the_boxes_of_all_images_that_are_mixed(mixing, rows):
    config = default_config()
    config.data.image_size = (32, 32)
    config.augment.update(mixing)
    source = FakeSource(4)  # of at most three boxes
    assert next(build.training_batches(config, source, 0))["boxes"].shape == (16, rows, 4)
    config.data.max_boxes = 5
    assert next(build.training_batches(config, source, 0))["boxes"].shape == (16, 5, 4)


def test_limit_takes_the_first_images(data_root):
    config = load_config([f"--config={TINY}", f"--config.data.root={data_root}", "--config.data.train.limit=3"])
    assert len(build.make_source(config, "train")) == 3


def test_classes_survive_the_workdir(data_root, tmp_path):
    config = load_config([f"--config={TINY}", f"--config.data.root={data_root}"])
    source = build.make_source(config, "train")
    build.save_classes(source, tmp_path)
    assert build.load_classes(tmp_path) == build.Classes(source.class_names, source.category_ids)
    (tmp_path / "classes.json").write_text("[{}]")
    with pytest.raises(UsageError, match=r"classes\.json cannot be read"):
        build.load_classes(tmp_path)


def test_settings_that_save_memory_reach_the_step_and_leave_the_state_in_float32():
    settings = ["--config.model.remat=true", "--config.model.dtype=bfloat16", "--config.optim.accumulate=4"]
    config = load_config([f"--config={TINY}", *settings])
    mesh = meshes.make_mesh(jax.devices()[:2])
    build.check_config(config, mesh)
    model = build.make_model(config, 3)
    assert (model.remat, model.dtype) == (True, jnp.bfloat16)
    optimizer, schedule = build.make_optimizer_and_schedule(config)
    state = jax.eval_shape(build.initial_state(config, model, optimizer, mesh))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    step = build.compiled_train_step(config, model, optimizer, schedule, mesh)
    jaxpr = str(jax.make_jaxpr(step)(state, build.example_batch(config)))
    # A scan over 4 parts of 2 images, blocks computed anew, activations in half the bytes.
    assert "length=4" in jaxpr
    assert "checkpoint" in jaxpr or "remat" in jaxpr
    assert "bf16[2,16,16" in jaxpr


def test_report_keeps_what_earlier_starts_have_found(tmp_path):
    def start(*findings):
        source = types.SimpleNamespace(report=DataReport(findings))
        write_data_report(source, "train", tmp_path)

    start()
    assert not list(tmp_path.iterdir())
    start(Finding("empty: skipped", "a.jpg"), Finding("cut off: skipped", "b.jpg"))
    start(Finding("empty: skipped", "a.jpg"), Finding("empty: skipped", "c.jpg", image_id=7))
    found = (tmp_path / "data_report_train.txt").read_text().splitlines()
    assert found == ["empty: skipped: a.jpg", "cut off: skipped: b.jpg", "empty: skipped: c.jpg (image 7)"]


def test_what_is_found_while_training_is_written_though_training_fails(tmp_path):
    source = types.SimpleNamespace(report=DataReport([Finding("empty: skipped", "a.jpg")]))

    def train():
        source.report.add("cut off: skipped", "b.jpg")
        raise KeyError("a fault")

    with pytest.raises(KeyError), reporting_damage((source, "train"), workdir=tmp_path):
        train()
    assert "cut off: skipped: b.jpg" in (tmp_path / "data_report_train.txt").read_text()

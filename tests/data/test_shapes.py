import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from focaljax.data import shapes_drawing as drawing
from focaljax.data.shapes import ShapesBuilder, ShapesConfig, prepare_shapes
from focaljax.data.tfds_source import TfdsSource

SMALL = {"num_train": 12, "num_val": 5, "num_test": 4, "height": 64, "width": 96}


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [drawing.draw_example(drawing.example_rng(3, "train", index)) for index in range(150)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shapes")
    prepare_shapes(folder, **SMALL)
    return folder


def test_images_and_boxes_have_the_documented_form(drawn):
    for image, boxes, labels in drawn:
        assert image.shape == (160, 160, 3)
        assert image.dtype == np.uint8
        assert boxes.shape == (len(labels), 4)
        assert boxes.dtype == np.float32
        assert labels.dtype == np.int32
        assert (boxes >= 0).all()
        assert (boxes <= 160).all()
        assert (boxes * 4 == np.round(boxes * 4)).all()


def test_objects_are_0_to_12_and_every_class_occurs(drawn):
    counts = [len(labels) for _, _, labels in drawn]
    assert min(counts) == 0
    assert max(counts) == 12
    assert set(np.concatenate([labels for _, _, labels in drawn]).tolist()) == {0, 1, 2, 3, 4}


def test_a_part_of_the_images_is_empty_but_not_many(drawn):
    empty = np.mean([len(labels) == 0 for _, _, labels in drawn])
    assert 0.02 < empty < 0.2


def test_sides_run_from_12_pixels_to_about_half_of_the_image(drawn):
    boxes = np.concatenate([boxes for _, boxes, _ in drawn])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= drawing.MIN_SIDE
    assert sides.min() < 14
    assert 85 < sides.max() < 110
    assert 0.3 < np.mean(sides.max(1) < 32) < 0.7


def test_some_boxes_overlap(drawn):
    overlapping = 0
    for _, boxes, _ in drawn:
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        overlapping += int((np.triu((high > low + 4).all(-1), 1)).any())
    assert overlapping > 20


def test_example_depends_on_seed_split_and_index_alone():
    image, boxes, labels = drawing.draw_example(drawing.example_rng(1, "val", 2), height=64, width=80)
    again = drawing.draw_example(drawing.example_rng(1, "val", 2), height=64, width=80)
    for a, b in zip((image, boxes, labels), again):
        np.testing.assert_array_equal(a, b)
    for other in ((2, "val", 2), (1, "test", 2), (1, "val", 3)):
        assert (drawing.draw_example(drawing.example_rng(*other), height=64, width=80)[0] != image).any()


def test_keys_of_splits_and_seeds_never_meet():
    last = drawing.example_rng(0, "train", 2**48 - 1).integers(2**62)
    first_of_val = drawing.example_rng(0, "val", 0).integers(2**62)
    first_of_next_seed = drawing.example_rng(1, "train", 0).integers(2**62)
    assert len({int(last), int(first_of_val), int(first_of_next_seed)}) == 3


def test_pixels_are_those_of_the_first_release():
    # A change here makes every measured AP and every prepared copy stale: raise ShapesBuilder.VERSION with it.
    image, boxes, labels = drawing.draw_example(drawing.example_rng(0, "train", 1), height=64, width=64)
    assert labels.tolist() == [2, 0]
    assert boxes.sum() == 302.5
    assert image[10, 10].tolist() == [97, 64, 91]
    assert int(image.sum(dtype=np.int64)) == 1134554


@pytest.mark.parametrize("label", range(5))
@pytest.mark.parametrize("seed", range(8))
def test_box_is_the_tight_box_of_the_painted_pixels(label, seed):
    rng = np.random.default_rng(seed)
    image = np.full((90, 120, 3), 128, np.uint8)
    centre = (120 * rng.random(), 90 * rng.random())
    polygon = drawing.shape_polygon(rng, label, 12 + 40 * rng.random()) + centre
    mask = drawing.rasterise(polygon, height=90, width=120, edge_width=2.0 * (seed % 2))
    drawing.paint(rng, image, mask)
    rows, columns = np.nonzero((image != 128).any(-1))
    changed = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    # The box is given to a quarter of a pixel, so that it ends within the outermost pixels that changed.
    assert np.abs(np.array(mask.box_xyxy) - changed).max() < 1.0


def test_box_of_an_axis_aligned_rectangle_is_exact():
    polygon = np.array([[10.0, 20.0], [29.75, 20.0], [29.75, 39.75], [10.0, 39.75]])
    mask = drawing.rasterise(polygon, height=64, width=64)
    # A filled subpixel counts whole: the last one covered begins at 29.75 (39.75) and ends at 30 (40).
    assert mask.box_xyxy == (10.0, 20.0, 30.0, 40.0)
    assert mask.inside == 1.0
    assert int((mask.coverage == 128).sum()) == 20 * 20


def test_shape_across_the_edge_is_clipped_with_its_fraction_inside():
    polygon = np.array([[-10.0, 5.0], [9.75, 5.0], [9.75, 24.75], [-10.0, 24.75]])
    mask = drawing.rasterise(polygon, height=64, width=64)
    assert mask.box_xyxy == (0.0, 5.0, 10.0, 25.0)
    assert mask.inside == pytest.approx(0.5)
    assert drawing.rasterise(polygon - 100, height=64, width=64) is None


def test_box_of_a_clipped_shape_does_not_reach_to_its_corners_outside():
    # A diamond centred on the right edge at x = 64: its left half is inside, its top (64, 12) and bottom (64, 52)
    # are on the edge. Moved 10 to the right, the part inside ends where the edge cuts its sides: 10 lower, 10 higher.
    diamond = np.array([[64.0, 12.0], [84.0, 32.0], [64.0, 52.0], [44.0, 32.0]])
    assert drawing.rasterise(diamond, height=64, width=64).box_xyxy == pytest.approx((44, 12, 64, 52), abs=0.3)
    moved = drawing.rasterise(diamond + (10, 0), height=64, width=64)
    assert moved.box_xyxy == pytest.approx((54, 22, 64, 42), abs=0.3)


def test_concave_shape_has_its_exact_area():
    # A cross of 40 x 40 with arms 8 wide: 2 * 40 * 8 - 8 * 8 = 576 square pixels, and half a subpixel around its
    # outline of 160 pixels, because subpixels that the outline touches count: about 576 + 160 / 8 = 596.
    half, arm = 20.0, 4.0
    quarter = [(arm, half), (arm, arm), (half, arm)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(y, -x) for x, y in quarter]
    mask = drawing.rasterise(np.array(corners) + 32, height=64, width=64)
    assert mask.coverage.sum() / 128 == pytest.approx(596, abs=12)


def test_painted_shape_stands_out_from_a_plain_background():
    contrasts = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image = np.full((64, 64, 3), (90, 120, 60), np.uint8)
        mask = drawing.rasterise(drawing.shape_polygon(rng, seed % 5, 30) + 32, height=64, width=64)
        drawing.paint(rng, image, mask)
        inside = image[mask.window][mask.coverage == 128].astype(int)
        contrasts.append(np.abs(inside - (90, 120, 60)).max(-1).mean())
    assert min(contrasts) > 20
    assert np.median(contrasts) > 60


def test_no_annotated_shape_is_hidden(monkeypatch):
    # Each shape is repainted with its number in a picture of its own; what remains of it there is what is seen.
    masks: list[drawing.Mask] = []
    paint = drawing.paint

    def recording_paint(rng, image, mask, **options):
        masks.append(mask)
        paint(rng, image, mask, **options)

    monkeypatch.setattr(drawing, "paint", recording_paint)
    for index in range(60):
        masks.clear()
        _, boxes, _ = drawing.draw_example(drawing.example_rng(5, "train", index))
        assert len(boxes) == len(masks)
        front = np.zeros((160, 160), int)
        for number, mask in enumerate(masks, 1):
            front[mask.window][mask.coverage > 64] = number
        for number, mask in enumerate(masks, 1):
            assert (front == number).sum() >= drawing.MIN_VISIBLE * (mask.coverage > 64).sum()


@pytest.mark.parametrize("typical_colour", [0.0, 1.0])
def test_typical_colour_decides_whether_a_class_has_its_hue(typical_colour):
    # A disc's hue is red: where its class decides, nearly all middles of flat discs are reddish; else few are.
    is_red = []
    for index in range(120):
        image, boxes, labels = drawing.draw_example(
            drawing.example_rng(0, "train", index), num_classes=1, max_objects=2, typical_colour=typical_colour
        )
        for x1, y1, x2, y2 in boxes[labels == 0]:
            red, green, blue = image[int(y1 + y2) // 2, int(x1 + x2) // 2].astype(int)
            is_red.append(red > max(green, blue))
    assert (np.mean(is_red) > 0.75) == (typical_colour == 1.0)


def test_few_classes_and_few_objects():
    for index in range(20):
        _, boxes, labels = drawing.draw_example(drawing.example_rng(0, "test", index), num_classes=3, max_objects=2)
        assert len(boxes) <= 2
        assert (labels < 3).all()
    assert len(drawing.draw_example(drawing.example_rng(0, "test", 0), max_objects=0)[1]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 16}, "at least 32"),
        ({"num_classes": 6}, r"num_classes must be in 1\.\.5, got 6"),
        ({"max_objects": -1}, "max_objects"),
    ],
)
def test_values_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        drawing.draw_example(drawing.example_rng(0, "train", 0), **arguments)


def test_unknown_split_and_bad_seed_are_named():
    with pytest.raises(ValueError, match="train, val, test"):
        drawing.example_rng(0, "valid", 0)
    with pytest.raises(ValueError, match="seed"):
        drawing.example_rng(-1, "train", 0)


def test_drawing_needs_neither_tfds_nor_jax():
    code = (
        "import sys, focaljax.data.shapes_drawing\n"
        "sys.exit(any(name in sys.modules for name in ('tensorflow_datasets', 'jax', 'grain', 'simplejpeg')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prepared_records_are_the_drawings(data_dir):
    for split, count in (("train", 12), ("val", 5), ("test", 4)):
        source = TfdsSource(prepare_shapes(data_dir, **SMALL), split)
        assert len(source) == count
        assert source.class_names == drawing.CLASS_NAMES
        for index in range(count):
            image, boxes, labels = drawing.draw_example(drawing.example_rng(0, split, index), height=64, width=96)
            example = source[index]
            np.testing.assert_array_equal(example.image, image)
            np.testing.assert_array_equal(example.boxes_xyxy, boxes)
            np.testing.assert_array_equal(example.labels, labels)
            assert not example.is_crowd.any()
            assert example.image_id == index + 1


def test_two_builds_give_the_same_records(data_dir, tmp_path):
    first, second = prepare_shapes(data_dir, **SMALL), prepare_shapes(tmp_path, **SMALL)
    assert os.path.basename(os.path.dirname(first)) == os.path.basename(os.path.dirname(second))
    for split in ("train", "val", "test"):
        a, b = TfdsSource(first, split), TfdsSource(second, split)
        assert a.ground_truth() == b.ground_truth()
        assert all((a[index].image == b[index].image).all() for index in range(len(a)))


def test_splits_share_no_image(data_dir):
    folder = prepare_shapes(data_dir, **SMALL)
    seen = [
        example.image.tobytes()
        for split in ("train", "val", "test")
        for example in (TfdsSource(folder, split)[index] for index in range(4))
    ]
    assert len(set(seen)) == len(seen)


def test_prepared_copy_is_reused_and_configurations_are_kept_apart(data_dir):
    folder = pathlib.Path(prepare_shapes(data_dir, **SMALL))
    written = folder.joinpath("dataset_info.json").stat().st_mtime_ns
    assert prepare_shapes(data_dir, **SMALL, on_progress=lambda done, total: pytest.fail("drawn again")) == str(folder)
    assert folder.joinpath("dataset_info.json").stat().st_mtime_ns == written
    names = {
        ShapesConfig(**{**SMALL, field: value}).name
        for field, value in (
            ("num_train", 13), ("num_val", 6), ("num_test", 5), ("height", 65), ("width", 97), ("seed", 1),
            ("num_classes", 4), ("objects", 11), ("seed", 0),
        )
    }  # fmt: skip
    assert len(names) == 9


def test_preparing_prints_nothing_and_reports_progress(tmp_path, capfd):
    calls: list[tuple[int, int]] = []
    prepare_shapes(tmp_path, **SMALL, on_progress=lambda done, total: calls.append((done, total)))
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""
    assert calls == [(done, 21) for done in range(1, 22)]
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_split_of_no_images_is_left_out(tmp_path):
    folder = prepare_shapes(tmp_path, num_train=2, num_val=0, num_test=0, height=32, width=32)
    assert len(TfdsSource(folder, "train")) == 2
    with pytest.raises(ValueError, match=r"its splits are train \(2 images\)"):
        TfdsSource(folder, "val")
    with pytest.raises(ValueError, match="not all 0"):
        prepare_shapes(tmp_path, num_train=0, num_val=0, num_test=0)


def test_bad_value_leaves_no_folder_behind(tmp_path):
    with pytest.raises(ValueError, match="num_classes"):
        prepare_shapes(tmp_path / "data", num_classes=9)
    assert not (tmp_path / "data").exists()


def test_copy_that_another_process_finished_first_is_used(tmp_path):
    def finish_elsewhere(done: int, total: int) -> None:
        if done == total:
            prepare_shapes(tmp_path, **SMALL)

    folder = pathlib.Path(prepare_shapes(tmp_path, **SMALL, on_progress=finish_elsewhere))
    assert len(TfdsSource(folder, "train")) == 12
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_interrupted_preparation_leaves_nothing_that_is_taken_for_data(tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_shapes(tmp_path, **SMALL, on_progress=interrupt)
    assert not list(tmp_path.rglob("dataset_info.json"))
    assert len(TfdsSource(prepare_shapes(tmp_path, **SMALL), "test")) == 4


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written"):
        prepare_shapes(tmp_path / "data", **SMALL)


def test_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        prepare_shapes(tmp_path / "file", **SMALL)


def test_builder_alone_has_the_default_configuration(tmp_path):
    builder = ShapesBuilder(data_dir=str(tmp_path))
    assert builder.builder_config.sizes == {"train": 2000, "val": 200, "test": 300}
    assert str(builder.info.features["image"].shape) == "(160, 160, 3)"


def test_background_without_objects_varies_between_images():
    means = [
        cv2.mean(drawing.draw_background(drawing.example_rng(0, "train", index), 64, 64))[:3] for index in range(20)
    ]
    assert np.std(means, axis=0).min() > 15

import os

import cv2
import numpy as np
import pytest

from focaljax.data.example import Example
from focaljax.evaluation import drawing
from focaljax.evaluation.detections import ImageDetections
from focaljax.evaluation.drawing import class_colour, draw_detections, write_image
from focaljax.evaluation.sheets import comparison_sheet

GREY = 128


def grey_image(height=480, width=640):
    return np.full((height, width, 3), GREY, np.uint8)


def draw(image, boxes, *, names=("cat", "dog", "owl"), labels=None, scores=None, **options):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int32) if labels is None else np.array(labels)
    return draw_detections(image, boxes, labels, None if scores is None else np.array(scores), names, **options)


def is_of_class(picture, label):
    return np.all(picture == class_colour(label), axis=2)


def test_box_is_drawn_around_its_pixels():
    picture = draw(grey_image(), [[200, 150, 400, 300]], names=[""])
    ys, xs = np.nonzero(is_of_class(picture, 0)[152:])
    # the line, two pixels wide at this size, lies on the box's edge pixels
    assert abs(xs.min() - 200) <= 1
    assert abs(xs.max() - 399) <= 1
    assert abs(ys.max() + 152 - 299) <= 1
    assert np.all(picture[160:290, 210:390] == GREY)


def test_image_is_not_changed_and_picture_without_boxes_equals_it():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    before = image.copy()
    np.testing.assert_array_equal(draw(image, [], scores=[]), before)
    assert not np.array_equal(draw(image, [[10, 10, 200, 200]]), before)
    np.testing.assert_array_equal(image, before)


def test_empty_boxes_of_any_shape_are_taken():
    picture = draw_detections(grey_image(), np.zeros(0), np.zeros(0, int), None, [])
    assert np.all(picture == GREY)


def test_small_image_is_enlarged_and_the_box_with_it():
    picture = draw(grey_image(192, 192), [[64, 64, 128, 128]], names=[""])
    assert picture.shape == (576, 576, 3)
    ys, xs = np.nonzero(is_of_class(picture, 0)[195:])
    assert abs(xs.min() - 192) <= 1
    assert abs(xs.max() - 383) <= 1
    assert abs(ys.max() + 195 - 383) <= 1
    assert draw(grey_image(192, 192), [], enlargement=1).shape == (192, 192, 3)


@pytest.mark.parametrize(
    "box", [[0, 0, 40, 30], [600, 0, 640, 30], [0, 460, 40, 480], [600, 460, 640, 480], [-90, -90, 900, 900]]
)
def test_plate_at_the_border_stays_whole_inside_the_picture(box, monkeypatch):
    plates = []
    monkeypatch.setattr(
        drawing, "_draw_plate", lambda picture, text, place, size, *_: plates.append((text, *place, *size))
    )
    draw(grey_image(), [box], names=["traffic light"], scores=[0.5])
    ((text, x, y, width, height),) = plates
    assert text == "traffic light 0.50"
    assert x >= 0
    assert y >= 0
    assert x + width <= 640
    assert y + height <= 480


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 900), (900, 5), (33, 47), (1200, 1600)])
def test_any_image_size_and_a_long_name_can_be_drawn(height, width):
    boxes = [[0, 0, width, height], [width / 2, height / 2, width / 2, height / 2]]
    picture = draw(grey_image(height, width), boxes, names=["a very long class name " * 9], scores=[0.5, 1.0])
    assert picture.shape[0] % height == 0
    assert picture.shape[1] % width == 0
    assert is_of_class(picture, 0).any()


def test_name_too_long_for_the_picture_is_cut_before_its_score(monkeypatch):
    texts = []
    monkeypatch.setattr(drawing, "_draw_plate", lambda picture, text, *_: texts.append(text))
    draw(grey_image(), [[0, 0, 400, 400]], names=["a very long class name " * 9], scores=[0.5])
    assert texts[0].startswith("a very long class name a very")
    assert texts[0].endswith(".. 0.50")


def test_names_of_neighbours_do_not_cover_each_other(monkeypatch):
    plates = []
    monkeypatch.setattr(drawing, "_draw_plate", lambda picture, text, place, size, *_: plates.append((*place, *size)))
    draw(grey_image(), [[200, 200, 300, 300], [204, 203, 305, 300], [198, 201, 303, 305]], scores=[0.9, 0.8, 0.7])
    cover = np.zeros((480, 640), int)
    for x, y, width, height in plates:
        cover[y : y + height, x : x + width] += 1
    assert len(plates) == 3
    assert cover.max() == 1


def test_higher_score_is_drawn_over_lower():
    boxes = [[100, 100, 300, 300], [100, 100, 300, 300]]
    for scores, top in (([0.9, 0.1], 0), ([0.1, 0.9], 1)):
        picture = draw(grey_image(), boxes, labels=[0, 1], scores=scores)
        assert is_of_class(picture, top)[200, 95:105].any()
        assert not is_of_class(picture, 1 - top)[200, 95:105].any()


def test_scores_and_names_are_written_in_readable_colours():
    # dark ink on bright colours, white on dark ones
    for label in range(len(drawing._FIRST_COLOURS)):
        picture = draw(grey_image(), [[200, 200, 400, 400]], names=["x"] * 20, labels=[label], scores=[0.5])
        plate = picture[180:200, 200:240].astype(int).sum(axis=2)
        assert plate.max() - plate.min() > 200, label


def test_crowd_is_dashed():
    whole = is_of_class(draw(grey_image(), [[100, 100, 500, 400]]), 0)[110:390, 95:105].any(axis=1)
    dashed = is_of_class(draw(grey_image(), [[100, 100, 500, 400]], is_crowd=[True]), 0)[110:390, 95:105].any(axis=1)
    assert whole.all()
    assert 0.3 < dashed.mean() < 0.8


def test_colours_differ_for_1203_classes_and_do_not_depend_on_their_number():
    assert len({class_colour(label) for label in range(1203)}) == 1203
    few = draw(grey_image(), [[100, 100, 300, 300]], names=["cat"])
    many = draw(grey_image(), [[100, 100, 300, 300]], names=["cat"] * 1203)
    np.testing.assert_array_equal(few, many)


def test_first_colours_are_far_apart():
    colours = np.array([class_colour(label) for label in range(20)], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1000 * np.eye(20)
    assert distances.min() > 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((4, 4, 3), np.float32)}, "float32"),
        ({"image": np.zeros((4, 4), np.uint8)}, r"\[4, 4\]"),
        ({"boxes_xyxy": np.zeros((2, 4))}, "for 1 labels"),
        ({"boxes_xyxy": np.array([[0, 0, np.nan, 1]])}, "not finite"),
        ({"scores": np.zeros(2)}, "scores has shape"),
        ({"labels": np.array([3])}, "3 class names"),
        ({"labels": np.array([-1])}, "3 class names"),
        ({"is_crowd": np.zeros(3, bool)}, "is_crowd has shape"),
    ],
)
def test_faulty_arguments_are_refused(change, message):
    arguments = {
        "image": grey_image(),
        "boxes_xyxy": np.array([[0, 0, 9, 9]]),
        "labels": np.array([0]),
        "scores": None,
        "class_names": ("cat", "dog", "owl"),
    }
    with pytest.raises(ValueError, match=message):
        draw_detections(**(arguments | change))


@pytest.mark.parametrize("name", ["a.png", "new/folder/b.jpg", "c.JPEG"])
def test_written_image_reads_back_with_its_colours(tmp_path, name):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:] = (200, 100, 50)
    write_image(tmp_path / name, image)
    read = cv2.imread(str(tmp_path / name))[..., ::-1]
    # JPEG may be off by a few levels
    assert np.abs(read.astype(int) - image).max() <= (0 if name.endswith("png") else 4)


def test_unknown_suffix_is_refused(tmp_path):
    for name in ("picture.gif", "picture"):
        with pytest.raises(ValueError, match=r"must end with \.png, \.jpg or \.jpeg"):
            write_image(tmp_path / name, grey_image())


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "picture.png"
    with pytest.raises(OSError, match="cannot write the picture") as raised:
        write_image(path, grey_image())
    assert os.fspath(path) in str(raised.value)


HOSTILE_NAMES = [
    "\ud800", "\x1b[31m", "a\nb", "a\0b", "[red]x[/red]", "\u202egnp", "\u65e5\u672c", "\U0001f600", "\u0301" * 99,
    "a" * 10**6,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_any_name_can_be_drawn(name):
    # On a lone surrogate OpenCV ends the process; a million characters would be measured a million times.
    picture = draw(grey_image(), [[200, 150, 400, 300]], names=[name], scores=[0.5])
    assert picture.shape == (480, 640, 3)
    example = Example(grey_image(), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), 1, f"{name}.jpg")
    comparison_sheet([example], [ImageDetections(1, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))], [name])

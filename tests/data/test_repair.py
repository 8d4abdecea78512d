"""Repair of boxes, and the reading of a document's lists."""

import math

import numpy as np
import pytest

from focaljax.data.example import DataError
from focaljax.data.repair import leaves_folder, read_classes, repair_boxes
from focaljax.data.report import DataReport

CATEGORIES = ({"id": 90, "name": "zebra"}, {"id": 4, "name": "ant"}, {"id": 17, "name": "cat"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ("ant", "cta")}, "did you mean 'cat'"),
        ({"category_ids": (4, 5)}, "no category id 5"),
        ({"class_names": ("ant", "bee"), "category_ids": (4, 17)}, "category id 17 is 'cat'"),
        ({"class_names": ("ant", "cat"), "category_ids": (4, 18)}, "category id 17 is 'cat'"),
        ({"class_names": ("ant", "cat"), "category_ids": (4,)}, "2 entries and category_ids 1"),
        ({"class_names": ("ant", "ant")}, "twice"),
    ],
)
def test_classes_that_contradict_the_file_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        read_classes(CATEGORIES, where="a.json", report=DataReport(), **options)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "no categories"),
        ([{"id": 4, "name": "ant"}, {"id": 4, "name": "bee"}], "id 4 stands for two classes, 'ant' and 'bee'"),
        ([{"id": "4", "name": "ant"}], "must be"),
        ([{"id": 4}], "must be"),
        (["ant"], "must be"),
    ],
)
def test_contradictory_categories_are_refused(categories, message):
    with pytest.raises(DataError, match=message):
        read_classes(categories, where="a.json", report=DataReport())


def test_two_ids_of_one_class_name_are_told_apart():
    report = DataReport()
    categories = [{"id": 4, "name": "ant"}, {"id": 17, "name": "ant"}, {"id": 90, "name": "zebra"}]
    names, ids = read_classes(categories, where="a.json", report=report)
    assert (names, ids) == (("ant (4)", "ant (17)", "zebra"), (4, 17, 90))
    assert len(report.findings) == 1


def test_repair_of_no_boxes_gives_no_boxes():
    repaired = repair_boxes(np.zeros((0, 4)), np.zeros((0, 2)))
    assert repaired.boxes_xyxy.shape == (0, 4)
    assert repaired.faults == []


def test_repaired_boxes_lie_in_their_image():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-60, 160, (2000, 4)) * rng.choice(
        [1, 1, 1, math.nan, math.inf], (2000, 4), p=[0.4, 0.3, 0.28, 0.01, 0.01]
    )
    sizes = rng.integers(1, 120, (2000, 2))
    repaired = repair_boxes(boxes, sizes)
    kept = repaired.boxes_xyxy[repaired.is_kept]
    heights, widths = sizes[repaired.is_kept].T
    assert 0 < len(kept) < 2000
    assert (kept[:, 0] >= 0).all()
    assert (kept[:, 1] >= 0).all()
    assert (kept[:, 0] < kept[:, 2]).all()
    assert (kept[:, 1] < kept[:, 3]).all()
    assert (kept[:, 2] <= widths).all()
    assert (kept[:, 3] <= heights).all()
    assert (repaired.boxes_xyxy[~repaired.is_kept] == 0).all()
    assert set(np.flatnonzero(~repaired.is_kept)) <= {row for row, _ in repaired.faults}


def test_repair_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"boxes_xyxy must have the shape \[M, 4\]"):
        repair_boxes(np.zeros(4), np.ones(2))
    with pytest.raises(ValueError, match="sizes must have the shape"):
        repair_boxes(np.zeros((3, 4)), np.ones((2, 2)))


@pytest.mark.parametrize("name", ["C:\\a.jpg", "a\\..\\..\\b.jpg", "a/../../a/b.jpg", "..", "//host/a.jpg"])
def test_names_that_leave_the_folder_are_seen(name):
    assert leaves_folder(name)


@pytest.mark.parametrize("name", ["a..b.jpg", "x/..jpg", "./a.jpg", "a:b.jpg"])
def test_odd_names_inside_the_folder_are_allowed(name):
    assert not leaves_folder(name)

import dataclasses

import numpy as np
import pytest

from focaljax.data.example import Example
from focaljax.evaluation.detections import ImageDetections
from focaljax.evaluation.sheets import comparison_sheet, contact_sheet
from tests.evaluation.test_drawing import grey_image, is_of_class


def test_contact_sheet_holds_every_image_in_rows():
    images = [np.full((20 + 5 * index, 30, 3), 40 * index, np.uint8) for index in range(5)]
    sheet = contact_sheet(images, 2, gap=10)
    # widths 30 + 30 and gaps 3 * 10; rows of heights 25, 35, 40 and gaps 4 * 10
    assert sheet.shape == (140, 90, 3)
    for index, (top, left) in enumerate([(10, 10), (10, 50), (45, 10), (45, 50), (90, 10)]):
        np.testing.assert_array_equal(sheet[top : top + 20 + 5 * index, left : left + 30], images[index])
    assert np.all(sheet[90:, 45:] == 255)


def test_contact_sheet_reduces_large_images_and_keeps_their_shape():
    sheet = contact_sheet([grey_image(400, 200)], 3, max_side=100, gap=5)
    assert sheet.shape == (110, 60, 3)


def test_contact_sheet_writes_captions_above_the_images():
    images = [grey_image(100, 200)] * 2
    plain, captioned = contact_sheet(images, 2), contact_sheet(images, 2, captions=["left " * 50, ""])
    head = captioned.shape[0] - plain.shape[0]
    assert head >= 12
    np.testing.assert_array_equal(captioned[12 + head :], plain[12:])
    assert captioned[: 12 + head, :212].min() < 100
    # the long caption is cut and does not run over the empty one
    assert np.all(captioned[: 12 + head, 224:] == 255)


def test_contact_sheet_refuses_what_it_cannot_lay_out():
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([], 2)
    with pytest.raises(ValueError, match="columns is 0"):
        contact_sheet([grey_image()], 0)
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        contact_sheet([grey_image()] * 2, 2, captions=["one"])


def an_example(image_id, box=(100, 100, 300, 300)):
    boxes = np.array([box], np.float32)
    return Example(grey_image(), boxes, np.zeros(1, np.int32), np.zeros(1, bool), image_id, f"folder/{image_id}.jpg")


def test_comparison_has_ground_truth_left_and_good_detections_right():
    found = ImageDetections(
        7,
        np.array([[100, 100, 300, 300], [350, 100, 500, 300]], np.float32),
        np.array([0.8, 0.1], np.float32),
        np.array([1, 2], np.int32),
    )
    sheet = comparison_sheet([an_example(7)], [found], ("cat", "dog", "owl"), min_score=0.3)
    middle = sheet.shape[1] // 2
    assert is_of_class(sheet[:, :middle], 0).any()
    assert not is_of_class(sheet[:, middle:], 0).any()
    assert is_of_class(sheet[:, middle:], 1).any()
    assert not is_of_class(sheet, 2).any()


def test_comparison_leaves_out_what_scores_less():
    found = ImageDetections(7, np.array([[350, 100, 500, 300]], np.float32), np.array([0.8]), np.array([1]))
    for min_score, is_seen in ((0.75, True), (0.85, False)):
        sheet = comparison_sheet([an_example(7)], [found], ("cat", "dog"), min_score=min_score)
        assert is_of_class(sheet, 1).any() == is_seen


def test_large_images_are_reduced_before_they_are_drawn_on():
    """Text and lines are those of a picture of the size that is shown, and boxes lie where the objects are."""
    nothing = ImageDetections(7, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    small, large = (
        Example(grey_image(), factor * np.array([[40, 60, 200, 300]]), np.zeros(1, int), np.zeros(1, bool), 7, "7.jpg")
        for factor in (1, 5)
    )
    height, width = small.image.shape[:2]
    large = dataclasses.replace(large, image=grey_image(5 * height, 5 * width))
    sheets = [comparison_sheet([one], [nothing], ("cat",), max_side=max(height, width)) for one in (small, large)]
    np.testing.assert_array_equal(*sheets)


def test_comparison_refuses_detections_of_another_image():
    nothing = ImageDetections(8, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    with pytest.raises(ValueError, match=r"images \[8\], expected \[7\]"):
        comparison_sheet([an_example(7)], [nothing], ("cat",))

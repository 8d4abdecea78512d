"""The first images of a source."""

import numpy as np
import pytest

from focaljax.data.example import Example
from focaljax.data.report import DataReport
from focaljax.data.subset import FirstImages


class ThreeImages:
    class_names = ("a", "b")
    category_ids = (3, 9)
    max_boxes = 1
    report = DataReport()

    def __len__(self):
        return 3

    def __getitem__(self, index):
        image = np.full((4, 4, 3), index, np.uint8)
        box = np.array([[0, 0, 2, 2]], np.float32)
        return Example(image, box, np.zeros(1, np.int32), np.zeros(1, bool), 10 * index, f"{index}.png")

    def ground_truth(self):
        return {
            "images": [{"id": 10 * index} for index in range(3)],
            "annotations": [{"id": 1 + index, "image_id": 10 * index} for index in range(3)],
            "categories": [{"id": 3, "name": "a"}, {"id": 9, "name": "b"}],
        }


def test_part_has_the_first_images_their_annotations_and_all_classes():
    part = FirstImages(ThreeImages(), 2)
    assert len(part) == 2
    assert [part[index].image_id for index in range(2)] == [0, 10]
    truth = part.ground_truth()
    assert [image["id"] for image in truth["images"]] == [0, 10]
    assert [annotation["id"] for annotation in truth["annotations"]] == [1, 2]
    assert len(truth["categories"]) == 2
    assert (part.class_names, part.category_ids, part.max_boxes) == (("a", "b"), (3, 9), 1)


def test_more_than_there_are_is_all():
    assert len(FirstImages(ThreeImages(), 7)) == 3


def test_images_beyond_the_part_are_out_of_reach():
    with pytest.raises(IndexError):
        FirstImages(ThreeImages(), 2)[2]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        FirstImages(ThreeImages(), 0)

"""SSD's windows: zoom-out, the crops that are asked for, and which boxes stay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focaljax.data.crops import SSD_CHOICES, boxes_in_window, cropped_window, expanded_window

NO_BOXES = np.zeros((0, 4), np.float32)
SIZE = st.tuples(st.integers(1, 300), st.integers(1, 300))


class Choosing:
    """A generator whose first choice is the one with this smallest IoU, and whose second is the whole image."""

    def __init__(self, smallest_iou, seed):
        self._choices = np.array([SSD_CHOICES.index(smallest_iou), SSD_CHOICES.index(None)])
        self._rng = np.random.default_rng(seed)

    def permutation(self, count):
        assert count == len(SSD_CHOICES)
        return self._choices

    def random(self, shape):
        return self._rng.random(shape)


def iou(a, b):
    """By counting the whole pixels of both."""
    masks = np.zeros((2, 100, 100), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, (a, b)):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


@given(SIZE, st.integers(0, 2**32), st.floats(1, 4))
def test_expanded_window_holds_the_image_and_keeps_its_aspect(size, seed, largest):
    x1, y1, x2, y2 = expanded_window(np.random.default_rng(seed), size, largest=largest)
    assert x1 <= 0 and y1 <= 0 and x2 >= size[1] and y2 >= size[0]  # noqa: PT018
    factor = (y2 - y1) / size[0]
    assert factor <= largest + 0.5 / size[0]
    # Both sides are rounded to whole pixels.
    assert abs((x2 - x1) - factor * size[1]) <= 0.5 + 0.5 * size[1] / size[0]


def test_expanded_windows_reach_the_largest_factor_and_all_sides():
    windows = np.array([expanded_window(np.random.default_rng(seed), (10, 20)) for seed in range(400)])
    heights = windows[:, 3] - windows[:, 1]
    assert (heights.min(), heights.max()) == (10, 40)
    assert (windows[:, 1] == 0).any()
    assert (windows[:, 3] == 10).any()


@pytest.mark.parametrize("smallest_iou", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_crop_overlaps_an_object_as_much_as_is_asked_and_has_a_centre(smallest_iou):
    boxes = np.array([[10, 20, 80, 90], [70, 5, 95, 40]], np.float32)
    cropped = 0
    for seed in range(60):
        window = cropped_window(Choosing(smallest_iou, seed), (0, 0, 100, 100), boxes)
        if window == (0, 0, 100, 100):
            continue
        cropped += 1
        x1, y1, x2, y2 = window
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 100
        assert 0.5 <= (x2 - x1) / (y2 - y1) <= 2
        assert min(x2 - x1, y2 - y1) >= 31  # sqrt(0.1) of 100
        assert max(iou(window, box) for box in boxes) >= smallest_iou
        assert boxes_in_window(boxes, np.zeros(2, bool), window)[1].any()
    # An IoU of 0.9 is rarely met by chance.
    assert cropped >= (1 if smallest_iou == 0.9 else 50)


@pytest.mark.parametrize(
    ("boxes", "share"),
    [
        # 0.9 is met by 50 draws now and then, the six others nearly always.
        (np.array([[10, 10, 90, 90]], np.float32), 1 / 6.5),
        # No crop of a tenth of the image overlaps with a hundredth of it by 0.3: the whole, any, and now and then 0.1.
        (np.array([[40, 40, 50, 50]], np.float32), 1 / 2),
        # Without an object, the whole or any.
        (NO_BOXES, 1 / 2),
    ],
)
def test_each_choice_that_can_be_met_is_as_likely_as_the_others(boxes, share):
    rng = np.random.default_rng(0)
    whole = sum(cropped_window(rng, (0, 0, 100, 100), boxes) == (0, 0, 100, 100) for _ in range(700))
    assert abs(whole / 700 - share) < 0.06  # three standard deviations
    assert cropped_window(Choosing(None, 0), (-5, 0, 100, 100), boxes) == (-5, 0, 100, 100)


def test_image_without_objects_is_cropped_only_where_no_overlap_is_asked():
    window = (0, 0, 100, 100)
    assert cropped_window(Choosing(0.3, 1), window, NO_BOXES) == window
    assert cropped_window(Choosing(0.0, 1), window, NO_BOXES) != window


@given(SIZE, st.integers(0, 2**32))
def test_crop_of_any_image_is_inside_and_has_an_area(size, seed):
    window = (-3, -7, size[1], size[0])
    x1, y1, x2, y2 = cropped_window(np.random.default_rng(seed), window, NO_BOXES)
    assert -3 <= x1 < x2 <= size[1]
    assert -7 <= y1 < y2 <= size[0]


def test_as_many_numbers_are_drawn_whatever_comes_out():
    after = set()
    for boxes in (NO_BOXES, np.array([[0, 0, 50, 50]])):
        rng = np.random.default_rng(3)
        cropped_window(rng, (0, 0, 100, 100), boxes)
        after.add(rng.random())
    assert len(after) == 1


def test_boxes_stay_by_their_centres_and_crowds_by_any_part():
    # Of the window's 10 x 10: centre in, centre out, outside, and the last two again as crowds; one on the edge.
    boxes = np.array([[5, 5, 14, 9], [7, 5, 14, 9], [20, 0, 30, 5], [7, 5, 14, 9], [20, 0, 30, 5], [5, 0, 15, 4]])
    clipped, is_inside = boxes_in_window(boxes, np.array([False, False, False, True, True, False]), (0, 0, 10, 10))
    assert is_inside.tolist() == [True, False, False, True, False, False]
    assert clipped[is_inside].tolist() == [[5, 5, 10, 9], [7, 5, 10, 9]]

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focaljax.detection import (
    box_area,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    pairwise_intersection,
    pairwise_iou,
)
from focaljax.detection.boxes import MAX_LOG_RATIO, MIN_ENCODED_SIDE

iou_jit = jax.jit(pairwise_iou)


@jax.jit
def there_and_back(boxes, anchors):
    deltas = encode_boxes(boxes, anchors)
    return deltas, decode_boxes(deltas, anchors)


def intersection_by_counting(a, b):
    """Of boxes with integer corners: the number of unit cells in both."""
    cells = [
        {(x, y) for x in range(int(box[0]), int(box[2])) for y in range(int(box[1]), int(box[3]))} for box in (a, b)
    ]
    return len(cells[0] & cells[1]), len(cells[0] | cells[1])


def test_overlaps_equal_the_counted_cells():
    corners = np.random.default_rng(0).integers(0, 12, size=(24, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)  # some without area
    boxes_a, boxes_b = boxes[:10], boxes[10:]
    counted = np.array([[intersection_by_counting(a, b) for b in boxes_b] for a in boxes_a], np.float64)
    np.testing.assert_array_equal(jax.jit(pairwise_intersection)(boxes_a, boxes_b), counted[..., 0])
    iou = counted[..., 0] / np.maximum(counted[..., 1], 1)
    np.testing.assert_allclose(iou_jit(boxes_a, boxes_b), iou, rtol=1e-6)
    np.testing.assert_allclose(iou_jit(boxes_b, boxes_a), iou.T, rtol=1e-6)
    assert 0 < (counted[..., 0] > 0).mean() < 1


def test_iou_of_a_box_with_itself_is_one_and_of_neighbours_zero():
    boxes = np.float32([[0, 0, 3.7, 1.3], [3.7, 0, 5, 1.3], [1e-3, 1e-3, 2e-3, 2e-3], [-1e4, -1e4, 1e4, 1e4]])
    iou = iou_jit(boxes, boxes)
    np.testing.assert_array_equal(np.diag(iou), np.ones(4))
    assert iou[0, 1] == 0


def test_boxes_without_area_or_upside_down_overlap_nothing():
    boxes = np.float32([[2, 2, 2, 2], [2, 2, 2, 5], [4, 4, 1, 1], [0, 0, 4, 4]])
    np.testing.assert_array_equal(jax.jit(box_area)(boxes), [0, 0, 0, 16])
    np.testing.assert_array_equal(iou_jit(boxes, boxes)[:3], np.zeros((3, 4)))
    gradient = jax.jit(jax.grad(lambda b: pairwise_iou(b, b).sum()))(boxes)
    assert np.isfinite(gradient).all()


def test_empty_inputs_have_empty_overlaps():
    assert iou_jit(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)
    assert iou_jit(np.zeros((3, 4)), np.zeros((0, 4))).shape == (3, 0)


def test_clipping_uses_height_for_y_and_width_for_x():
    boxes = np.float32([[-5, -5, 500, 500], [1, 2, 3, 4], [60, 40, 70, 50]])
    clipped = jax.jit(clip_boxes)(boxes, np.array([30, 50]))
    np.testing.assert_array_equal(clipped, [[0, 0, 50, 30], [1, 2, 3, 4], [50, 30, 50, 30]])
    assert clipped.dtype == jnp.float32


# Centre and sides in pixels.
coordinate = st.floats(-1000, 2000)
boxes_strategy = st.tuples(coordinate, coordinate, st.floats(1e-3, 2000), st.floats(1e-3, 2000))
anchors_strategy = st.tuples(coordinate, coordinate, st.floats(8, 800), st.floats(8, 800))


def corners(box):
    x, y, width, height = box
    return np.float32([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


@settings(max_examples=150)
@given(boxes_strategy, anchors_strategy)
def test_decoding_returns_the_encoded_box(box, anchor):
    box, anchor = corners(box), corners(anchor)
    sides, anchor_sides = box[2:] - box[:2], anchor[2:] - anchor[:2]
    deltas, decoded = there_and_back(box, anchor)
    assert np.isfinite(deltas).all()
    # Within the limits of the code; the rest is float32 at coordinates of thousands of pixels.
    sides = np.clip(sides, MIN_ENCODED_SIDE, anchor_sides * np.exp(MAX_LOG_RATIO))
    center = (box[2:] + box[:2]) / 2
    np.testing.assert_allclose(decoded, np.concatenate([center - sides / 2, center + sides / 2]), atol=5e-3, rtol=1e-5)


def test_encoding_by_hand():
    # Anchor centre (10, 20), 20 x 10. Box centre (15, 20), 40 x 5: dx = 5 / 20, dw = log 2, dh = -log 2.
    anchor, box = np.float32([0, 15, 20, 25]), np.float32([-5, 17.5, 35, 22.5])
    deltas, decoded = there_and_back(box, anchor)
    np.testing.assert_allclose(deltas, [0.25, 0, np.log(2), -np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(decoded, box, rtol=1e-6)


@pytest.mark.parametrize("side", [0.0, 1e-3, -4.0])
def test_side_below_the_smallest_counts_as_the_smallest(side):
    deltas, decoded = there_and_back(np.float32([5, 5, 5 + side, 9]), np.float32([0, 0, 10, 10]))
    np.testing.assert_allclose(deltas[2], np.log(0.01 / 10), rtol=1e-6)
    np.testing.assert_allclose(decoded[2] - decoded[0], 0.01, rtol=1e-3)


def test_wild_deltas_decode_to_finite_boxes():
    anchor = np.float32([0, 0, 16, 16])
    decoded = jax.jit(decode_boxes)(np.float32([0, 0, 1e30, -1e30]), anchor)
    np.testing.assert_allclose(decoded, [-492, 8, 508, 8], rtol=1e-6)  # 1000 px wide, without height
    gradient = jax.jit(jax.grad(lambda d: decode_boxes(d, anchor).sum()))(np.float32([0, 0, 1e30, -1e30]))
    assert np.isfinite(gradient).all()

import json

import numpy as np
import pytest

from focaljax.evaluation.detections import ImageDetections, to_coco_results


def detections_of(image_id, boxes, scores, labels):
    return ImageDetections(
        image_id,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int32),
    )


def test_corners_become_sizes_and_labels_become_category_ids():
    results = to_coco_results([detections_of(5, [[1.5, 2, 4, 10]], [0.25], [2])], category_ids=(1, 7, 90))
    assert results == [{"image_id": 5, "category_id": 90, "bbox": [1.5, 2.0, 2.5, 8.0], "score": 0.25}]


def test_results_are_plain_numbers_that_json_takes():
    image = ImageDetections(
        np.int64(5), np.ones((1, 4), np.float32), np.array([0.1], np.float32), np.zeros(1, np.int32)
    )
    (result,) = to_coco_results([image], category_ids=np.array([3]))
    assert [type(result[key]) for key in ("image_id", "category_id", "score")] == [int, int, float]
    assert json.loads(json.dumps(result)) == result


def test_values_are_not_rounded():
    box = np.array([0.1, 0.2, 100.7, 200.3], np.float32)
    (result,) = to_coco_results([detections_of(1, [box], [0.123456789], [0])], category_ids=(1,))
    x, y, width, height = result["bbox"]
    np.testing.assert_array_equal(np.array([x, y, x + width, y + height], np.float32), box)
    assert np.float32(result["score"]) == np.float32(0.123456789)


def test_images_without_detections_leave_no_trace():
    assert to_coco_results([detections_of(1, [], [], []), detections_of(2, [], [], [])], category_ids=(1,)) == []


@pytest.mark.parametrize("label", [-1, 2])
def test_label_without_category_is_refused_and_the_image_named(label):
    with pytest.raises(ValueError, match=r"image 31 .*2 category ids"):
        to_coco_results([detections_of(31, [[0, 0, 1, 1]], [0.5], [label])], category_ids=(1, 2))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"boxes_xyxy of image 3 has shape \(1, 4\), expected \(2, 4\)"):
        ImageDetections(3, np.zeros((1, 4)), np.zeros(2), np.zeros(2, int))
    with pytest.raises(ValueError, match="labels of image 3"):
        ImageDetections(3, np.zeros((2, 4)), np.zeros(2), np.zeros(1, int))


def test_above_keeps_the_order_and_the_score_at_the_threshold():
    image = detections_of(1, np.arange(12), [0.5, 0.25, 0.75], [0, 1, 2])
    kept = image.above(0.5)
    assert kept.labels.tolist() == [0, 2]
    assert kept.boxes_xyxy[:, 0].tolist() == [0, 8]
    assert len(kept) == 2

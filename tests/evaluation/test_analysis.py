"""What is behind AP: by hand, by properties, and the curves beside pycocotools'."""

import json

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focaljax.evaluation import analysis
from focaljax.evaluation.analysis import NOTHING, match_detections
from focaljax.evaluation.coco_engines import DetectionTable, ObjectTable, with_pycocotools
from focaljax.evaluation.coco_tables import detection_table, numbered, object_table


def objects_of(*rows):
    """Rows of (image, class, x, y, width, height) and, for a crowd, True."""
    table = np.array([row[:6] for row in rows], float).reshape(-1, 6)
    boxes = table[:, 2:]
    return ObjectTable(
        images=table[:, 0].astype(int),
        classes=table[:, 1].astype(int),
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        is_crowd=np.array([len(row) > 6 for row in rows], bool),
    )


def found_of(*rows):
    """Rows of (image, class, score, x, y, width, height)."""
    table = np.array(rows, float).reshape(-1, 7)
    return DetectionTable(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 3:], table[:, 2])


# Two discs (class 1) and a ring (class 2) on image 1, a disc on image 2, nothing on image 3.
OBJECTS = objects_of((1, 1, 0, 0, 10, 10), (1, 1, 20, 0, 10, 10), (1, 2, 40, 0, 10, 10), (2, 1, 0, 0, 10, 10))
FOUND = found_of(
    (1, 1, 0.9, 0, 0, 10, 10),  # the first disc
    (1, 1, 0.8, 0, 0, 10, 9),  # it again
    (1, 1, 0.7, 40, 0, 10, 10),  # the ring taken for a disc
    (1, 2, 0.6, 43, 0, 10, 10),  # the ring, IoU 7 / 13
    (2, 1, 0.5, 0, 0, 10, 4),  # IoU 0.4
    (3, 2, 0.4, 0, 0, 5, 5),  # where nothing is
)


def test_each_object_is_found_once_by_the_highest_score():
    matches = match_detections(OBJECTS, FOUND, iou_threshold=0.5)
    assert matches.objects.tolist() == [0, NOTHING, NOTHING, 2, NOTHING, NOTHING]
    assert matches.is_counted.all()
    assert match_detections(OBJECTS, FOUND, iou_threshold=0.75).is_true.tolist() == [True] + [False] * 5


def test_free_object_of_the_highest_iou_is_taken():
    objects = objects_of((1, 1, 0, 0, 10, 10), (1, 1, 0, 0, 10, 8))
    found = found_of((1, 1, 0.5, 0, 0, 10, 9), (1, 1, 0.9, 0, 0, 10, 10))
    # The better score takes its own; the other one, IoU 0.9 with that, has the second left.
    assert match_detections(objects, found, iou_threshold=0.5).objects.tolist() == [1, 0]


def test_crowd_takes_any_number_of_detections_which_do_not_count():
    objects = objects_of((1, 1, 0, 0, 100, 100, True), (1, 1, 0, 0, 10, 10))
    found = found_of(*((1, 1, score, 0, 0, 10, 10) for score in (0.9, 0.8, 0.7)), (1, 2, 0.9, 0, 0, 10, 10))
    matches = match_detections(objects, found, iou_threshold=0.5)
    assert matches.objects.tolist() == [1, NOTHING, NOTHING, NOTHING]
    assert matches.is_counted.tolist() == [True, False, False, True]
    (score,) = analysis.image_scores(matches, objects, found, num_images=1)
    assert (score.found, score.missed, score.false) == (1, 0, 1)


def test_detections_beyond_the_limit_do_not_count():
    matches = match_detections(OBJECTS, FOUND, iou_threshold=0.5, max_detections=1)
    assert matches.is_counted.tolist() == [True, False, False, True, True, True]


def test_without_a_limit_all_detections_count():
    """As the confusions of a crowded image need it: COCO's 100 are those of one class."""
    places = [(1, 1 + index % 2, 20 * index, 0, 10, 10) for index in range(150)]
    objects = objects_of(*places)
    found = found_of(*((image, number, 0.9, *box) for image, number, *box in places))
    matches = match_detections(objects, found, iou_threshold=0.5, by_class=False, max_detections=None)
    counts = analysis.confusion_matrix(matches, objects, found, num_classes=2)
    assert counts.tolist() == [[75, 0, 0], [0, 75, 0], [0, 0, 0]]


def test_curve_by_hand():
    matches = match_detections(OBJECTS, FOUND, iou_threshold=0.5)
    curves = analysis.precision_recall(matches, OBJECTS, FOUND, num_classes=3)
    assert set(curves) == {1, 2}  # of the third class there are no objects
    # Discs: right, wrong, wrong, wrong, of three objects: precision 1 up to a recall of 1/3.
    np.testing.assert_allclose(curves[1].precision, np.where(analysis.RECALLS <= 1 / 3, 1.0, 0.0))
    assert curves[1].num_objects == 3
    assert (curves[1].best_f1, curves[1].best_score) == (2 / (1 + 3), 0.9)
    # The ring: right, wrong.
    np.testing.assert_allclose(curves[2].precision, 1.0)
    assert (curves[2].best_f1, curves[2].best_score) == (1.0, 0.6)


def test_threshold_of_the_best_f1_takes_all_detections_of_its_score():
    objects = objects_of((1, 1, 0, 0, 10, 10))
    found = found_of((1, 1, 0.5, 0, 0, 10, 10), (1, 1, 0.5, 50, 50, 10, 10))
    matches = match_detections(objects, found, iou_threshold=0.5)
    curve = analysis.precision_recall(matches, objects, found, num_classes=1)[1]
    assert curve.best_f1 == pytest.approx(2 / 3)


def test_confusions_by_hand():
    found = analysis.above(FOUND, 0.5)
    assert len(found.scores) == 5
    matches = match_detections(OBJECTS, found, iou_threshold=0.5, by_class=False)
    counts = analysis.confusion_matrix(matches, OBJECTS, found, num_classes=2)
    # The ring was taken by the disc of 0.7, so the ring of 0.6 is background; two discs were missed.
    assert counts.tolist() == [[1, 0, 2], [1, 0, 0], [2, 1, 0]]


def test_image_scores_by_hand():
    matches = match_detections(OBJECTS, FOUND, iou_threshold=0.5)
    scores = analysis.image_scores(matches, OBJECTS, FOUND, num_images=4)
    assert [(one.found, one.missed, one.false) for one in scores] == [(2, 1, 2), (0, 1, 1), (0, 0, 1), (0, 0, 0)]
    assert [one.f1 for one in scores] == [4 / 7, 0.0, 0.0, 1.0]


NONE_FOUND, NO_OBJECTS = found_of(), objects_of()


@pytest.mark.parametrize(("objects", "found"), [(OBJECTS, NONE_FOUND), (NO_OBJECTS, FOUND), (NO_OBJECTS, NONE_FOUND)])
def test_nothing_found_and_nothing_there(objects, found):
    matches = match_detections(objects, found, iou_threshold=0.5)
    assert not matches.is_true.any()
    assert matches.is_false.sum() == len(found.scores)
    counts = analysis.confusion_matrix(matches, objects, found, num_classes=2)
    assert counts.sum() == len(found.scores) + len(objects.classes)
    curves = analysis.precision_recall(matches, objects, found, num_classes=2)
    assert all(curve.precision.sum() == 0.0 and curve.best_f1 == 0.0 for curve in curves.values())


@st.composite
def scenes(draw, crowds=True):
    """Objects and detections on a coarse grid, where many boxes, scores and overlaps are equal."""
    boxes = lambda count: draw(  # noqa: E731
        hnp.arrays(np.float64, (count, 4), elements=st.sampled_from([4.0, 8.0, 12.0, 20.0, 40.0]))
    )
    numbers = lambda count, most: draw(hnp.arrays(np.int64, count, elements=st.integers(1, most)))  # noqa: E731
    n, d = draw(st.integers(0, 12)), draw(st.integers(0, 25))
    objects_xywh = boxes(n)
    objects = ObjectTable(
        images=numbers(n, 3),
        classes=numbers(n, 2),
        boxes_xywh=objects_xywh,
        areas=objects_xywh[:, 2] * objects_xywh[:, 3],
        is_crowd=draw(hnp.arrays(bool, n)) if crowds else np.zeros(n, bool),
    )
    scores = draw(hnp.arrays(np.float64, d, elements=st.sampled_from([0.1, 0.5, 0.7, 0.9])))
    return objects, DetectionTable(numbers(d, 3), numbers(d, 2), boxes(d), scores)


def assert_curves_are_cocos(objects, found, num_images, num_classes):
    expected = with_pycocotools(objects, found, num_images=num_images, num_classes=num_classes)
    for level, threshold in ((0, 0.5), (5, 0.75)):
        matches = match_detections(objects, found, iou_threshold=threshold)
        curves = analysis.precision_recall(matches, objects, found, num_classes=num_classes)
        for number in range(1, num_classes + 1):
            of_class = expected.precision[level, :, number - 1, 0, 2]
            assert (number in curves) == (of_class[0] >= 0)
            if number in curves:
                np.testing.assert_array_equal(curves[number].precision, of_class)


@given(scenes())
def test_curves_are_those_of_pycocotools_bit_for_bit(scene):
    assert_curves_are_cocos(*scene, num_images=3, num_classes=2)


@pytest.mark.parametrize("case", ["cocoapi_fakebbox100", "fce_ignore"])
def test_curves_of_published_results_are_those_of_pycocotools(shared_data, case):
    folder = shared_data / "coco_eval_oracle" / case
    truth, results = (json.loads((folder / name).read_text()) for name in ("gt.json", "dt.json"))
    images, classes = (numbered(entry["id"] for entry in truth[name]) for name in ("images", "categories"))
    objects = object_table(truth["annotations"], images, classes)
    found = detection_table([result for result in results if result["image_id"] in images], images, classes)
    assert_curves_are_cocos(objects, found, len(images), len(classes))


@given(scenes(), st.sampled_from([0.3, 0.5, 0.75]), st.booleans())
def test_every_object_and_every_detection_is_counted_once(scene, threshold, by_class):
    objects, found = scene
    matches = match_detections(objects, found, iou_threshold=threshold, by_class=by_class)
    met = matches.objects[matches.is_true]
    assert len(set(met)) == len(met)
    assert not objects.is_crowd[met].any()
    np.testing.assert_array_equal(objects.images[met], found.images[matches.is_true])
    counts = analysis.confusion_matrix(matches, objects, found, num_classes=2)
    np.testing.assert_array_equal(
        counts[:-1].sum(axis=1), np.bincount(objects.classes[~objects.is_crowd], minlength=3)[1:]
    )
    np.testing.assert_array_equal(
        counts[:, :-1].sum(axis=0), np.bincount(found.classes[matches.is_counted], minlength=3)[1:]
    )
    for image in analysis.image_scores(matches, objects, found, num_images=3):
        assert min(image.found, image.missed, image.false) >= 0
        assert 0.0 <= image.f1 <= 1.0


@given(scenes(crowds=False))
def test_perfect_detections_find_everything(scene):
    objects, _ = scene
    found = DetectionTable(
        objects.images, objects.classes, objects.boxes_xywh, np.linspace(0.2, 0.9, len(objects.areas))
    )
    matches = match_detections(objects, found, iou_threshold=1.0)
    assert matches.is_true.all()
    counts = analysis.confusion_matrix(matches, objects, found, num_classes=2)
    assert counts.trace() == counts.sum()
    curves = analysis.precision_recall(matches, objects, found, num_classes=2)
    assert all(curve.precision.min() > 1 - 1e-12 and curve.best_f1 == 1.0 for curve in curves.values())

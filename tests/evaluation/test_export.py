"""Exported programs: any number of images, the prediction step's results, and how these are compared."""

import dataclasses

import jax
import jax.export
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focaljax.detection import candidates, pyramid_anchors
from focaljax.evaluation.export import (
    BFLOAT16,
    OUTPUTS,
    Differences,
    ExportError,
    check_differences,
    compare_detections,
    export_detector,
    make_anchor_step,
)
from focaljax.evaluation.inference import make_predict_step
from focaljax.models.retinanet import normalize_images
from tests import small_detectors

SIZE = (64, 96)
ANCHORS = {"levels": small_detectors.LEVELS, "sizes": (16.0, 32.0)}


def batch(count):
    images = np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), np.uint8)
    sizes = np.array([SIZE, (64, 40), (30, 96), (1, 1), (33, 65)], np.int32)[:count]
    return images, sizes


@pytest.mark.parametrize(
    ("counts", "settings"),
    [
        ((1, 5), {"thresholds": {"max_detections": 20}}),
        (
            (2,),
            {
                "thresholds": {"max_detections": 60, "pre_nms_top_k": 50, "suppression": "gaussian"},
                "flip": True,
                "softmax": True,
                "pixels": {"channel_order": "bgr"},
            },
        ),
    ],
    ids=["plain", "flip"],
)
def test_program_does_what_the_prediction_step_does_for_any_number_of_images(counts, settings):
    model, variables = small_detectors.tiny(), small_detectors.tiny_variables()
    step = make_predict_step(model, anchors=ANCHORS, **settings)
    program = export_detector(step, variables, image_size=SIZE, platforms=("cpu", "tpu"))
    assert program.platforms == ("cpu", "tpu")
    for count in counts:
        images, sizes = batch(count)
        actual = jax.jit(program.call)(images, sizes)
        expected = jax.jit(step)(variables, {"image": images, "size": sizes})
        expected = {name: np.asarray(getattr(expected, name)) for name in OUTPUTS}
        assert {name: array.shape for name, array in actual.items()} == {
            name: array.shape for name, array in expected.items()
        }
        differences = compare_detections(expected, {name: np.asarray(array) for name, array in actual.items()})
        assert differences.count == expected["is_detection"].sum() >= 10 * count
        check_differences(differences)


@pytest.mark.parametrize("platforms", [(), ("cpu", "gpu")])
def test_program_for_unknown_platforms_is_refused(platforms):
    with pytest.raises(ValueError, match="cpu, cuda, rocm, tpu"):
        export_detector(lambda variables, batch: None, {}, image_size=SIZE, platforms=platforms)


@pytest.mark.parametrize("softmax", [False, True])
def test_candidates_of_the_detector_are_among_the_anchors(softmax):
    model, variables = small_detectors.tiny(), small_detectors.tiny_variables()
    images, sizes = batch(3)
    boxes, scores = jax.jit(make_anchor_step(model, anchors=ANCHORS, softmax=softmax))(variables, images, sizes)
    assert boxes.shape[:2] == scores.shape[:2]
    assert scores.shape[2] == 7
    limits = np.tile(sizes[:, ::-1], 2)[:, None, :]
    assert np.all((boxes >= 0) & (boxes <= limits))
    step = make_predict_step(model, anchors=ANCHORS, thresholds={"max_detections": 5}, softmax=softmax)
    found = jax.jit(step)(variables, {"image": images, "size": sizes})
    for row in range(3):
        for box, score, label in zip(found.boxes_xyxy[row], found.scores[row], found.labels[row], strict=True):
            apart = np.abs(boxes[row] - box).max(axis=1) + np.abs(scores[row, :, label] - score)
            assert apart.min() < 1e-3


def test_scores_of_anchors_are_in_the_order_of_the_anchors():
    model, variables = small_detectors.tiny(), small_detectors.tiny_variables()
    images, sizes = batch(1)
    boxes, scores = jax.jit(make_anchor_step(model, anchors=ANCHORS))(variables, images, sizes)
    outputs = jax.jit(lambda variables: model.apply(variables, normalize_images(images, sizes), train=False))
    logits, deltas = outputs(variables)
    first = [level[0] for level in logits], [level[0] for level in deltas], pyramid_anchors(SIZE, **ANCHORS)
    best = candidates(*[levels[:1] for levels in first], sizes[0], pre_nms_top_k=1)
    anchor = np.argmax(np.max(scores[0, : logits[0].shape[1]], axis=1))
    np.testing.assert_allclose(boxes[0, anchor], best.boxes_xyxy[0], atol=1e-4)
    np.testing.assert_allclose(scores[0, anchor, best.labels[0]], best.scores[0], atol=1e-6)


def detections(count, seed=0):
    random = np.random.default_rng(seed)
    return {
        "boxes_xyxy": random.uniform(0, 100, (2, count, 4)),
        "scores": random.uniform(0.1, 1, (2, count)),
        "labels": random.integers(0, 3, (2, count)),
        "is_detection": np.ones((2, count), bool),
    }


@given(st.integers(0, 12), st.floats(0, 2e-4), st.floats(0, 2e-6), st.randoms())
def test_order_of_equals_does_not_count_and_distances_do(count, box, score, random):
    expected = detections(count)
    order = random.sample(range(count), count)
    moved = {**expected, "boxes_xyxy": expected["boxes_xyxy"] + box, "scores": expected["scores"] - score}
    found = compare_detections(expected, {name: array[:, order] for name, array in moved.items()})
    assert found.count == 2 * count
    np.testing.assert_allclose([found.box, found.score], [box, score] if count else [0, 0], atol=1e-12)
    check_differences(found)


def test_detections_of_padding_rows_do_not_count():
    expected = detections(4)
    expected["is_detection"][:, 2:] = False
    other = {name: array.copy() for name, array in expected.items()}
    other["boxes_xyxy"][:, 2:] = np.nan
    assert compare_detections(expected, other) == Differences(4, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "value"), [("labels", 7), ("is_detection", False)], ids=["another label", "one fewer"]
)
def test_another_object_is_an_error_that_names_the_image(name, value):
    expected = detections(3)
    other = {key: array.copy() for key, array in expected.items()}
    other[name][1, expected["scores"][1].argmax()] = value
    with pytest.raises(ExportError, match="image 2 of 2"):
        compare_detections(expected, other)


@pytest.mark.parametrize("is_missing_in_the_file", [True, False])
@pytest.mark.parametrize("is_full", [True, False])
def test_only_an_object_at_the_edge_of_what_is_kept_may_be_missing(is_missing_in_the_file, is_full):
    edge = 0.05

    def compare(score):
        one, other = ({name: array[:1].copy() for name, array in detections(5).items()} for _ in range(2))
        for each in (one, other):
            each["labels"][:] = [[0, 1, 2, 0, 1]]
            each["scores"][:] = [[0.9, 0.8, 0.7, edge if is_full else 0.06, score]]
        if is_full:  # it has no room for the last
            other = {name: array[:, :4] for name, array in other.items()}
        else:
            other["is_detection"][:, 4:] = False
        pair = (one, other) if is_missing_in_the_file else (other, one)
        return compare_detections(*pair, score_threshold=0.0 if is_full else edge)

    assert compare(edge + 1e-6) == Differences(4, 0.0, 0.0)
    for score in (edge + 1e-3, 0.65):
        with pytest.raises(ExportError, match="image 1 of 1"):
            compare(score)


def test_bfloat16_may_move_boxes_and_decide_otherwise_about_a_few():
    expected = detections(100)
    moved = {**expected, "boxes_xyxy": expected["boxes_xyxy"] + 0.09, "scores": expected["scores"] - 0.002}
    found = compare_detections(expected, moved, tolerance=BFLOAT16)
    assert (found.count, found.others) == (200, 0)
    check_differences(found, BFLOAT16)
    with pytest.raises(ExportError, match="differ from the detector's"):
        check_differences(found)

    moved["boxes_xyxy"][1, :2] += 500
    found = compare_detections(expected, moved, tolerance=BFLOAT16)
    assert (found.count, found.others) == (198, 4)
    moved["boxes_xyxy"][1, 2] += 500
    with pytest.raises(ExportError, match=r"image 2 of 2 .* 6 of them have no counterpart"):
        compare_detections(expected, moved, tolerance=BFLOAT16)


@pytest.mark.parametrize("field", ["box", "score"])
def test_differences_that_are_no_rounding_are_errors(field):
    check_differences(Differences(9, 1e-4, 1e-6))
    for value in (0.1, np.nan, np.inf):
        with pytest.raises(ExportError, match="differ from the detector's"):
            check_differences(dataclasses.replace(Differences(9, 0.0, 0.0), **{field: value}))

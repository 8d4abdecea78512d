import functools

import jax
import numpy as np
import pytest

from focaljax.detection import Candidates, Detections, candidates, postprocess, pyramid_anchors, suppress

detect = jax.jit(postprocess, static_argnames=("score_threshold", "pre_nms_top_k", "nms_iou", "max_detections"))
find = jax.jit(candidates, static_argnames=("score_threshold", "pre_nms_top_k"))


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def greedy(candidates, nms_iou, max_detections):
    """Of (score, label, box) rows, best first and the first of equals first, those that no kept one suppresses."""
    kept = []
    for score, label, box in sorted(candidates, key=lambda row: -row[0]):  # sorted() is stable
        if len(kept) < max_detections and not any(k[1] == label and iou(k[2], box) > nms_iou for k in kept):
            kept.append((score, label, box))
    return kept


def expected_detections(logits, deltas, anchors, size, *, score_threshold, pre_nms_top_k, nms_iou, max_detections):
    """The whole pipeline in float64, pair by pair."""
    candidates = []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        pairs = [(float(x), a, k) for a, row in enumerate(level_logits) for k, x in enumerate(row)]
        for logit, a, k in sorted(pairs, key=lambda pair: -pair[0])[:pre_nms_top_k]:
            score = 1 / (1 + np.exp(-logit))
            if score <= score_threshold:
                continue
            (x1, y1, x2, y2), (dx, dy, dw, dh) = level_anchors[a].astype(float), level_deltas[a].astype(float)
            width, height = x2 - x1, y2 - y1
            x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
            width, height = width * min(np.exp(dw), 62.5), height * min(np.exp(dh), 62.5)
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            candidates.append((score, k, [min(max(v, 0), size[1 - i % 2]) for i, v in enumerate(box)]))
    return greedy(candidates, nms_iou, max_detections)


def assert_equals(detections: Detections, expected):
    count = len(expected)
    is_detection = np.asarray(detections.is_detection)
    assert is_detection.sum() == count
    assert is_detection[:count].all()
    np.testing.assert_allclose(detections.scores[:count], [row[0] for row in expected], rtol=1e-5)
    np.testing.assert_array_equal(detections.labels[:count], [row[1] for row in expected])
    if count:
        np.testing.assert_allclose(detections.boxes_xyxy[:count], [row[2] for row in expected], atol=2e-3)
    np.testing.assert_array_equal(detections.scores[count:], 0)
    np.testing.assert_array_equal(detections.labels[count:], -1)
    np.testing.assert_array_equal(detections.boxes_xyxy[count:], 0)


OPTIONS = {"score_threshold": 0.3, "pre_nms_top_k": 60, "nms_iou": 0.5, "max_detections": 40}
IMAGE_SIZE = (48, 64)


@pytest.fixture(scope="module")
def anchors():
    make = functools.partial(pyramid_anchors, IMAGE_SIZE, levels=(3, 4), sizes=(16.0, 32.0), scales=(1.0,))
    return tuple(np.asarray(level) for level in jax.jit(make)())


@pytest.fixture(scope="module")
def run(anchors):
    """The compiled function of a batch of eight, on one image's logits, deltas and size repeated or on all."""
    compiled = jax.jit(jax.vmap(functools.partial(postprocess, **OPTIONS), in_axes=(0, 0, None, 0)))

    def run(logits, deltas, sizes):
        return compiled(logits, deltas, anchors, sizes)

    return run


def outputs(anchors, kind):
    """Logits and deltas of eight images with two classes on two levels."""
    random = np.random.default_rng(7)
    logits = tuple(random.normal(-1.5, 1.5, size=(8, len(a), 2)).astype(np.float32) for a in anchors)
    deltas = tuple(random.normal(0, 0.3, size=(8, len(a), 4)).astype(np.float32) for a in anchors)
    if kind == "tied":
        logits = tuple(np.round(2 * x) / 2 for x in logits)
    elif kind == "crowded":  # every box of a level nearly the same, and everything certain
        logits = tuple(x + 4 for x in logits)
        deltas = tuple(np.concatenate([(30 - (a[:, :2] + a[:, 2:]) / 2) / (a[:, 2:] - a[:, :2]),
                                       np.zeros((len(a), 2))], axis=1) + 0.2 * d
                       for a, d in zip(anchors, deltas, strict=True))  # fmt: skip
        deltas = tuple(d.astype(np.float32) for d in deltas)
    elif kind == "empty":
        logits = tuple(np.full_like(x, -3) for x in logits)
    elif kind == "wild":
        logits = tuple(np.where(x > 0, np.nan, x + 1).astype(np.float32) for x in logits)
        deltas = tuple(10 * d for d in deltas)
    return logits, deltas


@pytest.mark.parametrize("kind", ["random", "tied", "crowded", "empty"])
def test_detections_equal_the_pipeline_in_plain_loops(run, anchors, kind):
    logits, deltas = outputs(anchors, kind)
    sizes = np.array([IMAGE_SIZE] * 4 + [(40, 50)] * 4)
    detections = run(logits, deltas, sizes)
    for image in range(8):
        expected = expected_detections([x[image] for x in logits], [x[image] for x in deltas], anchors, sizes[image],
                                       **OPTIONS)  # fmt: skip
        assert_equals(jax.tree.map(lambda field, image=image: field[image], detections), expected)
    counts = np.asarray(detections.is_detection).sum(axis=1)
    assert (counts == 0).all() if kind == "empty" else (counts > 2).all()


def test_one_image_alone_equals_its_row_of_the_compiled_batch(run, anchors):
    logits, deltas = outputs(anchors, "random")
    batched = run(logits, deltas, np.array([IMAGE_SIZE] * 8))
    alone = postprocess([x[2] for x in logits], [x[2] for x in deltas], anchors, np.array(IMAGE_SIZE), **OPTIONS)
    for name in ("scores", "labels", "is_detection", "boxes_xyxy"):
        np.testing.assert_allclose(getattr(batched, name)[2], getattr(alone, name), rtol=1e-5, atol=1e-4, err_msg=name)


def test_boxes_stay_inside_the_image_and_nan_scores_are_no_detections(run, anchors):
    logits, deltas = outputs(anchors, "wild")
    sizes = np.array([(20, 33)] * 8)
    detections = run(logits, deltas, sizes)
    assert np.asarray(detections.is_detection).any()
    assert (np.asarray(detections.boxes_xyxy) >= 0).all()
    assert (np.asarray(detections.boxes_xyxy) <= [33, 20, 33, 20]).all()
    assert np.isfinite(detections.scores).all()
    assert (np.diff(detections.scores, axis=1) <= 0).all()


def test_shapes_and_dtypes_do_not_depend_on_what_is_found(anchors):
    logits = [np.zeros((len(a), 3), np.float16) for a in anchors]
    deltas = [np.zeros((len(a), 4), np.float16) for a in anchors]
    found = jax.eval_shape(functools.partial(postprocess, max_detections=300), logits, deltas, anchors, np.zeros(2))
    assert (found.boxes_xyxy.shape, found.boxes_xyxy.dtype) == ((300, 4), np.float32)
    assert (found.scores.shape, found.scores.dtype) == ((300,), np.float32)
    assert (found.labels.shape, found.labels.dtype) == ((300,), np.int32)
    assert (found.is_detection.shape, found.is_detection.dtype) == ((300,), bool)


def test_score_must_exceed_the_threshold():
    anchors, deltas = [np.float32([[0, 0, 4, 4], [8, 0, 12, 4]])], [np.zeros((2, 4), np.float32)]
    logits = [np.float32([[0.0], [0.01]])]
    found = detect(logits, deltas, anchors, np.array([16, 16]), score_threshold=0.5, max_detections=2)
    np.testing.assert_array_equal(found.is_detection, [True, False])
    np.testing.assert_allclose(found.boxes_xyxy[0], [8, 0, 12, 4])


def test_best_pairs_are_chosen_level_by_level():
    # One pair a level: the second best of the first level is lost although it beats the second level's.
    anchors = [np.float32([[0, 0, 4, 4], [8, 0, 12, 4]]), np.float32([[0, 8, 4, 12]])]
    deltas = [np.zeros((2, 4), np.float32), np.zeros((1, 4), np.float32)]
    logits = [np.float32([[3.0], [2.0]]), np.float32([[1.0]])]
    found = detect(logits, deltas, anchors, np.array([16, 16]), pre_nms_top_k=1, max_detections=3)
    np.testing.assert_array_equal(found.boxes_xyxy, [[0, 0, 4, 4], [0, 8, 4, 12], [0, 0, 0, 0]])


def test_outputs_that_do_not_fit_the_anchors_are_refused(anchors):
    logits, deltas = ([x[0] for x in field] for field in outputs(anchors, "random"))
    others = (np.zeros((108, 4)), np.zeros((27, 4)))  # those of 48 x 48 px
    with pytest.raises(ValueError, match=r"\[144, 36\] in class_logits.*\[108, 27\] in anchors_xyxy"):
        postprocess(logits, deltas, others, np.array([48, 48]))
    with pytest.raises(ValueError, match=r"\[144\] in box_deltas"):
        postprocess(logits, deltas[:1], anchors, np.array([48, 48]))


@pytest.mark.parametrize(("num_anchors", "num_classes", "count"), [(60, 3, 40), (10, 20, 50), (5, 4, 20)])
def test_best_pairs_of_a_level_are_those_of_a_stable_sort_of_all(num_anchors, num_classes, count):
    random = np.random.default_rng(0)
    for _ in range(3):
        logits = random.choice(np.float32([-1, -0.0, 0.0, 0.5, np.nan]), size=(num_anchors, num_classes))
        anchors = np.zeros((num_anchors, 4), np.float32)
        anchors[:, 2:] = 1 + np.arange(num_anchors)[:, None]  # the box tells the anchor
        found = find([logits], [np.zeros_like(anchors)], [anchors], np.array([99, 99]), pre_nms_top_k=count)
        best = np.argsort(-logits.reshape(-1), kind="stable")[:count]  # NaN last
        best = best[~np.isnan(logits.reshape(-1)[best])]
        assert len(best) > count / 2
        np.testing.assert_allclose(found.boxes_xyxy[: len(best), 2], 1 + best // num_classes, rtol=1e-6)
        np.testing.assert_array_equal(found.labels[: len(best)], best % num_classes)
        np.testing.assert_array_equal(found.scores[len(best) :], 0)


def test_suppression_of_candidates_is_the_whole(run, anchors):
    logits, deltas = ([x[0] for x in field] for field in outputs(anchors, "crowded"))
    whole = detect(logits, deltas, anchors, np.array(IMAGE_SIZE), **OPTIONS)
    found = find(logits, deltas, anchors, np.array(IMAGE_SIZE), score_threshold=0.3, pre_nms_top_k=60)
    assert found.scores.shape == (120,)
    parts = suppress(found, nms_iou=0.5, max_detections=40)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_kind_of_suppression_is_chosen_by_name():
    boxes, scores = np.float32([[0, 0, 4, 4], [0, 0, 4, 3]]), np.float32([0.8, 0.5])  # IoU 0.75
    found = Candidates(jax.numpy.asarray(boxes), jax.numpy.asarray(scores), jax.numpy.zeros(2, int))
    for kind, second in (("hard", 0), ("linear", 0.5 * 0.25), ("gaussian", 0.5 * np.exp(-(0.75**2) / 0.2))):
        kept = suppress(found, max_detections=2, suppression=kind, soft_sigma=0.2)
        np.testing.assert_allclose(kept.scores, [0.8, second], rtol=1e-6)
    assert suppress(found, max_detections=2, nms_iou=0.8).is_detection.all()
    np.testing.assert_allclose(suppress(found, max_detections=2, suppression="linear", nms_iou=0.8).scores, scores)
    with pytest.raises(ValueError, match="suppression must be one of hard, linear, gaussian, got 'soft'"):
        suppress(found, suppression="soft")


def test_float64_outputs_give_float64_detections():
    with jax.enable_x64(True):
        logits, deltas = [np.array([[0.1], [2.0]])], [np.array([[0.1, 0.2, 0.3, 0.4]] * 2)]
        anchors = [np.float32([[0, 0, 4, 4], [20, 20, 30, 40]])]
        found = postprocess(logits, deltas, anchors, np.array([60, 60]), max_detections=2)
        assert (found.boxes_xyxy.dtype, found.scores.dtype, found.labels.dtype) == (np.float64, np.float64, np.int32)
        np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-0.1))], rtol=1e-14)
        # Center (25 + 0.1 * 10, 30 + 0.2 * 20), sides (10 e^0.3, 20 e^0.4).
        half = np.array([5 * np.exp(0.3), 10 * np.exp(0.4)])
        np.testing.assert_allclose(found.boxes_xyxy[0], np.concatenate([[26, 34] - half, [26, 34] + half]), rtol=1e-14)


def test_gradient_reaches_the_outputs_behind_a_detection_only():
    logits = [jax.numpy.array([[0.0, -5.0], [2.0, 1.0]])]
    deltas, anchors = [jax.numpy.zeros((2, 4))], [jax.numpy.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0]])]

    def total(logits, deltas):
        found = postprocess(logits, deltas, anchors, np.array([16, 16]), max_detections=3)
        return found.scores.sum() + found.boxes_xyxy[:, 2].sum()

    by_logits, by_deltas = jax.jit(jax.grad(total, argnums=(0, 1)))(logits, deltas)
    # The first anchor's class 0 is dropped by the second's, its class 1 is below the threshold.
    s = 1 / (1 + np.exp([-2.0, -1.0]))
    np.testing.assert_allclose(by_logits[0], [[0, 0], s * (1 - s)], rtol=1e-5)
    # x2 = x + w / 2: 4 pixels for dx and 2 for dw, for each of two detections.
    np.testing.assert_allclose(by_deltas[0], [[0, 0, 0, 0], [8, 0, 4, 0]], rtol=1e-6)


def test_outputs_of_any_size_give_finite_detections():
    logits = [np.float32([[1e30], [-1e30], [3e4]])]
    deltas = [np.float32([[1e30, -1e30, 1e30, -1e30], [0, 0, 0, 0], [0, 0, 1e30, 1e30]])]
    found = detect(logits, deltas, [np.float32([[0, 0, 8, 8]] * 3)], np.array([16, 16]), max_detections=3)
    assert all(np.isfinite(field).all() for field in (found.boxes_xyxy, found.scores))
    np.testing.assert_array_equal(found.is_detection, [True, True, False])
    np.testing.assert_allclose(found.boxes_xyxy[:2], [[16, 0, 16, 0], [0, 0, 16, 16]])


def test_hyperparameters_out_of_range_are_refused():
    level = [np.zeros((1, 1), np.float32)], [np.zeros((1, 4), np.float32)], [np.zeros((1, 4), np.float32)], np.ones(2)
    for name, value in (("score_threshold", 1.5), ("pre_nms_top_k", 0), ("max_detections", 0)):
        with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
            postprocess(*level, **{name: value})
    with pytest.raises(ValueError, match="iou_threshold must be in"):
        postprocess(*level, nms_iou=-0.1)

"""Detectors as programs of their own, weights inside: StableHLO by `jax.export`, and what ONNX is made of."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from focaljax.detection import decode_boxes, pyramid_anchors, softmax_log_odds
from focaljax.evaluation.inference import Batch
from focaljax.models.retinanet import normalize_images

Array = jax.Array

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OUTPUTS = ("boxes_xyxy", "scores", "labels", "is_detection")


class ExportError(Exception):
    """An exported program cannot be run, or does not find what its detector finds."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What rounding alone can do between two programs of one detector.

    Attributes:
        box: difference of a corner, in pixels.
        score: difference of a score.
        others: share of the objects that only one of them finds, as the suppression of one box decides about others;
            if it is not 0, two of an image may be such however few there are.
    """

    box: float
    score: float
    others: float = 0.0


# Of float32 sums in another order through fifty layers: 1e-3 px of a coordinate near 1000 and 4e-6 of a score were
# seen. A wrong program is off by whole pixels.
FLOAT32 = Tolerance(box=1e-2, score=1e-5)
# Of activations with 8 bits of mantissa, rounded in other places: 0.09 px and 0.002 were seen in boxes of 200 px; a
# rounding of the size of a box of 500 px is 2 px.
BFLOAT16 = Tolerance(box=2.0, score=2e-2, others=0.02)
# onnxruntime's group normalisation of half padded images: 6e-5 was seen.
ONNX = Tolerance(box=1e-2, score=2e-4)


@dataclasses.dataclass(frozen=True)
class Differences:
    """How far the boxes and scores of two programs are apart.

    Attributes:
        count: boxes that were compared.
        box: the largest difference of a corner, in pixels.
        score: the largest difference of a score.
        others: objects that only one of the programs finds, beside those that were compared.
    """

    count: int
    box: float
    score: float
    others: int = 0


def export_detector(
    predict_step: Callable[[Any, Batch], Any],
    variables: Any,
    *,
    image_size: tuple[int, int],
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> jax.export.Exported:
    """Returns the prediction step as one program with the weights as constants, for any number of images.

    The program takes `images` uint8 `[b, H, W, 3]`, RGB, padded, and `sizes` int32 `[b, 2]`, height and width of each
    content; it returns a dict of the fields of `Detections`, each with a leading axis b. Needs the package flatbuffers
    where it is written to a file (`serialize`).

    Args:
        predict_step: of `make_predict_step`.
        variables: the model's weights.
        image_size: H and W in pixels.
        platforms: some of `PLATFORMS`: what the program can be compiled for.

    Raises:
        ValueError: there is no platform, or one is unknown.
    """
    unknown = set(platforms) - set(PLATFORMS)
    if unknown or not platforms:
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, got {', '.join(platforms) or 'none'}")

    def detect(images: Array, sizes: Array) -> dict[str, Array]:
        found = predict_step(variables, {"image": images, "size": sizes})
        return {name: getattr(found, name) for name in OUTPUTS}

    (b,) = jax.export.symbolic_shape("b")
    images, sizes = ((b, *image_size, 3), np.uint8), ((b, 2), np.int32)
    arguments = (jax.ShapeDtypeStruct(*images), jax.ShapeDtypeStruct(*sizes))
    return jax.export.export(jax.jit(detect), platforms=tuple(platforms))(*arguments)


def make_anchor_step(
    model: nn.Module,
    *,
    anchors: Mapping[str, Any],
    pixels: Mapping[str, Any] | None = None,
    softmax: bool = False,
) -> Callable[[Any, Array, Array], tuple[Array, Array]]:
    """Returns a pure function of (variables, images, sizes) to the box and the scores of every anchor.

    What the prediction step chooses from, before thresholds and suppression, for runtimes that have their own.

    Args:
        model: gives class logits and box deltas for each level.
        anchors: arguments of `pyramid_anchors` besides the image size.
        pixels: arguments of `normalize_images`.
        softmax: the model was trained with a softmax loss.

    Returns:
        A function from the weights, images `[B, H, W, 3]` and sizes `[B, 2]` to boxes float32 `[B, A, 4]`, corners in
        pixels of the batch, clipped to the contents, and scores float32 `[B, A, K]`.
    """

    def anchor_step(variables: Any, images: Array, sizes: Array) -> tuple[Array, Array]:
        _, height, width, _ = images.shape
        anchors_xyxy = jnp.concatenate(pyramid_anchors((height, width), **anchors))
        normalized = normalize_images(images, sizes, **(pixels or {}))
        outputs: Any = model.apply(variables, normalized, train=False)
        logits, deltas = (jnp.concatenate(levels, axis=1) for levels in outputs)
        boxes = decode_boxes(deltas, anchors_xyxy)
        # Not `clip_boxes` under vmap: jax2onnx makes a Min of shapes that do not fit of it.
        limits = jnp.tile(sizes[:, ::-1], 2).astype(boxes.dtype)[:, None, :]
        scores = jax.nn.sigmoid(softmax_log_odds(logits) if softmax else logits)
        return jnp.minimum(jnp.maximum(boxes, 0.0), limits), scores

    return anchor_step


def compare_detections(
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    *,
    tolerance: Tolerance = FLOAT32,
    score_threshold: float = 0.0,
) -> Differences:
    """Returns the largest differences between the detections of the same images by two programs.

    Each detection is compared with the one that is nearest to it: of detections with nearly the same score either may
    come first. Only one that rounding can have decided about may be missing on either side: its score is the threshold,
    or that of the last which there is room for, within the tolerance.

    Args:
        expected: by name the arrays of `Detections` with a leading batch axis.
        actual: likewise.
        tolerance: where it lets some objects be others, those without one that is near enough are counted as such.
        score_threshold: of both.

    Raises:
        ExportError: an image has another number of detections of some class, or more than the tolerance's share of all
            objects are others.

    Example:
        >>> one = {"boxes_xyxy": np.ones((1, 1, 4)), "scores": np.ones((1, 1)), "labels": np.ones((1, 1), int)}
        >>> one["is_detection"] = np.ones((1, 1), bool)
        >>> compare_detections(one, {**one, "boxes_xyxy": np.full((1, 1, 4), 1.5)})
        Differences(count=1, box=0.5, score=0.0, others=0)
    """
    boxes, scores, others = [0.0], [0.0], 0
    for row in range(len(expected["labels"])):
        mine, other = (
            [each[name][row][each["is_detection"][row]] for name in OUTPUTS[:3]] for each in (expected, actual)
        )
        is_free, missing = np.ones(len(other[2]), bool), []
        for box, score, label in zip(*mine, strict=True):
            apart = np.abs(other[0] - box).max(axis=1), np.abs(other[1] - score)
            distance = np.maximum(apart[0] / tolerance.box, apart[1] / tolerance.score)
            is_candidate = is_free & (other[2] == label)
            if tolerance.others:
                is_candidate &= distance <= 1.0
            if not is_candidate.any():
                missing.append(score)
                continue
            nearest = np.argmin(np.where(is_candidate, distance, np.inf))
            is_free[nearest] = False
            boxes.append(float(apart[0][nearest]))
            scores.append(float(apart[1][nearest]))
        lacking = sum(
            score > _lowest_kept(each, row, score_threshold) + tolerance.score
            for each, scores_of_lacking in ((actual, missing), (expected, other[1][is_free]))
            for score in scores_of_lacking
        )
        if lacking > (max(2, tolerance.others * (len(mine[2]) + len(other[2]))) if tolerance.others else 0):
            raise ExportError(
                f"the exported file is wrong and was removed: in image {row + 1} of {len(expected['labels'])} it finds "
                f"{len(other[2])} objects with the labels {_some(other[2])}, the detector {len(mine[2])} with "
                f"{_some(mine[2])}; {lacking} of them have no counterpart"
            )
        others += int(lacking)
    return Differences(count=len(boxes) - 1, box=max(boxes), score=max(scores), others=others)


def _lowest_kept(detections: Mapping[str, np.ndarray], row: int, score_threshold: float) -> float:
    """Returns the score that a detection has to exceed to be among those of an image."""
    is_full = detections["is_detection"][row].all()
    return max(score_threshold, float(detections["scores"][row].min(initial=1.0))) if is_full else score_threshold


def check_differences(differences: Differences, tolerance: Tolerance = FLOAT32) -> None:
    """Raises ExportError if boxes and scores are further apart than rounding explains."""
    # So that NaN fails.
    if not (differences.box <= tolerance.box and differences.score <= tolerance.score):
        raise ExportError(
            f"the exported file is wrong and was removed: its boxes differ from the detector's by up to "
            f"{differences.box:.2g} px and its scores by up to {differences.score:.2g}; {tolerance.box:g} px and "
            f"{tolerance.score:g} can be rounding"
        )


def check_among(detections: Mapping[str, np.ndarray], boxes_xyxy: np.ndarray, scores: np.ndarray) -> None:
    """Raises ExportError if a detection of hard suppression is none of a program's anchors, with its box and score.

    Args:
        detections: by name the arrays of `Detections` with a leading batch axis B.
        boxes_xyxy: `[B, A, 4]`, of the program.
        scores: `[B, A, K]`, likewise.
    """
    for row, is_detection in enumerate(detections["is_detection"]):
        for index in np.flatnonzero(is_detection):
            box, score, label = (detections[name][row, index] for name in OUTPUTS[:3])
            is_near = np.abs(boxes_xyxy[row] - box).max(axis=1) <= ONNX.box
            if not (is_near & (np.abs(scores[row, :, label] - score) <= ONNX.score)).any():
                raise ExportError(
                    f"the exported file is wrong and was removed: in image {row + 1} of {len(scores)} no anchor has "
                    f"the box {box.round(1).tolist()} that the detector finds with label {label} and score {score:.3f}"
                )


def _some(labels: np.ndarray) -> str:
    shown = ", ".join(map(str, sorted(labels)[:10]))
    return f"[{shown}, ...]" if len(labels) > 10 else f"[{shown}]"

"""Anchor sizes, scales and ratios that fit the boxes of a data set: k-means on the overlap."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from focaljax.detection.boxes import intersection_and_union

# More boxes than this say no more about where the centres lie.
_MOST_BOXES = 5000
# How far a box's centre may lie from the nearest anchor's, in strides: between 0 and 1/2 on each axis.
_OFFSETS = np.array([(y, x) for y in (0.125, 0.375) for x in (0.125, 0.375)])
_MOST_ROUNDS = 50
# The given sizes times these.
_START_FACTORS = (1.0, 0.25, 0.5, 2.0)
# Logarithm of the factor from one level's size to the next: a larger scale would be another level's.
_LARGEST_SCALE = math.log(2.0)
# So that boxes none of which meets any anchor have a mean.
_LEAST_WEIGHT = 1e-6


@dataclasses.dataclass(frozen=True)
class AnchorShapes:
    """The anchors of a pyramid, as `pyramid_anchors` takes them.

    Attributes:
        sizes: pixels, one a level.
        scales: factors on the size.
        ratios: height over width.
    """

    sizes: tuple[float, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...]


def fit_anchors(
    sides: np.ndarray, start: AnchorShapes, *, strides: Sequence[int], positive_iou: float = 0.5, seed: int = 0
) -> AnchorShapes:
    """Returns anchors, as many as those given, fitted to boxes of these sides.

    k-means with the distance 1 - IoU, whose centres are the anchors of all levels: each box goes to the anchor that it
    overlaps most, then scales, ratios and the proportion of size to stride become geometric means of what their boxes
    would have them be, weighted by the IoU: what no anchor can meet shall not pull. A box's centre lies anywhere
    between those of the anchors, so each box counts four times, with its centre an eighth or three eighths of the
    level's stride off on either axis. Sizes stay in proportion to the strides, and scales below the next level's size,
    so that a level has the boxes of an octave: given anchors that are not so are made so first, and may be better than
    what is returned. Of all rounds from four starts, the given anchors and the same in other sizes, the one with the
    largest share of boxes at `positive_iou` is returned (in whole percent; of equals that with the largest mean IoU),
    rounded to three digits.

    Args:
        sides: `[M, 2]`, height and width of the boxes in pixels of the network's input, above 0.
        start: from where to go; also how many sizes, scales and ratios there are.
        strides: pixels, one a level.
        positive_iou: from here on an anchor is assigned.
        seed: decides which boxes are taken where there are more than five thousand.

    Returns:
        Anchors with ascending scales, the first of them 1, and ascending ratios.

    Raises:
        ValueError: there is no box, a side is not positive, or sizes and strides differ in number.

    Source: Redmon and Farhadi 2016 (arXiv 1612.08242), section 2, 'Dimension Clusters', for the distance.

    Example:
        >>> start = AnchorShapes(sizes=(32.0,), scales=(1.0,), ratios=(1.0, 2.0))
        >>> fit_anchors(np.array([[10.0, 40.0], [40.0, 10.0]]), start, strides=(8,))
        AnchorShapes(sizes=(20.0,), scales=(1.0,), ratios=(0.25, 4.0))
    """
    sides = np.asarray(sides, np.float64)
    if not len(sides) or not (sides > 0).all():
        raise ValueError("sides must be those of at least one box, all above 0")
    if len(start.sizes) != len(strides):
        raise ValueError(f"sizes has {len(start.sizes)} entries, strides {len(strides)}: one of each a level is needed")
    if len(sides) > _MOST_BOXES:
        sides = np.random.default_rng(seed).choice(sides, _MOST_BOXES, replace=False)
    steps = np.log(np.asarray(strides, np.float64))
    base = float(np.mean(np.log(start.sizes) - steps))
    scales, ratios = np.log(start.scales), np.log(start.ratios)
    rounds: list[tuple[tuple[int, float], AnchorShapes]] = []
    for factor in _START_FACTORS:
        rounds += _k_means(sides, base + np.log(factor), scales, ratios, steps=steps, positive_iou=positive_iou)
    best = max(rounds, key=lambda scored: scored[0])[1]
    return AnchorShapes(_rounded(best.sizes), _rounded(best.scales), _rounded(best.ratios))


def _k_means(
    sides: np.ndarray, base: float, scales: np.ndarray, ratios: np.ndarray, *, steps: np.ndarray, positive_iou: float
) -> Iterator[tuple[tuple[int, float], AnchorShapes]]:
    """Yields the score and the anchors of each round from one start; all but `sides` are logarithms."""
    side, ratio = (
        np.repeat(of, len(_OFFSETS)) for of in (np.log(sides).mean(axis=1), np.log(sides[:, 0] / sides[:, 1]))
    )
    before = np.zeros(len(side)) - 1
    for _ in range(_MOST_ROUNDS):
        base, scales = base + scales.min(), np.clip(np.sort(scales - scales.min()), 0.0, _LARGEST_SCALE)
        ratios = np.sort(ratios)
        anchors = AnchorShapes(tuple(np.exp(base + steps)), tuple(np.exp(scales)), tuple(np.exp(ratios)))
        iou, best = _best_anchors(sides, anchors, np.exp(steps))
        yield (round(100 * float((iou >= positive_iou).mean())), float(iou.mean())), anchors
        if (best == before).all():
            return
        before = best
        level, scale, shape = np.unravel_index(best, (len(steps), len(scales), len(ratios)))
        ratios = _means(ratio, iou, shape, ratios)
        base += float(np.average(side - base - steps[level] - scales[scale], weights=iou + _LEAST_WEIGHT))
        scales = _means(side - base - steps[level], iou, scale, scales)


def _best_anchors(sides: np.ndarray, anchors: AnchorShapes, strides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest IoU of each box at each offset with an anchor, and its number: levels first, ratios last."""
    scaled = np.multiply.outer(anchors.sizes, anchors.scales)[:, :, None, None]
    roots = np.sqrt(np.asarray(anchors.ratios))[:, None] ** np.array([1, -1])
    shapes = scaled * roots  # [L, S, R, 2], height and width
    steps = np.broadcast_to(strides[:, None, None, None], shapes.shape)
    iou, best = _largest_iou(
        np.float32(np.repeat(sides, len(_OFFSETS), axis=0)),
        np.float32(np.tile(_OFFSETS, (len(sides), 1))),
        np.float32(shapes.reshape(-1, 2)),
        np.float32(steps.reshape(-1, 2)),
    )
    return np.asarray(iou), np.asarray(best)


@jax.jit
def _largest_iou(
    sides: jax.Array, offsets: jax.Array, anchor_sides: jax.Array, strides: jax.Array
) -> tuple[jax.Array, jax.Array]:
    centers = (offsets[:, None, :] * strides[None, :, :]).transpose(2, 0, 1)
    half = jnp.broadcast_to((sides / 2).T[:, :, None], centers.shape)
    boxes = jnp.concatenate([centers - half, centers + half])
    half = jnp.broadcast_to((anchor_sides / 2).T[:, None, :], centers.shape)
    intersection, union = intersection_and_union(boxes, jnp.concatenate([-half, half]))
    iou = intersection / union
    return iou.max(axis=1), jnp.argmax(iou, axis=1)


def _means(values: np.ndarray, weights: np.ndarray, groups: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Returns the weighted mean of each group's values, and of a group without weight what it is otherwise."""
    totals = np.bincount(groups, weights, minlength=len(otherwise))
    sums = np.bincount(groups, weights * values, minlength=len(otherwise))
    return np.where(totals > 0, sums / np.where(totals > 0, totals, 1.0), otherwise)


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in values)

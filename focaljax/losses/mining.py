"""Miners: 0/1 weights that keep the hard anchors of an image, for losses that do not weigh them down by themselves."""

import jax
import jax.numpy as jnp

from focaljax.losses.checks import check_is_bool, check_whole

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def hard_negative_mask(
    loss: ArrayLike,
    is_positive: ArrayLike,
    is_ignored: ArrayLike | None = None,
    *,
    negatives_per_positive: int = 3,
    min_negatives: int = 0,
) -> Array:
    """Returns 1 for every positive anchor of an image and for its negatives of highest loss, 0 for the others.

    Of the negatives, `max(negatives_per_positive * positives, min_negatives)` are kept, or all where there are fewer.
    Of equal losses the anchor of lower index is kept. For a batch: `jax.vmap`. The weights are constants: no gradient
    flows through the choice.

    SSD divides the sum over the kept anchors by the number of positives: `mean_over_positives(weights * loss,
    is_positive)`. Where the loss of an anchor that is not kept may be infinite, write `jnp.where(weights > 0, loss, 0)`
    in place of the product.

    Args:
        loss: floating `[A]`, one value per anchor of one image. NaN counts as the highest value, so that it is seen in
            the result and not hidden.
        is_positive: bool `[A]`, the anchor is assigned to an object.
        is_ignored: bool `[A]`, the anchor has weight 0 and is not counted, also if it is positive; None: no anchor is
            ignored.
        negatives_per_positive: whole number, at least 0.
        min_negatives: whole number, at least 0; kept in an image without positives. With 0 such an image has no loss,
            as in the paper, torchvision and NVIDIA's SSD; GluonCV and TensorFlow's Object Detection API have a minimum
            like this one, by default 0, and 3 in the published configurations of the latter.

    Returns:
        `[A]` of 0 and 1, float32 (float64 for a float64 loss).

    Raises:
        TypeError: the loss is not floating point, a mask is not bool, or a number is not whole.
        ValueError: the shapes differ or are not those of one image, or a number is negative.

    Differs from torchvision, which counts some positives twice where an image has too few negatives.

    Source: Liu et al. 2016, SSD (arXiv 1512.02325), section 2.2, 'Hard negative mining'.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = jnp.array([0.1, 0.9, 0.3, 0.8, 0.2])
        >>> print(hard_negative_mask(loss, jnp.arange(5) == 0, negatives_per_positive=2))
        [1. 1. 0. 1. 0.]
    """
    loss, is_positive, is_ignored = _check_anchors(loss, is_positive, is_ignored)
    ratio = check_whole("negatives_per_positive", negatives_per_positive)
    minimum = check_whole("min_negatives", min_negatives)
    is_positive = is_positive & ~is_ignored
    is_negative = ~is_positive & ~is_ignored
    num_kept = jnp.maximum(_ratio_times_count(ratio, is_positive), min(minimum, loss.size))
    return (is_positive | _highest(_sort_key(loss, is_negative), is_negative, num_kept)).astype(loss.dtype)


def ohem_mask(
    loss: ArrayLike,
    boxes_xyxy: ArrayLike,
    *,
    size: int,
    iou_threshold: float = 0.7,
    is_positive: ArrayLike | None = None,
    is_ignored: ArrayLike | None = None,
    negatives_per_positive: int | None = None,
) -> Array:
    """Returns 1 for the hardest anchors of an image that do not repeat each other (OHEM), 0 for the others.

    Every anchor is scored by its loss. Greedy non-maximum suppression keeps the anchor of highest loss, drops those
    whose IoU with it is above `iou_threshold`, and goes on with the rest, positives and negatives alike. Of the
    survivors the `size` of highest loss get weight 1. Of equal losses the anchor of lower index comes first.

    With `negatives_per_positive` = r ('1:3' in the paper is r = 3) the suppression is the same, and of the survivors
    are kept

    - the positives of highest loss, at most `size // (1 + r)`,
    - the negatives of highest loss, at most r for each positive kept.

    So fewer than `size` are kept where an image has few positives, and none where no positive survives: `size` is a
    limit, the ratio is kept. (A positive can be dropped by a harder negative that overlaps it.)

    The mean over the kept anchors is `jnp.sum(weights * loss) / jnp.maximum(jnp.sum(weights), 1)`. Neither paper says
    what the sum is divided by; in Fast R-CNN, where OHEM comes from, it is the size of the minibatch. For a batch:
    `jax.vmap`. The weights are constants: no gradient flows through the choice.

    Each round compares one box with all others, so no matrix of all pairs is made. There are at most `size` rounds
    without a ratio. With one there are as many as it takes to know which positives survive, each decided by the harder
    anchors around it alone, and then to find their negatives.

    Args:
        loss: floating `[A]`, one value per anchor of one image. NaN counts as the highest value, so that it is seen in
            the result and not hidden.
        boxes_xyxy: floating `[A, 4]`, corners in pixels: the anchors, or the boxes predicted from them. The paper does
            not say which. A box without area overlaps nothing, not even one equal to it.
        size: B, the most anchors to keep, whole, at least 1; 128, 256 and 512 in the paper.
        iou_threshold: in [0, 1]; 0.5 and 0.7 in the paper. An IoU equal to it drops nothing.
        is_positive: bool `[A]`, the anchor is assigned to an object; needed with `negatives_per_positive`, and without
            it of no influence.
        is_ignored: bool `[A]`, the anchor is not kept and drops no other; None: no anchor is ignored.
        negatives_per_positive: whole number, at least 0; None: no ratio.

    Returns:
        `[A]` of 0 and 1, float32 (float64 for a float64 loss).

    Raises:
        TypeError: the loss is not floating point, a mask is not bool, or a number is not whole.
        ValueError: the shapes differ or are not those of one image, a number is out of its range, `size` is less than
            `1 + negatives_per_positive`, or that is given without `is_positive`.

    Source: Shrivastava et al. 2016 (arXiv 1604.03540); Lin et al. 2017 (arXiv 1708.02002), section 5.2, 'Online Hard
    Example Mining', also for the ratio.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [9.0, 9.0, 12.0, 12.0]])
        >>> print(ohem_mask(jnp.array([0.8, 0.9, 0.3]), boxes, size=2))
        [0. 1. 1.]
    """
    if negatives_per_positive is not None and is_positive is None:
        raise ValueError("negatives_per_positive needs is_positive, bool [A]: pass it, or leave out the ratio")
    loss, is_positive, is_ignored = _check_anchors(loss, is_positive, is_ignored)
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes_xyxy))
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    if boxes.shape != (loss.size, 4):
        raise ValueError(
            f"boxes_xyxy has shape {boxes.shape}, loss {loss.shape}: expected one box an anchor, ({loss.size}, 4)"
        )
    size = check_whole("size", size, at_least=1)
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold must be in [0, 1], got {iou_threshold}")
    ratio = None if negatives_per_positive is None else check_whole("negatives_per_positive", negatives_per_positive)
    if ratio is not None and size < 1 + ratio:
        raise ValueError(f"size is {size}, with negatives_per_positive {ratio} it must be at least {1 + ratio}")
    if loss.size == 0:
        return loss

    # From here on in the order of falling loss: the first anchor of a set is its hardest, harder means before.
    order = jnp.argsort(~_sort_key(loss, ~is_ignored), stable=True)
    corners, is_positive, is_open = boxes[order].T, is_positive[order], ~is_ignored[order]
    if ratio is None:
        everyone = jnp.ones_like(is_open)
        is_kept = _suppress_from_hardest(corners, iou_threshold, is_open, everyone, min(size, loss.size))
    else:
        max_positives = min(size // (1 + ratio), loss.size)
        is_open, kept_positives = _suppress_around_positives(
            corners, iou_threshold, is_open, is_positive, max_positives
        )
        max_negatives = _ratio_times_count(ratio, kept_positives)
        is_kept = kept_positives | _suppress_from_hardest(corners, iou_threshold, is_open, ~is_positive, max_negatives)
    return jnp.zeros_like(loss).at[order].set(is_kept.astype(loss.dtype), unique_indices=True)


def _suppress_from_hardest(
    corners: Array, iou_threshold: float, is_open: Array, is_wanted: Array, count: ArrayLike
) -> Array:
    """Returns the first `count` wanted survivors of greedy suppression among the open anchors."""
    index = jnp.arange(is_open.size)

    def is_unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        hardest, _, _, num_kept = state
        return (hardest < is_open.size) & (num_kept < count)

    def keep_hardest(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        hardest, is_open, is_kept, num_kept = state
        is_open = is_open & ~_overlaps(corners, hardest, iou_threshold) & (index != hardest)
        is_kept = is_kept.at[hardest].set(is_wanted[hardest])
        return _index_of_first(is_open), is_open, is_kept, num_kept + is_wanted[hardest]

    state = _index_of_first(is_open), is_open, jnp.zeros_like(is_open), jnp.int32(0)
    return jax.lax.while_loop(is_unfinished, keep_hardest, state)[2]


def _suppress_around_positives(
    corners: Array, iou_threshold: float, is_open: Array, is_positive: Array, count: int
) -> tuple[Array, Array]:
    """Returns the anchors that are not dropped until the first `count` surviving positives are known, and those.

    An anchor that overlaps no harder open anchor survives, whatever becomes of those elsewhere. So each round looks at
    one anchor, first the hardest open positive: it survives, or hands over to the hardest open anchor in its way.
    The positives are those of suppression over all anchors, without its thousands of rounds for hard negatives that
    have nothing to do with a positive.
    """
    index = jnp.arange(is_open.size)

    def is_unfinished(state: tuple[Array, Array, Array]) -> Array:
        anchor, _, is_survivor = state
        return (anchor < is_open.size) & (jnp.sum(is_survivor & is_positive) < count)

    def decide_or_hand_over(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        anchor, is_open, is_survivor = state
        is_overlapping = _overlaps(corners, anchor, iou_threshold) | (index == anchor)
        in_the_way = _index_of_first(is_open & is_overlapping)
        survives = in_the_way == anchor
        is_survivor = is_survivor | (survives & (index == anchor))
        is_open = is_open & ~(survives & is_overlapping)
        return jnp.where(survives, _index_of_first(is_open & is_positive), in_the_way), is_open, is_survivor

    state = _index_of_first(is_open & is_positive), is_open, jnp.zeros_like(is_open)
    _, is_open, is_survivor = jax.lax.while_loop(is_unfinished, decide_or_hand_over, state)
    return is_open | is_survivor, is_survivor & is_positive


def _overlaps(corners: Array, index: Array, iou_threshold: float) -> Array:
    """Returns whether the IoU of one box with each of `[4, A]` is above the threshold.

    Not `1 - iou_loss(...) > iou_threshold`, from which it differs by rounding and for sides beyond 1e-18 .. 1e18 only:
    this comparison is most of a round, and without derivatives or a division it takes a fifth of the time.
    """
    low, high = corners[:2], corners[2:]
    sides = jnp.maximum(high - low, 0.0)
    overlap = jnp.maximum(jnp.minimum(high, high[:, index, None]) - jnp.maximum(low, low[:, index, None]), 0.0)
    areas, intersection = sides[0] * sides[1], overlap[0] * overlap[1]
    return intersection > iou_threshold * (areas + areas[index] - intersection)


def _index_of_first(mask: Array) -> Array:
    """Returns the index of the first true element, or the number of elements if there is none."""
    # Not argmax, which compares pairs of value and index and is slower.
    return jnp.min(jnp.where(mask, jnp.arange(mask.size), mask.size))


def _first(mask: Array, count: ArrayLike) -> Array:
    return mask & (jnp.cumsum(mask) <= count)


def _highest(key: Array, is_candidate: Array, count: Array) -> Array:
    """Returns where the `count` candidates of highest key are; of equal keys, those of lower index."""
    if key.size == 0:
        return is_candidate
    threshold = jnp.sort(key)[key.size - jnp.minimum(count, key.size)]
    is_above = key > threshold
    is_tied = is_candidate & (key == threshold)
    return is_above | _first(is_tied, count - jnp.sum(is_above))


def _sort_key(loss: Array, is_candidate: Array) -> Array:
    """Returns integers in the order of the losses, NaN above infinity, and below all of them what is no candidate.

    Integers because no float is below -inf, and because every comparison with NaN is false.
    """
    integer = jnp.dtype(f"int{8 * loss.dtype.itemsize}")
    lowest = jnp.iinfo(integer).min
    bits = jax.lax.bitcast_convert_type(jnp.where(jnp.isnan(loss), jnp.nan, loss), integer)
    # Sign and magnitude to two's complement; the bits of -0.0 are `lowest`, and must come out as those of 0.0.
    key = jnp.where(bits >= 0, bits, jnp.where(bits == lowest, 0, bits ^ jnp.iinfo(integer).max))
    return jnp.where(is_candidate, key, lowest)


def _ratio_times_count(ratio: int, mask: Array) -> Array:
    """Returns the ratio times the true elements, or at least the number of all elements where that is more."""
    # The plain product of a large ratio and a large count overflows int32.
    ratio = min(ratio, mask.size)
    return ratio * jnp.minimum(jnp.sum(mask), mask.size // max(ratio, 1) + 1)


def _check_anchors(
    loss: ArrayLike, is_positive: ArrayLike | None, is_ignored: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Returns the loss in float32 or float64 and without gradient, and both masks."""
    loss = jnp.asarray(loss)
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"loss must be floating point, got {loss.dtype}")
    if loss.ndim != 1:
        raise ValueError(f"loss has shape {loss.shape}, expected that of one image, (A,): for a batch use jax.vmap")
    masks = []
    for name, values in (("is_positive", is_positive), ("is_ignored", is_ignored)):
        mask = jnp.zeros(loss.shape, bool) if values is None else jnp.asarray(values)
        check_is_bool(name, mask)
        if mask.shape != loss.shape:
            raise ValueError(f"{name} has shape {mask.shape}, loss {loss.shape}: they must be equal")
        masks.append(mask)
    dtype = jnp.promote_types(loss.dtype, jnp.float32)
    return jax.lax.stop_gradient(loss).astype(dtype), masks[0], masks[1]

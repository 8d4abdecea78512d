"""The train step: a pure function, compiled once for a run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from focaljax.detection import assign_anchors, pyramid_anchors
from focaljax.losses import ema_normalizer
from focaljax.models.retinanet import normalize_images
from focaljax.training.objective import DetectionLoss
from focaljax.training.state import TrainState, update_ema

# What a step does whose loss or gradient is not finite.
ON_NONFINITE = ("stop", "skip")

# The smallest normal number in float32.
_TINY = float(jnp.finfo(jnp.float32).tiny)

Array = jax.Array
Batch = Mapping[str, Array]
Metrics = dict[str, Array]

# The entries of a batch that the device needs; the others (image ids, original sizes) stay on the host.
TRAIN_KEYS = ("image", "size", "boxes", "labels", "is_crowd", "is_box")


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    loss: Callable[..., DetectionLoss],
    anchors: Mapping[str, Any],
    matching: Mapping[str, Any],
    pixels: Mapping[str, Any] | None = None,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    normalizer_momentum: float = 0.9,
    on_nonfinite: str = "stop",
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the train step, a pure function of (state, batch), not yet compiled.

    Matching and normalisation are part of it: the batch holds uint8 images and boxes.

    Args:
        model: gives class logits and box deltas for each level.
        optimizer: see `make_optimizer`.
        schedule: its learning rate, for the metrics.
        loss: `detection_loss` with its losses and normaliser bound.
        anchors: arguments of `pyramid_anchors` besides the image size.
        matching: thresholds of `assign_anchors`.
        pixels: arguments of `normalize_images`: mean, std, channel_order; None: its defaults.
        ema_decay: of the moving average; used if the state has one.
        accumulate: number of parts of a batch that go through the network one after the other, for less memory; the
            gradient is that of the whole batch, whatever the normaliser, unless an anchor's loss depends on the others'
            (GHM). Batch normalisation sees one part at a time.
        normalizer_momentum: weight of the past in the state's `normalizer`, if it has one; see `ema_normalizer`.
        on_nonfinite: what a step does whose loss or gradient is not finite. 'stop': it changes nothing but the number
            of skipped steps, and no later step changes anything, so that the caller finds the state before it. 'skip':
            it changes only the number of steps and of skipped steps, and training goes on.

    Returns:
        A function from (state, batch) to the next state and metrics, scalars by name: `loss`, `classification_loss`,
        `box_loss`, `positives` (assigned anchors per image), `positive_share` (of the classification loss),
        `gradient_norm`, `learning_rate`, `skipped` (how many steps so far).

    Raises:
        ValueError: `accumulate` is less than 1, or `on_nonfinite` is unknown; from the step: `accumulate` does not
            divide the batch.
    """
    if on_nonfinite not in ON_NONFINITE:
        raise ValueError(f"on_nonfinite must be one of {', '.join(ON_NONFINITE)}, got {on_nonfinite!r}")
    if accumulate < 1:
        raise ValueError(f"accumulate is the number of parts of a batch, at least 1, got {accumulate}")

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_batch(batch, accumulate)
        _, height, width, _ = batch["image"].shape
        anchors_xyxy = jnp.concatenate(pyramid_anchors((height, width), **anchors))
        targets = jax.vmap(lambda *boxes: assign_anchors(anchors_xyxy, *boxes, **matching))(
            batch["boxes"], batch["labels"], batch["is_crowd"], batch["is_box"]
        )
        num_positives = targets.is_positive.sum()
        normalizer = state.normalizer
        if normalizer is not None:
            normalizer = ema_normalizer(normalizer, num_positives, momentum=normalizer_momentum)
            of_part = {"num_positives": normalizer / accumulate}
        else:
            of_part = {"num_positives": jnp.maximum(num_positives, 1) / accumulate} if accumulate > 1 else {}
        if state.ghm_counts is not None:
            of_part["ghm_counts"] = state.ghm_counts

        def loss_of_params(params: Any, batch_stats: Any, part: Any) -> tuple[Array, tuple[DetectionLoss, Any]]:
            images, sizes, targets = part
            normalized = normalize_images(images, sizes, **(pixels or {}))
            variables = {"params": params, "batch_stats": batch_stats}
            (class_logits, box_deltas), updates = model.apply(
                variables, normalized, train=True, mutable=["batch_stats"]
            )
            logits, deltas = jnp.concatenate(class_logits, axis=1), jnp.concatenate(box_deltas, axis=1)
            value = loss(logits, deltas, anchors_xyxy, targets, **of_part)
            return value.total, (value, updates.get("batch_stats", {}))

        gradients, value, batch_stats = _mean_gradients(
            jax.grad(loss_of_params, has_aux=True),
            state.params,
            state.batch_stats,
            (batch["image"], batch["size"], targets),
            accumulate,
        )
        # The new state waits for the norm of all gradients. Without the barrier the GPU compiler puts the gradients of
        # kernels off until then too, and keeps their activations: 2.5 GiB of RetinaNet-50's, 8 images, with remat.
        gradients = jax.lax.optimization_barrier(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = update_ema(ema_params, params, state.step, decay=ema_decay)
        gradient_norm = optax.tree.norm(gradients)
        is_finite = jnp.isfinite(value.total) & jnp.isfinite(gradient_norm)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
            normalizer=normalizer,
            ghm_counts=value.ghm_counts,
            skipped=state.skipped,
        )
        new_state = _guarded(new_state, state, is_finite, on_nonfinite)
        metrics = {
            "loss": value.total,
            "classification_loss": value.classification,
            "box_loss": value.box,
            "positives": value.positives,
            # A batch that is ignored as a whole has a loss of 0, and a share of it.
            "positive_share": value.classification_of_positives / jnp.maximum(value.classification, _TINY),
            "gradient_norm": gradient_norm,
            # The optimiser does not count the steps that were skipped.
            "learning_rate": jnp.asarray(schedule(state.step - state.skipped), jnp.float32),
            "skipped": new_state.skipped,
        }
        return new_state, metrics

    return train_step


def _guarded(new: TrainState, old: TrainState, is_finite: Array, on_nonfinite: str) -> TrainState:
    """Returns the new state, or the old one where the step must not count."""
    is_kept = is_finite if on_nonfinite == "skip" else is_finite & (old.skipped == 0)
    guarded = jax.tree.map(lambda after, before: jnp.where(is_kept, after, before), new, old)
    step = new.step if on_nonfinite == "skip" else guarded.step
    return dataclasses.replace(guarded, step=step, skipped=old.skipped + (~is_kept).astype(jnp.int32))


def _mean_gradients(
    gradients_of: Callable[[Any, Any, Any], tuple[Any, tuple[DetectionLoss, Any]]],
    params: Any,
    batch_stats: Any,
    batch: Any,
    accumulate: int,
) -> tuple[Any, DetectionLoss, Any]:
    """Returns gradients and loss, each the mean over the parts of a batch, and the statistics after the last part."""
    if accumulate == 1:
        gradients, (value, batch_stats) = gradients_of(params, batch_stats, batch)
        return gradients, value, batch_stats

    def add_part(so_far: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], DetectionLoss]:
        total, batch_stats = so_far
        gradients, (value, batch_stats) = gradients_of(params, batch_stats, part)
        return (jax.tree.map(jnp.add, total, gradients), batch_stats), value

    # Part i has the rows i, i + n, i + 2 n and so on: of each device's rows as many, so that none moves to another.
    parts = jax.tree.map(lambda rows: rows.reshape(-1, accumulate, *rows.shape[1:]).swapaxes(0, 1), batch)
    zeros = jax.tree.map(jnp.zeros_like, params)
    (total, batch_stats), values = jax.lax.scan(add_part, (zeros, batch_stats), parts)
    gradients = jax.tree.map(lambda gradient: gradient / accumulate, total)
    return gradients, jax.tree.map(jnp.mean, values), batch_stats


def _check_batch(batch: Batch, accumulate: int) -> None:
    """Checks a training batch, at no cost after compilation; `normalize_images` checks the shapes of its images."""
    B, N = batch["labels"].shape
    if B % accumulate:
        raise ValueError(f"a batch of {B} images cannot be split into {accumulate} equal parts: see optim.accumulate")
    chex.assert_shape(batch["boxes"], (B, N, 4))
    chex.assert_shape([batch["is_crowd"], batch["is_box"]], (B, N))
    chex.assert_type([batch["labels"], batch["is_crowd"], batch["is_box"]], [int, bool, bool])
    # uint8: normalisation is the device's, and a batch that comes normalised would be normalised twice.
    chex.assert_type(batch["image"], jnp.uint8)

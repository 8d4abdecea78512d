"""The train step: a pure function, compiled once for a run."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from focaljax.detection import assign_anchors, pyramid_anchors
from focaljax.models.retinanet import normalize_images
from focaljax.training.objective import DetectionLoss
from focaljax.training.state import TrainState, update_ema

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

    Returns:
        A function from (state, batch) to the next state and metrics, scalars by name: `loss`, `classification_loss`,
        `box_loss`, `positives` (assigned anchors per image), `gradient_norm`, `learning_rate`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_batch(batch)
        _, height, width, _ = batch["image"].shape
        anchors_xyxy = jnp.concatenate(pyramid_anchors((height, width), **anchors))
        targets = jax.vmap(lambda *boxes: assign_anchors(anchors_xyxy, *boxes, **matching))(
            batch["boxes"], batch["labels"], batch["is_crowd"], batch["is_box"]
        )
        images = normalize_images(batch["image"], batch["size"], **(pixels or {}))

        def loss_of_params(params: Any) -> tuple[Array, tuple[DetectionLoss, Any]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            (class_logits, box_deltas), updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
            value = loss(
                jnp.concatenate(class_logits, axis=1), jnp.concatenate(box_deltas, axis=1), anchors_xyxy, targets
            )
            return value.total, (value, updates.get("batch_stats", {}))

        gradients, (value, batch_stats) = jax.grad(loss_of_params, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = update_ema(ema_params, params, state.step, decay=ema_decay)
        metrics = {
            "loss": value.total,
            "classification_loss": value.classification,
            "box_loss": value.box,
            "positives": value.positives,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        new_state = TrainState(
            step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema_params=ema_params
        )
        return new_state, metrics

    return train_step


def _check_batch(batch: Batch) -> None:
    """Checks a training batch, at no cost after compilation; `normalize_images` checks the shapes of its images."""
    B, N = batch["labels"].shape
    chex.assert_shape(batch["boxes"], (B, N, 4))
    chex.assert_shape([batch["is_crowd"], batch["is_box"]], (B, N))
    chex.assert_type([batch["labels"], batch["is_crowd"], batch["is_box"]], [int, bool, bool])
    # uint8: normalisation is the device's, and a batch that comes normalised would be normalised twice.
    chex.assert_type(batch["image"], jnp.uint8)

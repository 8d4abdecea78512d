"""Optimisers and learning-rate schedules, composed of optax's."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("step", "cosine", "constant")


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    warmup_factor: float = 1e-3,
    milestones: Sequence[int] = (),
    decay: float = 0.1,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    Args:
        name: 'step' (times `decay` at each milestone), 'cosine' (to 0 at the last step) or 'constant'.
        learning_rate: the rate after the warm-up.
        steps: length of the whole run, warm-up included.
        warmup_steps: the rate rises linearly from `warmup_factor * learning_rate` over so many steps.
        warmup_factor: in [0, 1].
        milestones: for 'step', increasing steps of the run.
        decay: for 'step'.

    Raises:
        ValueError: an unknown name, or milestones that are not increasing.

    Example:
        >>> schedule = make_schedule("step", learning_rate=0.5, steps=30, milestones=(10, 20))
        >>> [round(float(schedule(step)), 4) for step in (0, 9, 10, 25)]
        [0.5, 0.5, 0.05, 0.005]
    """
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"milestones must be increasing, got {tuple(milestones)}")
    if warmup_steps >= steps > 0:
        raise ValueError(f"warmup_steps must be less than steps, got {warmup_steps} and {steps}")
    if name == "step":
        # join_schedules counts from the end of the warm-up, milestones from the start of the run.
        after = optax.piecewise_constant_schedule(
            learning_rate, {milestone - warmup_steps: decay for milestone in milestones}
        )
    elif name == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, max(1, steps - warmup_steps))
    elif name == "constant":
        after = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(warmup_factor * learning_rate, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Returns the optimiser.

    Weight decay acts on convolution kernels only, not on biases and normalisation parameters. For SGD it is added to
    the gradient before momentum, as in the published detectors; for AdamW it is decoupled.

    Args:
        name: 'sgd' (with momentum) or 'adamw'.
        schedule: the learning rate, see `make_schedule`.
        momentum: of SGD.
        weight_decay: factor.
        clip_norm: gradients are scaled down to this global norm; 0: not clipped.

    Raises:
        ValueError: `name` is unknown.
    """
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm > 0 else []
    if name == "sgd":
        decay = optax.add_decayed_weights(weight_decay, mask=_is_kernel)
        return optax.chain(*clip, decay, optax.sgd(schedule, momentum=momentum))
    if name == "adamw":
        return optax.chain(*clip, optax.adamw(schedule, weight_decay=weight_decay, mask=_is_kernel))
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)

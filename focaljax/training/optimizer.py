"""Optimisers and learning-rate schedules, composed of optax's."""

import functools
from collections.abc import Callable, Sequence
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
    norm_weight_decay: float = 0.0,
    bias_weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    is_frozen: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Returns the optimiser.

    For SGD, weight decay is added to the gradient before momentum, as in the published detectors; for AdamW it is
    decoupled. Published detectors differ in what decays: kernels alone here; kernels and the convolutions' biases in
    detectron2 and torchvision v2; everything in torchvision v1, whose normalisations are frozen.

    Args:
        name: 'sgd' (with momentum) or 'adamw'.
        schedule: the learning rate, see `make_schedule`.
        momentum: of SGD.
        weight_decay: factor, of convolution kernels.
        norm_weight_decay: of the scales and biases of normalisation layers.
        bias_weight_decay: of the convolutions' biases.
        clip_norm: gradients are scaled down to this global norm; 0: not clipped.
        is_frozen: from parameters to bool for each; frozen ones are not updated, by weight decay neither, have no
            state and do not count in the norm. None: all are trained.

    Raises:
        ValueError: `name` is unknown, or a weight decay is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"stem": jnp.ones(2), "head": jnp.ones(2)}
        >>> optimizer = make_optimizer("sgd", lambda step: 0.5, is_frozen=lambda params: {"stem": True, "head": False})
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["stem"], updates["head"])
        [0. 0.] [-0.5 -0.5]
    """
    factors = {"kernel": weight_decay, "norm": norm_weight_decay, "bias": bias_weight_decay}
    if min(factors.values()) < 0:
        raise ValueError(f"weight decay must be at least 0, got {factors}")
    # Kernels always: the structure of the state must not depend on their factor, or old checkpoints would not fit.
    decays = [
        optax.add_decayed_weights(factor, mask=functools.partial(_is_kind, kind=kind))
        for kind, factor in factors.items()
        if factor > 0 or kind == "kernel"
    ]
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm > 0 else []
    if name == "sgd":
        optimizer = optax.chain(*clip, *decays, optax.sgd(schedule, momentum=momentum))
    elif name == "adamw":
        adamw = optax.chain(optax.scale_by_adam(), *decays, optax.scale_by_learning_rate(schedule))
        optimizer = optax.chain(*clip, adamw)
    else:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    if is_frozen is None:
        return optimizer

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", is_frozen(params))

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _is_kind(params: Any, *, kind: str) -> Any:
    """Returns for each parameter whether it is a 'kernel', of a 'norm' (what is beside a scale) or another 'bias'."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    norms = {path[:-1] for path, _ in leaves if getattr(path[-1], "key", None) == "scale"}

    def kind_of(path: tuple[Any, ...], leaf: Any) -> str:
        if leaf.ndim > 1:
            return "kernel"
        return "norm" if path[:-1] in norms else "bias"

    return jax.tree.unflatten(structure, [kind_of(path, leaf) == kind for path, leaf in leaves])

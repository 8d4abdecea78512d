"""Everything that training changes, as one explicit pytree."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run after `step` steps.

    Attributes:
        step: int32 scalar.
        params: what the optimiser changes.
        batch_stats: what normalisation layers keep; empty for group normalisation.
        opt_state: optax's.
        ema_params: exponential moving average of `params`, for evaluation; None without one.
    """

    step: jax.Array
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: Any
    ema_params: chex.ArrayTree | None

    def variables(self) -> dict[str, Any]:
        """Returns the variables to train with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def evaluation_variables(self) -> dict[str, Any]:
        """Returns the variables to evaluate with: the averaged parameters if there are any."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def create_state(
    variables: Mapping[str, Any], optimizer: optax.GradientTransformation, *, has_ema: bool = False
) -> TrainState:
    """Returns the state before the first step.

    Args:
        variables: of the model, 'params' and perhaps 'batch_stats'.
        optimizer: its state is initialised for the parameters.
        has_ema: keep a moving average of the parameters.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if has_ema else None,
    )


def update_ema(ema_params: Any, params: Any, step: jax.Array, *, decay: float) -> Any:
    """Returns the moving average after a step.

    The decay rises from 0.1 with the step, `min(decay, (1 + step) / (10 + step))`, so that a short run's average does
    not remember the initial weights.

    Args:
        ema_params: the average so far.
        params: the parameters after the step.
        step: number of steps before this one.
        decay: the final decay, in [0, 1).
    """
    step = step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda average, new: average + (1.0 - decay_now) * (new - average), ema_params, params)

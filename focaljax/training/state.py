"""Everything that training changes, as one explicit pytree."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from focaljax.training.mesh import replicated, split_over_model

# Arrays with fewer numbers are not worth the collective.
_SMALLEST_SPLIT = 2**12


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
        normalizer: float32 scalar, moving average of the number of assigned anchors in a batch; None without one.
        ghm_counts: float32 `[bins]`, moving average of GHM's counts; None without one.
        skipped: int32 scalar, how many steps changed nothing because their loss or gradient was not finite.
    """

    step: jax.Array
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: Any
    ema_params: chex.ArrayTree | None
    normalizer: jax.Array | None
    ghm_counts: jax.Array | None
    skipped: jax.Array

    def variables(self) -> dict[str, Any]:
        """Returns the variables to train with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def evaluation_variables(self) -> dict[str, Any]:
        """Returns the variables to evaluate with: the averaged parameters if there are any."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def create_state(
    variables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    has_ema: bool = False,
    normalizer: float | None = None,
    ghm_bins: int = 0,
) -> TrainState:
    """Returns the state before the first step.

    Args:
        variables: of the model, 'params' and perhaps 'batch_stats'.
        optimizer: its state is initialised for the parameters.
        has_ema: keep a moving average of the parameters.
        normalizer: start of the moving average of the number of assigned anchors in a batch; None: there is none.
        ghm_bins: length of the moving average of GHM's counts, which starts with zeros; 0: there is none.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if has_ema else None,
        normalizer=None if normalizer is None else jnp.asarray(normalizer, jnp.float32),
        ghm_counts=jnp.zeros(ghm_bins, jnp.float32) if ghm_bins else None,
        skipped=jnp.zeros((), jnp.int32),
    )


def state_shardings(state: TrainState, mesh: jax.sharding.Mesh, *, large: int) -> TrainState:
    """Returns where each array of a state lies: large ones are split over the mesh's axis `model`.

    What the optimiser keeps and the moving average are only read once a step, where the weights change; weights are
    needed by every image, and each device has them whole unless there are very many.

    Args:
        state: of arrays or their shapes.
        mesh: see `make_mesh`; with an axis `model` of length 1 every device has everything.
        large: weights of at least so many numbers are split too.

    Source: Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), section 5: the stages 1, and 3 for large weights.
    """

    def shardings_of(tree: Any, smallest: int) -> Any:
        whole = replicated(mesh)
        return jax.tree.map(lambda leaf: split_over_model(leaf.shape, mesh) if leaf.size >= smallest else whole, tree)

    shardings = shardings_of(state, _SMALLEST_SPLIT)
    variables = shardings_of((state.params, state.batch_stats), max(large, _SMALLEST_SPLIT))
    return dataclasses.replace(shardings, params=variables[0], batch_stats=variables[1])


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

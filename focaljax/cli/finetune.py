"""The start of a run from the weights in a file, `config.init.weights`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from focaljax.cli import build
from focaljax.cli.console import say
from focaljax.cli.main import UsageError
from focaljax.models.initialize import describe_filled, fill_variables
from focaljax.models.pretrained import LoadedWeights, load_variables
from focaljax.models.retinanet import RetinaNet
from focaljax.models.variables import leaves_by_path
from focaljax.models.weight_names import WeightsError
from focaljax.training.programs import jit_for_one_run
from focaljax.training.state import TrainState


def load_initial_weights(config: ConfigDict) -> LoadedWeights | None:
    """Returns what the file `config.init.weights` holds; None if the config names none.

    Raises:
        UsageError: the file is missing, damaged, or not of a known kind.
    """
    if not config.init.weights:
        return None
    try:
        return load_variables(config.init.weights)
    except WeightsError as error:
        raise UsageError(f"config: init.weights: {error}") from None


def initial_state(
    config: ConfigDict,
    model: RetinaNet,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    weights: LoadedWeights | None,
) -> Callable[[], TrainState]:
    """Returns the function that makes the state before the first step, as `build.initial_state`, with loaded weights.

    It says what it loaded. None of it is compiled before it is called, but whether the weights fit shows now.

    Args:
        config: the whole config.
        model: see `build.make_model`.
        optimizer: see `build.make_optimizer_and_schedule`.
        mesh: the devices.
        weights: see `load_initial_weights`; None: the model's random ones.

    Raises:
        UsageError: the weights do not fit the model.
    """
    initialize = build.initial_state(config, model, optimizer, mesh)
    if weights is None:
        return initialize
    shapes = jax.eval_shape(initialize).variables()
    try:
        filled = fill_variables(shapes, weights.variables)
    except WeightsError as error:
        raise UsageError(f"config: init.weights={config.init.weights}: {error}") from None

    def fill() -> TrainState:
        say(describe_filled(filled, weights, config.init.weights))
        fresh = _pick(initialize().variables(), filled.fresh)
        variables = _with(filled.variables, jax.device_get(fresh))
        create = jit_for_one_run(
            lambda variables: build.new_state(config, variables, optimizer),
            out_shardings=build.layout(config, initialize, mesh),
        )
        return create(variables)

    return fill


def _pick(variables: Any, paths: Sequence[str]) -> dict[str, Any]:
    leaves = leaves_by_path(variables)
    return {path: leaves[path][1] for path in paths}


def _with(variables: Any, replacements: Mapping[str, Any]) -> Any:
    """Returns the variables with the leaves at some paths (below the collection) replaced."""

    def leaf_at(path: tuple[Any, ...], leaf: Any) -> Any:
        return replacements.get("/".join(key.key for key in path[1:]), leaf)

    return jax.tree_util.tree_map_with_path(leaf_at, variables)

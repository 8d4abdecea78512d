"""Weights from a file in place of initial ones: which arrays are filled, and which stay as they were initialised."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from focaljax.models.pretrained import SOURCES, LoadedWeights
from focaljax.models.variables import infer_model, leaves_by_path, put
from focaljax.models.weight_names import COUNTER, raise_for_names

_CLASS_OUTPUT = ("class_head/output/kernel", "class_head/output/bias")
_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Filled:
    """Variables of which some are from elsewhere. Names are paths below the collection, 'fpn/p6/bias'.

    Attributes:
        variables: 'params' and 'batch_stats', in the structure of the initial ones.
        loaded: names of the arrays from elsewhere.
        fresh: names of those that stayed.
        unused: names of loaded arrays for which the model has no place.
    """

    variables: dict[str, Any]
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def fill_variables(initial: Mapping[str, Any], loaded: Mapping[str, Any]) -> Filled:
    """Returns a detector's initial variables with all values of other weights that fit, for fine-tuning.

    Arrays are matched by their path below the collection, so the scale, bias and statistics of a normalisation go where
    the model has them, frozen or not. Three things may differ, and nothing else:

    - the number of classes: kernel and bias of the class head's output layer stay initial;
    - weights of a backbone alone: pyramid and heads stay initial;
    - pyramid levels that the model has not (levels 3..5 from weights with P6 and P7): theirs are not used.

    Args:
        initial: of the model, 'params' and perhaps 'batch_stats'; arrays, or `jax.ShapeDtypeStruct`s to find out only
            whether the weights fit.
        loaded: arrays, such as `focaljax.models.pretrained.load_variables(path).variables`.

    Returns:
        `Filled`. Arrays from `loaded` have the dtype that the model has there; those that had it are not copied.

    Raises:
        WeightsError: anything else is missing, has no place or another shape; one error names all of it.

    Example:
        >>> import numpy as np
        >>> initial = {"params": {"backbone": {"bias": np.zeros(1)}, "fpn": {"bias": np.zeros(1)}}}
        >>> filled = fill_variables(initial, {"params": {"backbone": {"bias": np.ones(1)}}})
        >>> filled.variables
        {'params': {'backbone': {'bias': array([1.])}, 'fpn': {'bias': array([0.])}}}
        >>> filled.fresh
        ('fpn/bias',)
    """
    places, given = leaves_by_path(initial), {path: leaf for path, (_, leaf) in leaves_by_path(loaded).items()}
    fresh = _expected_to_stay(places, given)
    unused = [path for path in given if path not in places and _is_level_without_place(path, places)]
    misshapen = {
        path: f"has shape {_shape(given[path])}, the model's is {_shape(leaf)}"
        for path, (_, leaf) in places.items()
        if path in given and path not in fresh and _shape(given[path]) != _shape(leaf)
    }
    raise_for_names(
        "weights for this model",
        known=places,
        unmapped=[path for path in given if path not in places and path not in unused],
        missing=[path for path in places if path not in given and path not in fresh],
        misshapen=misshapen,
        remedy="The settings of the model must be those of the weights (backbone, p6_from, fpn_channels, heads, "
        "anchors per position); only the number of classes may differ, and a backbone alone will do.",
    )
    variables: dict[str, Any] = {collection: {} for collection in initial}
    for path, (collection, leaf) in places.items():
        value = leaf if path in fresh else np.asarray(given[path]).astype(leaf.dtype, copy=False)
        put(variables[collection], path, value)
    return Filled(
        variables=variables,
        loaded=tuple(path for path in places if path not in fresh),
        fresh=tuple(path for path in places if path in fresh),
        unused=tuple(unused),
    )


def _expected_to_stay(places: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
    if all(path.startswith("backbone/") for path in given):
        return {path for path in places if not path.startswith("backbone/")}
    outputs = [path for path in _CLASS_OUTPUT if path in places and path in given]
    differs_in_last = [_shape(given[path])[-1:] != _shape(places[path][1])[-1:] for path in outputs]
    same_inputs = all(_shape(given[path])[:-1] == _shape(places[path][1])[:-1] for path in outputs)
    # Both or neither: a new bias on old kernels would be the scores of nobody's classes.
    if len(outputs) == len(_CLASS_OUTPUT) and all(differs_in_last) and same_inputs:
        return set(outputs)
    return set()


def _is_level_without_place(path: str, places: Mapping[str, Any]) -> bool:
    """Whether this is of a layer of the pyramid that the model has not at all."""
    layer, _, _ = path.rpartition("/")
    return layer.startswith("fpn/") and not any(place.startswith(f"{layer}/") for place in places)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape)


def describe_filled(filled: Filled, weights: LoadedWeights, path: str | pathlib.Path) -> str:
    """Returns a line for the log: what was loaded, what was initialised anew, and what of the file was not used.

    Args:
        filled: what became of the weights.
        weights: what the file held.
        path: of the file.
    """
    total = len(filled.loaded) + len(filled.fresh)
    kind, there = SOURCES[weights.source], infer_model(weights.variables)
    kind += f", {there['num_classes']} classes" if "num_classes" in there else ""
    line = f"loaded {len(filled.loaded)} of the model's {total} arrays from {path} ({kind})"
    if set(filled.fresh) == set(_CLASS_OUTPUT):
        line += f"; made anew: class_head/output, for {infer_model(filled.variables)['num_classes']} classes"
    elif filled.fresh:
        rooms = collections.Counter(name.partition("/")[0] for name in filled.fresh)
        line += f"; made anew: {', '.join(f'{room} ({count})' for room, count in rooms.items())}"
    counters = [name for name in weights.extra if name.endswith(COUNTER)]
    unused = [name for name in (*filled.unused, *weights.extra) if name not in counters]
    parts = unused[:_SHOWN] + ([f"and {len(unused) - _SHOWN} more"] if len(unused) > _SHOWN else [])
    parts += [f"{len(counters)} x {COUNTER}"] if counters else []
    return line + (f"; not used of the file: {', '.join(parts)}" if parts else "")

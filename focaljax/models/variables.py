"""Variables of our models: their names, whether they fit a model, and what model they are of."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from focaljax.models.resnet import RESNETS, ResNet
from focaljax.models.retinanet import RetinaNet
from focaljax.models.weight_names import Parts, WeightsError, find_parts, raise_for_names


def flatten_variables(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns focaljax's own names of variables, 'params/backbone/conv1/kernel' and so on, with their arrays.

    Args:
        variables: nested by collection, module and leaf; jax arrays become numpy arrays.

    Example:
        >>> flatten_variables({"params": {"fpn": {"p6": {"bias": np.zeros(2)}}}})
        {'params/fpn/p6/bias': array([0., 0.])}
    """
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(variables, sep="/").items()}


def unflatten_variables(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables whose `flatten_variables` is this state_dict.

    Raises:
        WeightsError: a name is also the beginning of another.

    Example:
        >>> unflatten_variables({"params/fpn/p6/bias": 1.0, "params/fpn/p7/bias": 2.0})
        {'params': {'fpn': {'p6': {'bias': 1.0}, 'p7': {'bias': 2.0}}}}
    """
    variables: dict[str, Any] = {}
    for name, array in state_dict.items():
        put(variables, name, array)
    return variables


def check_variables(variables: Mapping[str, Any], expected_shapes: Mapping[str, Any]) -> None:
    """Raises one error that lists every array that a model lacks, does not have, or has in another shape.

    Args:
        variables: 'params' and 'batch_stats'; other collections are passed over, dtypes too.
        expected_shapes: of the model: `jax.eval_shape(model.init, jax.random.key(0), images)`.

    Raises:
        WeightsError: they differ.

    Example:
        >>> check_variables({"params": {"b": np.zeros(3)}}, {"params": {"b": np.zeros(4)}})
        Traceback (most recent call last):
        focaljax.models.weight_names.WeightsError: weights for this model: 1 of a wrong shape:
          params/b has shape (3,), expected (4,);
        ...
    """
    ours = {
        name: array
        for name, array in flatten_dict(variables, sep="/").items()
        if name.startswith(("params/", "batch_stats/"))
    }
    expected = {name: tuple(leaf.shape) for name, leaf in flatten_dict(expected_shapes, sep="/").items()}
    raise_for_names(
        "weights for this model",
        known=expected,
        unmapped=[name for name in ours if name not in expected],
        missing=[name for name in expected if name not in ours],
        misshapen={
            name: f"has shape {tuple(array.shape)}, expected {expected[name]}"
            for name, array in ours.items()
            if name in expected and tuple(array.shape) != expected[name]
        },
        remedy="The settings of the model must be those of the weights: backbone, norm, p6_from, head_norm, classes.",
    )


def check_complete(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `infer_model` finds, of variables that are exactly those of such a model.

    Args:
        variables: 'params' and 'batch_stats'; of a backbone alone nothing is checked but which it is.

    Raises:
        WeightsError: the backbone is none of `RESNETS`, an array is missing, has no place or another shape, or no
            `RetinaNet` has these levels or sizes.
    """
    model = infer_model(variables)
    if model["backbone"] is None:
        raise WeightsError("the backbone has the shapes of none of focaljax.models.resnet.RESNETS")
    if "num_classes" in model:
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        try:
            expected_shapes = jax.eval_shape(RetinaNet(**model).init, jax.random.key(0), images)
        except (ValueError, TypeError) as error:
            raise WeightsError(f"no RetinaNet has what these variables show, {model}: {error}") from None
        check_variables(variables, expected_shapes)
    return model


def infer_model(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes of `RetinaNet` that show in the variables; of a backbone alone 'backbone' and 'norm'.

    Not in the variables: `stride_in_1x1`, `norm_epsilon`, and the anchors but for their number per position.

    Args:
        variables: 'params' and 'batch_stats', arrays or their shapes.

    Returns:
        'backbone' (that of `RESNETS` most of whose kernels have these shapes, or None), 'norm', and of a detector
        'levels', 'fpn_channels', 'p6_from' (where there is a P6), 'head_depth', 'head_channels', 'head_norm',
        'anchors_per_position' and 'num_classes'.

    Raises:
        WeightsError: an array from which these are read is missing, or has another number of sizes than it should.
    """
    flat = leaves_by_path(variables)
    parts = find_parts(flat, "focaljax")

    def shape(path: str, rank: int) -> tuple[int, ...]:
        if path not in flat:
            raise WeightsError(f"infer_model: {path} is missing: these are not the variables of a RetinaNet")
        found = tuple(flat[path][1].shape)
        if len(found) != rank or 0 in found:
            raise WeightsError(f"infer_model: {path} has the shape {found}, expected {rank} sizes above 0")
        return found

    is_group_norm = "backbone/bn1/group_norm/scale" in flat
    is_live = flat.get("backbone/bn1/scale", ("", None))[0] == "params"
    model: dict[str, Any] = {
        "backbone": _backbone_name(flat, parts),
        "norm": "group_norm" if is_group_norm else "batch_norm" if is_live else "frozen_batch_norm",
    }
    if not parts.is_detector:
        return model
    levels = parts.laterals + parts.tops
    if not levels:
        raise WeightsError("infer_model: the pyramid has no level: these are not the variables of a RetinaNet")
    anchors = max(1, shape("box_head/output/bias", 1)[0] // 4)
    *_, head_in, class_outputs = shape("class_head/output/kernel", 4)
    model |= {
        "levels": levels,
        "fpn_channels": shape(f"fpn/lateral{levels[0]}/kernel", 4)[-1],
        "head_depth": parts.depth,
        "head_channels": head_in,
        "head_norm": _head_norm(flat),
        "anchors_per_position": anchors,
        "num_classes": class_outputs // anchors,
    }
    if 6 in levels:
        model["p6_from"] = "p5" if shape("fpn/p6/kernel", 4)[2] == model["fpn_channels"] else "c5"
    return model


def _backbone_name(flat: Mapping[str, tuple[str, Any]], parts: Parts) -> str | None:
    """Returns the name in `RESNETS` most of whose kernels have these shapes, or None."""
    kernels = {path: tuple(leaf.shape) for path, (_, leaf) in flat.items() if _is_backbone_kernel(path)}
    most, best = len(kernels) / 2, None
    for name, shape in RESNETS.items():
        if shape.blocks != parts.blocks or (shape.expansion == 4) != (parts.convs == 3):
            continue
        equal = sum(kernels.get(path) == size for path, size in _backbone_kernels(name).items())
        if equal > most:
            most, best = equal, name
    return best


@functools.cache
def _backbone_kernels(name: str) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of the kernels of a backbone in `RESNETS`."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    init = functools.partial(ResNet(RESNETS[name]).init, train=False)
    leaves = leaves_by_path({"params": {"backbone": jax.eval_shape(init, jax.random.key(0), images)["params"]}})
    return {path: tuple(leaf.shape) for path, (_, leaf) in leaves.items() if _is_backbone_kernel(path)}


def _is_backbone_kernel(path: str) -> bool:
    return path.startswith("backbone/") and path.endswith("/kernel")


def _head_norm(flat: Mapping[str, tuple[str, Any]]) -> str | None:
    if "class_head/norm0/group_norm/scale" in flat:
        return "group_norm"
    collection = flat.get("class_head/norm0/scale", ("", None))[0]
    return {"": None, "params": "batch_norm", "batch_stats": "frozen_batch_norm"}[collection]


def leaves_by_path(variables: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Returns path below the collection -> (collection, leaf), of 'params' and 'batch_stats' alone."""
    return {
        path: (collection, leaf)
        for collection in ("params", "batch_stats")
        for path, leaf in flatten_dict(variables.get(collection, {}), sep="/").items()
    }


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Puts a leaf into a tree of dicts, at a path such as 'fpn/p6/bias'; makes the dicts on the way.

    Raises:
        WeightsError: there is a leaf on the way, or something at the path.
    """
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise WeightsError(f"{path} lies below an array of that name")
    if last in tree:
        raise WeightsError(f"{path} is both an array and a group of arrays")
    tree[last] = value

"""Published weights in and out: torchvision's and detectron2's names to the variables of our models and back.

A state_dict is a mapping from name to numpy array, as `read_weights` returns it from a file.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from focaljax.models.variables import (
    check_complete,
    check_variables,
    flatten_variables,
    infer_model,
    leaves_by_path,
    put,
    unflatten_variables,
)
from focaljax.models.weight_files import read_weights, write_weights
from focaljax.models.weight_names import (
    COUNTER,
    DETECTRON2_BODY,
    LEAVES,
    TORCHVISION_BODY,
    Layer,
    Parts,
    WeightsError,
    find_parts,
    layers,
    newest_torchvision_names,
    raise_for_names,
)

__all__ = [
    "LoadedWeights",
    "WeightsError",
    "check_complete",
    "check_variables",
    "detect_source",
    "flatten_variables",
    "from_detectron2",
    "from_torchvision",
    "import_weights",
    "infer_model",
    "load_variables",
    "read_weights",
    "to_torchvision",
    "unflatten_variables",
    "write_weights",
]

StateDict = dict[str, np.ndarray]
Variables = dict[str, Any]

NORMS = ("batch_norm", "frozen_batch_norm")
# Whose names a file may have -> what it is then.
SOURCES = {
    "focaljax": "focaljax",
    "torchvision": "torchvision detector",
    "torchvision_classifier": "torchvision classifier",
    "detectron2": "detectron2",
}

# What a file may hold besides weights of a RetinaNet: a classifier; pixel statistics and anchors, which are settings.
_TORCHVISION_DROPPED = re.compile(r"fc\.(weight|bias)")
_DETECTRON2_DROPPED = re.compile(
    r"pixel_(mean|std)|(.*\.)?anchor_generator\..*|(backbone\.bottom_up\.)?(stem\.fc|linear)\.(weight|bias)"
)


def from_torchvision(state_dict: Mapping[str, Any], *, norm: str | None = None) -> Variables:
    """Returns the variables of a `RetinaNet`, or of its backbone alone, from a state_dict of torchvision.

    Detectors of any ResNet or ResNeXt backbone, v1 and v2, with the newest names or those of before 0.13, and
    classification networks, whose variables are `{'params': {'backbone': ...}, ...}`. Convolution kernels are
    transposed from `[out, in, h, w]` to `[h, w, in, out]`; all else is unchanged, dtypes too. The heads' outputs keep
    torchvision's order of anchors (ratio-major), for a model with `pyramid_anchors(..., layout='torchvision')`.

    Args:
        state_dict: name -> array.
        norm: of the model: 'batch_norm' (scale and bias are 'params', the statistics 'batch_stats') or
            'frozen_batch_norm' (all four are 'batch_stats'). None: 'batch_norm' if the file counts batches
            (`num_batches_tracked`), as torch's BatchNorm2d does and torchvision's FrozenBatchNorm2d does not. Some
            older classification weights count none either: name `norm` for them.

    Returns:
        `{'params', 'batch_stats'}`, and 'extra' where the file holds what the model has no place for
        (`num_batches_tracked`, the classifier `fc`): name -> array, so that `to_torchvision` gives back every byte.

    Raises:
        ValueError: `norm` is neither of these.
        WeightsError: names that are unknown or missing, or arrays of a wrong shape; it lists all of them.

    Example:
        >>> from_torchvision({"conv1.weight": np.zeros((64, 3, 7, 7)), "cnv1.bias": np.zeros(64)})
        Traceback (most recent call last):
        focaljax.models.weight_names.WeightsError: torchvision weights: 1 without a place, 59 missing: ...
    """
    newest = newest_torchvision_names(state_dict)
    renamed = {newest[name]: array for name, array in state_dict.items()}
    if len(renamed) < len(state_dict):
        twice = [name for name in state_dict if newest[name] != name and newest[name] in state_dict]
        raise WeightsError(f"torchvision weights: {twice[0]} is there under its newer name {newest[twice[0]]} too")
    parts = find_parts(renamed, "torchvision")
    table = {_torchvision_prefix(layer, parts): layer for layer in layers(parts)}
    return _import(renamed, table, norm=norm, what="torchvision weights", dropped=_TORCHVISION_DROPPED)


def from_detectron2(state_dict: Mapping[str, Any], *, norm: str | None = None) -> Variables:
    """Returns the variables of a `RetinaNet`, or of its backbone alone, from a state_dict of detectron2.

    As `from_torchvision`, for detectron2's names: RetinaNets with a ResNet backbone and heads without normalisation,
    and backbones whose names start with 'backbone.bottom_up.', 'stem.' or 'res2.'. Not for Caffe2's names ('conv1_w').
    The first convolution stays as it is, for BGR images.

    Args:
        state_dict: name -> array.
        norm: as in `from_torchvision`.

    Returns:
        `{'params', 'batch_stats'}`, and 'extra' as in `from_torchvision` (pixel statistics, anchors, a classifier).

    Raises:
        ValueError: `norm` is neither 'batch_norm' nor 'frozen_batch_norm'.
        WeightsError: names that are unknown or missing, or arrays of a wrong shape; it lists all of them.
    """
    parts = find_parts(state_dict, "detectron2")
    has_prefix = any(name.startswith("backbone.") for name in state_dict)
    table = {
        layer.detectron2 if has_prefix else layer.detectron2.removeprefix(DETECTRON2_BODY): layer
        for layer in layers(parts)
    }
    return _import(dict(state_dict), table, norm=norm, what="detectron2 weights", dropped=_DETECTRON2_DROPPED)


def to_torchvision(variables: Mapping[str, Any]) -> StateDict:
    """Returns torchvision's state_dict (newest names, in its order) of the variables of a `RetinaNet`.

    The inverse of `from_torchvision`, bit for bit. Variables of a backbone alone give the names of a classification
    network. The result is of use in torchvision for a model whose anchors are torchvision's and whose strides are in
    the 3x3 convolutions: neither is seen in the variables.

    Args:
        variables: 'params' and 'batch_stats', numpy or jax arrays; 'extra' as `from_torchvision` returns it, of which
            what torchvision knows is taken. Without it each live batch normalisation gets `num_batches_tracked` 0,
            which torch does not use at its momentum.

    Raises:
        WeightsError: the model has no counterpart in torchvision: another stem (`resnet_tiny`), backbone
            normalisation by groups, heads that are not 4 deep or not as wide as the pyramid; or names that are unknown
            or missing.
    """
    flat = leaves_by_path(variables)
    parts = find_parts(flat, "focaljax")
    table = {layer.focaljax: layer for layer in layers(parts)}
    _check_convertible(flat, parts)
    ours = [f"{layer.focaljax}/{leaf}" for layer in table.values() for leaf in LEAVES[layer.kind].values()]
    raise_for_names(
        "to_torchvision",
        known=ours,
        unmapped=sorted(flat.keys() - set(ours)),
        missing=[n for n in ours if n not in flat],
    )
    extra = variables.get("extra", {})
    is_live = flat["backbone/bn1/scale"][0] == "params"
    state_dict: StateDict = {}
    for layer in table.values():
        prefix = _torchvision_prefix(layer, parts)
        for theirs, leaf in LEAVES[layer.kind].items():
            array = np.asarray(flat[f"{layer.focaljax}/{leaf}"][1])
            state_dict[f"{prefix}.{theirs}"] = array.transpose(3, 2, 0, 1) if leaf == "kernel" else array
        counter = f"{prefix}.{COUNTER}"
        if layer.kind == "batch_norm" and (is_live or counter in extra):
            state_dict[counter] = np.asarray(extra.get(counter, np.zeros((), np.int64)))
    if not parts.is_detector:
        state_dict |= {name: np.asarray(array) for name, array in extra.items() if _TORCHVISION_DROPPED.fullmatch(name)}
    return state_dict


def _torchvision_prefix(layer: Layer, parts: Parts) -> str:
    return layer.torchvision if parts.is_detector else layer.torchvision.removeprefix(TORCHVISION_BODY)


def _import(
    state_dict: Mapping[str, Any], table: Mapping[str, Layer], *, norm: str | None, what: str, dropped: re.Pattern[str]
) -> Variables:
    """Returns the variables for a table prefix -> layer, and under 'extra' what has no place in the model."""
    if norm is not None and norm not in NORMS:
        raise ValueError(
            f"norm must be None or one of {', '.join(NORMS)}, got {norm!r}: published weights have no other"
        )
    expected = {f"{prefix}.{leaf}": (prefix, leaf) for prefix, layer in table.items() for leaf in LEAVES[layer.kind]}
    counters = {f"{prefix}.{COUNTER}" for prefix, layer in table.items() if layer.kind == "batch_norm"}
    arrays = {name: np.asarray(array) for name, array in state_dict.items()}
    extra = {name: array for name, array in arrays.items() if name in counters or dropped.fullmatch(name)}
    raise_for_names(
        what,
        known=expected,
        unmapped=[name for name in arrays if name not in expected and name not in extra],
        missing=[name for name in expected if name not in arrays],
        misshapen=_misshapen(arrays, table),
    )
    is_live = norm == "batch_norm" if norm else not counters.isdisjoint(arrays)
    variables: Variables = {"params": {}, "batch_stats": {}}
    for name, (prefix, leaf) in expected.items():
        layer = table[prefix]
        is_statistic = leaf.startswith("running_") or (layer.kind == "batch_norm" and not is_live)
        ours = LEAVES[layer.kind][leaf]
        array = arrays[name].transpose(2, 3, 1, 0) if ours == "kernel" else arrays[name]
        put(variables["batch_stats" if is_statistic else "params"], f"{layer.focaljax}/{ours}", array)
    return variables | ({"extra": extra} if extra else {})


def _misshapen(arrays: Mapping[str, np.ndarray], table: Mapping[str, Layer]) -> dict[str, str]:
    """Returns what is wrong with shapes as far as it shows without the model: ranks, and channels of a kernel."""
    wrong: dict[str, str] = {}
    channels: int | None = None
    for prefix, layer in table.items():
        for leaf, ours in LEAVES[layer.kind].items():
            name = f"{prefix}.{leaf}"
            if name not in arrays:
                channels = None if ours == "kernel" else channels
                continue
            array = arrays[name]
            if not _is_float(array.dtype):
                wrong[name] = f"has dtype {array.dtype}, expected floating point"
            elif ours == "kernel":
                channels = array.shape[0] if array.ndim == 4 else None
                if channels is None:
                    wrong[name] = f"has shape {array.shape}, expected (out, in, height, width)"
            elif array.ndim != 1 or (channels is not None and array.shape[0] != channels):
                wrong[name] = f"has shape {array.shape}, expected ({'channels' if channels is None else channels},)"
    return wrong


def _is_float(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, np.floating)


def _check_convertible(flat: Mapping[str, tuple[str, Any]], parts: Parts) -> None:
    def shape(path: str) -> tuple[int, ...]:
        return tuple(flat[path][1].shape) if path in flat else ()

    reasons = []
    if shape("backbone/conv1/kernel") != (7, 7, 3, 64):
        reasons.append(
            f"its stem has a kernel of {shape('backbone/conv1/kernel')} where every ResNet of torchvision has "
            "(7, 7, 3, 64): resnet_tiny is no such model"
        )
    if any(path.startswith("backbone/bn1/group_norm/") for path in flat):
        reasons.append("its backbone has group normalisation")
    if parts.is_detector and parts.depth != 4:
        reasons.append(f"its heads have {parts.depth} hidden layers, torchvision's 4")
    *_, pyramid_channels, head_channels = shape("class_head/conv0/kernel") or (0, 0)
    if pyramid_channels != head_channels:
        reasons.append(
            f"its heads have {head_channels} channels, torchvision's as many as the pyramid, here {pyramid_channels}"
        )
    if parts.is_detector and parts.has_head_norm:
        channels = shape("class_head/norm0/group_norm/scale")
        if not channels:
            reasons.append("its heads have another normalisation than by groups")
        elif channels < (128,):  # see focaljax.models.layers.norm
            reasons.append("its heads normalise groups of 4 channels, torchvision's 32 groups")
    if reasons:
        raise WeightsError(
            f"to_torchvision: this model has no counterpart in torchvision: {'; '.join(reasons)}; "
            "keep focaljax's own names (flatten_variables)"
        )


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """What a file of weights holds.

    Attributes:
        variables: `{'params', 'batch_stats'}`; of a classification network with 'backbone' alone below them.
        source: one of `SOURCES`: whose names the file has.
        extra: what the model has no place for, by its name in the file.
    """

    variables: Variables
    source: str
    extra: StateDict


def load_variables(path: str | pathlib.Path, *, norm: str | None = None) -> LoadedWeights:
    """Returns the weights in a file, whichever of the known names it uses.

    Args:
        path: `.safetensors`, `.npz`, `.pth`, `.pt` or `.pkl`; see `focaljax.models.weight_files.read_weights`.
        norm: of the model, as in `from_torchvision`; must agree with the file if that has focaljax's names.

    Raises:
        WeightsError: the file cannot be read, or its names or shapes are not those of a known network.
    """
    state_dict = read_weights(path)
    try:
        return import_weights(state_dict, norm=norm)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def import_weights(state_dict: Mapping[str, Any], *, norm: str | None = None) -> LoadedWeights:
    """Returns the weights in a state_dict, whichever of the known names it uses; see `load_variables`."""
    source = detect_source(state_dict)
    if source == "focaljax":
        variables = unflatten_variables({n: a for n, a in state_dict.items() if not n.startswith("extra/")})
        extra = {name.removeprefix("extra/"): a for name, a in state_dict.items() if name.startswith("extra/")}
        found = infer_model(variables)["norm"]
        if norm is not None and norm != found:
            raise WeightsError(f"these weights are of a model with norm={found!r}, not {norm!r}")
    else:
        variables = (from_detectron2 if source == "detectron2" else from_torchvision)(state_dict, norm=norm)
        extra = variables.pop("extra", {})
    return LoadedWeights(variables, source, extra)


def detect_source(names: Mapping[str, Any]) -> str:
    """Returns whose names these are, one of `SOURCES`.

    Raises:
        WeightsError: nobody's that we know.

    Example:
        >>> detect_source({"backbone.body.conv1.weight": 0.0})
        'torchvision'
    """
    for source, pattern in (
        ("focaljax", r"params/"),
        ("torchvision", r"backbone\.body\.|head\.(classification|regression)_head\."),
        ("detectron2", r"backbone\.bottom_up\.|(stem\.conv1|res[2-5]\.\d+\.conv[1-3])\.|head\.(cls|bbox)_"),
        ("torchvision_classifier", r"layer[1-4]\.\d+\.conv[1-3]\."),
    ):
        if any(re.match(pattern, name) for name in names):
            return source
    some = ", ".join(list(names)[:3]) or "none"
    raise WeightsError(
        f"these are not the names of focaljax ('params/backbone/...'), torchvision ('backbone.body....' or "
        f"'layer1.0....') or detectron2 ('backbone.bottom_up....'); the first of {len(names)}: {some}"
    )

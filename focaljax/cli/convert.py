"""focaljax convert: weights of torchvision, detectron2 or a run, read and written under other names.

Usage: focaljax convert SRC DST [--to NAMES] [--norm NORM] [--step STEP] [--force]

  SRC           a file of weights (.safetensors, .npz, .pth, .pt, .pkl) under the names of torchvision (RetinaNets and
                classification ResNets), detectron2 or focaljax; or the --workdir of a run of `focaljax train` (the
                averaged weights, if it has them)
  DST           the file to write: .safetensors, .npz, .pth or .pt
  --to NAMES    focaljax or torchvision (default: torchvision from a file of torchvision or of focaljax; focaljax from a
                run or from detectron2)
  --norm NORM   batch_norm or frozen_batch_norm: the normalisation of the model that SRC is for (default: batch_norm if
                the file counts batches, as torch's trained layers do)
  --step STEP   of a run: which checkpoint, latest (the default), best or the number of a step
  --force       overwrite DST

.pth and .pt need torch; nothing else does. What focaljax has no place for (a classifier, counts of batches) is kept in
the file, so that torchvision's weights come back bit for bit.

Example:
  focaljax convert retinanet_resnet50_fpn_coco.pth retinanet50.safetensors
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from focaljax.cli import datasets
from focaljax.cli.config import parse_flags
from focaljax.cli.console import say
from focaljax.cli.evaluate import chosen_step, load_detector, saved_run
from focaljax.cli.main import UsageError
from focaljax.cli.prediction import anchor_settings, pixel_settings
from focaljax.models.pretrained import (
    NORMS,
    SOURCES,
    LoadedWeights,
    WeightsError,
    check_complete,
    flatten_variables,
    load_variables,
    to_torchvision,
    write_weights,
)
from focaljax.models.variants import VARIANTS
from focaljax.training import mesh as meshes
from focaljax.training.classification import is_softmax

TARGETS = ("focaljax", "torchvision")


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    flag_values = flags.FlagValues()
    flags.DEFINE_enum("to", None, TARGETS, "names to write", flag_values=flag_values)
    flags.DEFINE_enum("norm", None, NORMS, "of the model that SRC is for", flag_values=flag_values)
    flags.DEFINE_string("step", "", "of a run: latest, best or a number", flag_values=flag_values)
    flags.DEFINE_bool("force", False, "overwrite DST", flag_values=flag_values)
    names = parse_flags(arguments, flag_values)
    if len(names) != 2:
        raise UsageError(f"convert needs SRC and DST, got {len(names)} names; see `focaljax convert --help`")
    source, destination = map(pathlib.Path, names)
    if destination.exists() and not flag_values.force:
        raise UsageError(f"{destination} exists already; --force overwrites it")
    try:
        return _convert(source, destination, flag_values.to, flag_values.norm, flag_values.step)
    except WeightsError as error:
        raise UsageError(str(error)) from None


def _convert(source: pathlib.Path, destination: pathlib.Path, to: str | None, norm: str | None, step: str) -> int:
    weights = _weights_of_run(source, to, norm, step) if source.is_dir() else _weights_of_file(source, norm, step)
    try:
        model = check_complete(weights.variables)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    _say_what_is_mapped(weights, model)
    if to is None:
        # torchvision's names stay: they tell `predict` which detector it has before it.
        to = "focaljax" if source.is_dir() or weights.source == "detectron2" else "torchvision"
    state_dict = _renamed(weights, to)
    size = write_weights(destination, state_dict, overwrite=True)
    say(f"wrote {destination}: {len(state_dict)} arrays under the names of {to}, {size / 1e6:.1f} MB")
    if to == "torchvision" and weights.source == "focaljax" and not source.is_dir():
        say(
            "note: torchvision sees the same boxes with these weights if they were trained with its anchors "
            "(layout 'torchvision'), on RGB images and with the stride in the 3x3 convolutions"
        )
    return 0


def _weights_of_file(path: pathlib.Path, norm: str | None, step: str) -> LoadedWeights:
    if step:
        raise UsageError("--step is for the workdir of a run; a file has one state")
    weights = load_variables(path, norm=norm)
    count = len(jax.tree.leaves((weights.variables, weights.extra)))
    say(f"read {path}: {count} arrays under {SOURCES[weights.source]} names")
    return weights


def _weights_of_run(workdir: pathlib.Path, to: str | None, norm: str | None, step: str) -> LoadedWeights:
    if norm is not None:
        raise UsageError("--norm is for files; a run knows its own")
    config, workdir = saved_run(str(workdir), [])
    classes = datasets.load_classes(workdir)
    if is_softmax(config.loss.classification):
        raise UsageError(
            f"{workdir} was trained with {config.loss.classification}, a softmax over classes and background; a file "
            "of weights is read as sigmoids, and its scores would be wrong: use the run itself, or `focaljax export`"
        )
    if to == "torchvision":
        _check_settings(config, workdir)
    chosen = chosen_step(config, workdir, step or "latest")
    saved, variables, _ = load_detector(config, workdir, len(classes.names), meshes.make_mesh(), step=chosen)
    say(f"read step {saved} of the run {workdir}")
    if to == "torchvision":
        say(
            "note: the file holds no settings; those of the run were "
            f"norm_epsilon={config.model.norm_epsilon:g} (`focaljax predict --norm_epsilon`, torchvision's eps), "
            f"image_size={config.data.image_size} and anchors of the sizes {config.anchors.sizes}"
        )
    return LoadedWeights(jax.tree.map(np.asarray, variables), "focaljax", {})


def _check_settings(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Raises if torchvision would give these weights other anchors or pixels, or stride elsewhere."""
    published = VARIANTS["torchvision_v1"]
    anchors, pixels = anchor_settings(config), published.preprocessing
    if anchors["layout"] != "torchvision":
        raise UsageError(
            f"{workdir} was trained with anchors of the layout {anchors['layout']!r}; torchvision's anchors lie "
            "elsewhere, so its boxes would be wrong with these weights; use --to=focaljax"
        )
    if config.model.stride_in_1x1:
        raise UsageError(f"{workdir} has its strides in 1x1 convolutions, torchvision in 3x3 ones; use --to=focaljax")
    expected = {"mean": pixels.pixel_mean, "std": pixels.pixel_std, "channel_order": pixels.channel_order}
    if pixel_settings(config) != expected:
        raise UsageError(
            f"{workdir} was trained with the pixels {pixel_settings(config)}, torchvision's are {expected}; "
            "use --to=focaljax"
        )


def _renamed(weights: LoadedWeights, to: str) -> dict[str, np.ndarray]:
    if to == "focaljax":
        carried = weights.extra if weights.source != "detectron2" else {}
        return flatten_variables(weights.variables) | {f"extra/{name}": array for name, array in carried.items()}
    if weights.source == "detectron2":
        raise UsageError(
            "detectron2's weights do not work in torchvision, which has other anchors, RGB images and its strides in "
            "the 3x3 convolutions; use --to=focaljax"
        )
    return to_torchvision({**weights.variables, "extra": weights.extra})


def _say_what_is_mapped(weights: LoadedWeights, model: Mapping[str, Any]) -> None:
    parts = [str(model["backbone"]), str(model["norm"])]
    if "num_classes" in model:
        parts += [f"levels {model['levels'][0]} to {model['levels'][-1]}"]
        parts += [f"P6 from {model['p6_from'].upper()}"] if "p6_from" in model else []
        parts += [f"head_norm {model['head_norm']}"] if model["head_norm"] else []
        parts += [f"{model['num_classes']} classes", f"{model['anchors_per_position']} anchors per position"]
    else:
        parts.append("no pyramid and no heads")
    say(f"model: {', '.join(parts)}")
    trained, statistics = (
        jax.tree.leaves(weights.variables.get(collection, {})) for collection in ("params", "batch_stats")
    )
    say(
        f"mapped {len(trained) + len(statistics)} arrays: {sum(leaf.size for leaf in trained):,} parameters and "
        f"{sum(leaf.size for leaf in statistics):,} constants and statistics"
    )
    if weights.extra:
        fate = "left out" if weights.source == "detectron2" else "kept beside the model"
        some = ", ".join(list(weights.extra)[:3]) + (", ..." if len(weights.extra) > 3 else "")
        say(f"{fate}: {len(weights.extra)} arrays that the model has no place for ({some})")

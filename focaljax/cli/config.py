"""Configs: reading a config file with overrides from the command line, and a run's own config."""

import importlib.util
import json
import pathlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from focaljax.cli.defaults import default_config
from focaljax.cli.main import UsageError, nearest
from focaljax.cli.settings import check_value, nearest_setting
from focaljax.evaluation.whole_files import write_whole

# What may differ when a run goes on: how it is watched, not what is trained.
FREE_ON_RESUME = (
    "log", "eval", "checkpoint", "mesh", "cpu_devices", "optim.accumulate", "optim.nonfinite",
    "data.num_threads", "data.cache", "data.timeout",
)  # fmt: skip

_VARIANT_FLAG, _APPLIED = "--config.model.variant=", "_applied_variant"


def apply_variant(config: ConfigDict, name: str) -> None:
    """Sets what a published RetinaNet has of its own; what is set after it wins.

    That is the model, its anchors, matching, loss, thresholds of the detections, and the pixels' mean, deviation and
    order. Of 'mlperf' it is the image size too; images are padded to it here, where the published one stretches them.
    Data, other image sizes, optimiser and schedule stay as they are.

    Args:
        config: changed in place.
        name: in `focaljax.models.variants.VARIANTS`, such as 'torchvision_v2'.

    Raises:
        UsageError: the name is unknown.
    """
    from focaljax.models.variants import variant_named

    try:
        variant = variant_named(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    pixels = ("pixel_mean", "pixel_std", "channel_order")
    groups = {
        "model": {**variant.model, "head_norm": variant.model["head_norm"] or "", "variant": name},
        "anchors": variant.anchors,
        "matching": variant.matching,
        "loss": variant.loss,
        "eval": variant.thresholds,
        "data": {key: getattr(variant.preprocessing, key) for key in pixels},
    }
    if not variant.preprocessing.keeps_aspect_ratio:  # one shape for all images
        groups["data"]["image_size"] = (variant.preprocessing.min_size, variant.preprocessing.max_size)
    for group, settings in groups.items():
        config[group].update(settings)
    # Beside the settings, not one of them: it tells a variant that was applied from a name that was only written down.
    object.__setattr__(config, _APPLIED, name)


def parse_flags(arguments: Sequence[str], flag_values: flags.FlagValues) -> list[str]:
    """Parses a verb's flags; returns the arguments that are not flags.

    Raises:
        UsageError: a flag is unknown, lacks its value, or has a wrong one.
    """
    try:
        return flag_values(["focaljax", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        known = [name for name in flag_values if not name.startswith("config.")]
        raise UsageError(f"unknown flag --{error.flagname}{nearest(error.flagname, known)}") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def split_config_flags(arguments: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    """Splits a command line into the flags of the config and the others.

    Returns:
        The config's flags (`--config`, `--config.KEY`) in the form `--name=value`, and all other arguments.

    Raises:
        UsageError: an override lacks its dashes or its value.
    """
    config_flags_, others = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument.split("=")[0].split(".")[0] == "config" and "=" in argument:
            raise UsageError(f"override {argument!r} lacks its dashes: write --{argument}")
        name, equals, value = argument.partition("=")
        if name.lstrip("-").split(".")[0] != "config" or not name.startswith("-"):
            others.append(argument)
            continue
        if not equals:
            value = next(rest, "")
            if not value or value.startswith("--"):
                raise UsageError(f"{name} lacks its value: write {name}=VALUE")
        config_flags_.append(f"--{name.lstrip('-')}={value}")
    return config_flags_, others


def load_config(config_arguments: Sequence[str]) -> ConfigDict:
    """Returns the config that `--config=FILE` and its overrides name.

    A variant among the overrides is applied first, wherever it stands, so that the others change its settings.

    Args:
        config_arguments: as `split_config_flags` gives them.

    Raises:
        UsageError: no file or a broken one, or an override that names no setting or has a wrong type.
    """
    paths = [argument.partition("=")[2] for argument in config_arguments if argument.startswith("--config=")]
    if len(paths) != 1:
        raise UsageError(f"one --config=FILE is needed, such as --config=configs/shapes.py; got {len(paths)}")
    overrides = [argument for argument in config_arguments if not argument.startswith("--config=")]
    config = _load_config_file(paths[0])
    for override in overrides:
        if override.startswith(_VARIANT_FLAG):
            apply_variant(config, override.removeprefix(_VARIANT_FLAG))
    return override_config(config, [override for override in overrides if not override.startswith(_VARIANT_FLAG)])


def override_config(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Returns the config with overrides `--config.KEY=VALUE` applied, each checked against the setting's type.

    Raises:
        UsageError: an override that names no setting or has a wrong type.
    """
    settings = dict(flatten(config))
    for override in overrides:
        name, _, value = override.partition("=")
        key = name.removeprefix("--config.")
        if key not in settings:
            groups = {".".join(setting.split(".")[:-1]) for setting in settings}
            if key in groups:
                raise UsageError(f"--config.{key} is a group of settings: set one of them, --config.{key}.NAME=VALUE")
            raise UsageError(f"unknown setting --config.{key}{nearest_setting(key, settings)}")
        check_value(key, value, settings[key])
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=["focaljax", *overrides])
    parse_flags(overrides, flag_values)
    return flag_values.config


def flatten(config: ConfigDict | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the settings as ('optim.learning_rate', 0.01) and so on, in the order of definition."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def save_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes the resolved config to `WORKDIR/config.json`."""
    write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def load_saved_config(workdir: pathlib.Path) -> ConfigDict:
    """Returns the config of a run.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UsageError(f"{path} does not exist: --workdir must be that of a run of `focaljax train`")
    try:
        saved = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(saved, dict):
        raise UsageError(f"{path} holds {type(saved).__name__}, expected an object of settings, as training writes it")
    # A run of an older version lacks newer settings, whose defaults are what it did.
    return ConfigDict(_over(default_config().to_dict(), _lists_to_tuples(saved)))


def is_free_on_resume(key: str) -> bool:
    """Whether a run may go on with another value of a setting: it does not change what is trained."""
    return any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME)


def differences(saved: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns a line for each setting that matters to what is trained and is not the same in both configs."""
    saved_settings, new_settings = dict(flatten(saved)), dict(flatten(new))
    lines = []
    for key in {**saved_settings, **new_settings}:
        if is_free_on_resume(key):
            continue
        before, now = saved_settings.get(key, "(none)"), new_settings.get(key, "(none)")
        if before != now:
            lines.append(f"{key}: {before!r} there, {now!r} now")
    return lines


def _load_config_file(path: str) -> ConfigDict:
    file = pathlib.Path(path)
    if not file.is_file():
        siblings = {str(other): "" for other in sorted(file.parent.glob("*.py"))} if file.parent.is_dir() else {}
        raise UsageError(f"config file {path} does not exist{nearest(path, siblings)}")
    spec = importlib.util.spec_from_file_location("focaljax_config", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"config file {path} must be a Python file that defines get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line_number = frames[-1].lineno if frames else getattr(error, "lineno", None)
        line = f", line {line_number}" if line_number else ""
        raise UsageError(f"config file {path}{line}: {type(error).__name__}: {error}") from None
    if not isinstance(config, ConfigDict):
        raise UsageError(f"config file {path}: get_config() must return a ConfigDict, got {type(config).__name__}")
    _check_known(path, config)
    variant = dict(flatten(config)).get("model.variant", "")
    if variant != vars(config).get(_APPLIED, ""):
        raise UsageError(
            f"config file {path} names model.variant without its settings: write apply_variant(config, {variant!r}), "
            "for the config that it returns, before the settings that differ"
        )
    return config


def _check_known(path: str, config: ConfigDict) -> None:
    """A setting that no code reads is a misspelt one."""
    known = dict(flatten(default_config()))
    for key, _ in flatten(config):
        if key not in known:
            raise UsageError(f"config file {path}: unknown setting {key}{nearest_setting(key, known)}")


def _over(defaults: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings, and where they lack some, the defaults."""
    groups = {
        key: _over(value, settings[key])
        for key, value in defaults.items()
        if isinstance(value, dict) and isinstance(settings.get(key), dict)
    }
    return {**defaults, **settings, **groups}


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value

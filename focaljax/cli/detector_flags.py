"""The flags that name a detector, a run's or one of a file of weights, for the verbs that use one."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags

from focaljax.cli.console import say_compiled
from focaljax.cli.evaluate import chosen_step, run_detector, saved_run
from focaljax.cli.main import UsageError
from focaljax.detector import Detector
from focaljax.evaluation.inference import TestTimeAugmentation
from focaljax.training import mesh as meshes

_ONLY_WITH_WEIGHTS = ("variant", "norm_epsilon", "classes")


def define_detector_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags that `detector_loader` reads."""
    for name, what in (
        ("weights", "file of weights"),
        ("workdir", "of a run of `focaljax train`"),
        ("step", "latest, best or a number"),
        ("variant", "published detector"),
        ("classes", "file of class names"),
    ):
        flags.DEFINE_string(name, "", what, flag_values=flag_values)
    flags.DEFINE_float("norm_epsilon", None, "of the backbone", lower_bound=0.0, flag_values=flag_values)
    flags.DEFINE_bool("flip", None, "mirrored too", flag_values=flag_values)
    flags.DEFINE_list("scales", None, "factors", flag_values=flag_values)


def detector_loader(
    flag_values: flags.FlagValues,
    overrides: Sequence[str],
    *,
    batch_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[], Detector]:
    """Returns what loads the detector, which takes a while; mistakes in the flags show before.

    Args:
        flag_values: of `define_detector_flags`, parsed.
        overrides: of the config, as `split_config_flags` gives them.
        batch_size: see `Detector`.
        mesh: see `Detector`.

    Raises:
        UsageError: flags are missing, wrong or do not go together, or there is no such run.
    """
    if bool(flag_values.weights) == bool(flag_values.workdir):
        raise UsageError("one of --weights=FILE and --workdir=DIR is needed: which detector")
    try:
        tta = _tta(flag_values)
        shared: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh, "on_compile": say_compiled}
        if batch_size is not None and mesh is not None:
            meshes.check_batch_size(batch_size, mesh)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if flag_values.workdir:
        for name in _ONLY_WITH_WEIGHTS:
            if flag_values[name].value not in ("", None):
                raise UsageError(f"--{name} goes with --weights: a run's workdir has its own")
        config, workdir = saved_run(flag_values.workdir, overrides)
        if flag_values.flip is not None:
            config.eval.tta_flip = tta.flip
        if flag_values.scales:
            config.eval.tta_scales = tta.scales
        step = chosen_step(config, workdir, flag_values.step or "latest")
        return lambda: run_detector(config, workdir, step=step, **shared)
    if flag_values.step:
        raise UsageError("--step goes with --workdir: a file of weights has one state")
    if overrides:
        raise UsageError(f"{overrides[0]}: settings go with --workdir; --weights has those of its variant")
    names = read_class_names(pathlib.Path(flag_values.classes)) if flag_values.classes else None

    def load() -> Detector:
        try:
            return Detector.from_weights(
                flag_values.weights,
                variant=flag_values.variant or None,
                class_names=names,
                norm_epsilon=flag_values.norm_epsilon,
                tta=tta,
                **shared,
            )
        except ValueError as error:  # WeightsError among them
            raise UsageError(str(error)) from None

    return load


def read_class_names(path: pathlib.Path) -> list[str]:
    """Returns the names in a file: a JSON list of strings, or one a line.

    Raises:
        UsageError: the file is missing, empty or of another kind.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes={path} cannot be read: {error}") from None
    names: Any = [line.strip() for line in text.splitlines() if line.strip()]
    if text.lstrip().startswith(("[", "{")):
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:  # no JSON, a number of too many digits, or nested too deeply
            raise UsageError(f"--classes={path} is not valid JSON: {error}") from None
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"--classes={path} must hold a JSON list of names, or one name a line")
    return names


def _tta(flag_values: flags.FlagValues) -> TestTimeAugmentation:
    """Returns the views that the flags ask for."""
    try:
        scales = tuple(float(scale) for scale in flag_values.scales or ("1",))
    except ValueError:
        raise UsageError(f"--scales={','.join(flag_values.scales)}: expected factors such as 0.8,1,1.2") from None
    return TestTimeAugmentation(flip=bool(flag_values.flip), scales=scales)

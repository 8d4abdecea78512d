"""Configs: the defaults of every setting, and reading a config file with overrides from the command line."""

import importlib.util
import json
import pathlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from focaljax.cli.main import UsageError, nearest
from focaljax.cli.settings import check_value, nearest_setting

# What may differ when a run goes on: how it is watched, not what is trained.
FREE_ON_RESUME = (
    "log", "eval", "checkpoint", "mesh", "cpu_devices", "optim.accumulate", "optim.nonfinite",
    "data.num_threads", "data.cache", "data.timeout",
)  # fmt: skip

_VARIANT_FLAG, _APPLIED = "--config.model.variant=", "_applied_variant"


def default_config() -> ConfigDict:
    """Returns every setting with its default; a config file changes what it needs.

    The defaults are the paper's RetinaNet-50 on COCO files at 600 px (Lin et al. 2017, arXiv 1708.02002).
    """
    config = ConfigDict()
    config.seed = 0
    # Devices made of a CPU's cores, over which batches are split, where there is no accelerator and batch sizes allow
    # it. Small models are faster on two, large ones on one (docs/performance.md). Only rounding depends on it.
    config.cpu_devices = 1

    # Every device works on images of its own. `model` devices share one copy of the optimiser's state and the averaged
    # weights, each holds a part (ZeRO); of the weights, only arrays of at least `large` numbers are split.
    config.mesh = ConfigDict({"model": 1, "large": 2**24})

    data = config.data = ConfigDict()
    data.source = "coco"  # 'coco' (JSON), 'voc' (XML), 'tfds' or 'shapes'
    data.root = ""  # paths of the splits are relative to it
    for split in ("train", "val", "test"):
        # coco: images folder and annotation file. voc: JPEGImages and Annotations folders, and as `name` an image list.
        # tfds and shapes: `name` is the split, such as 'train' or 'train[:80%]'.
        # limit: only the first so many images; 0: all.
        data[split] = ConfigDict({"images": "", "annotations": "", "name": "", "limit": 0})
    data.classes = ()  # voc: the class names in label order; () takes those of the training split
    data.tfds_name = ""  # tfds: such as 'coco/2017', prepared under `root`
    data.shapes = ConfigDict(
        {
            "num_train": 2000,
            "num_val": 200,
            "num_test": 300,
            "height": 160,
            "width": 160,
            "num_classes": 5,
            "objects": 12,  # at most, on an image
            "typical_colour": 0.97,  # share of objects with the colour of their class; at 0 only the form tells
            "seed": 0,
        }
    )
    data.pixel_mean = (123.675, 116.28, 103.53)  # subtracted, in 0..255, for the channels in `channel_order`
    data.pixel_std = (58.395, 57.12, 57.375)  # divides
    data.channel_order = "rgb"  # in which the network takes the channels; or 'bgr'
    data.image_size = (600, 600)  # height, width: images are resized to fit and padded
    # Rows for the boxes of an image; 0: as many as the fullest training image has, with mosaic four times and with
    # mixup twice as many. Where there are more boxes, the largest stay, and that is reported.
    data.max_boxes = 0
    data.num_threads = 0  # that read images; 0: as many as there are cores
    data.timeout = 600.0  # seconds; a batch that takes longer is an error: a file hangs
    # A folder for the decoded images, three bytes a pixel, so that no epoch but the first decodes; one for each data
    # set, in memory or on a fast disk; '': none. They are kept resized unless `augment` changes scale or colours.
    data.cache = ""

    augment = config.augment = ConfigDict()  # docs/augmentation.md
    augment.horizontal_flip = 0.5  # probability
    augment.vertical_flip = 0.0
    augment.scale = (1.0, 1.0)  # range of the random scale, relative to the size that fits; above 1 crops
    augment.min_visible = 0.25  # a box of which less than this is left after cropping is dropped
    augment.brightness = 0.0  # 0.2: factor from 0.8 to 1.2; likewise contrast and saturation
    augment.contrast = 0.0
    augment.saturation = 0.0
    augment.hue = 0.0  # 0.1: up to 0.1 of a turn
    # Multi-scale: pixels of which the shorter side gets one at random, such as (640, 672, 704, 736, 768, 800), unless
    # the longer side would be more than `longest_side` or not fit data.image_size; (): `scale` instead.
    augment.short_sides = ()
    augment.longest_side = 1333
    augment.ssd_expand = 0.0  # probability of SSD's zoom-out
    augment.ssd_expand_max = 4.0  # its largest factor
    augment.ssd_crop = 0.0  # probability of SSD's random crop
    augment.mosaic = 0.0  # probability of a mosaic of four images
    augment.mosaic_scale = (0.5, 1.0)  # as `scale`, of the images in it
    augment.mixup = 0.0  # probability that two images are blended
    augment.mixup_alpha = 32.0  # their weights are from Beta(alpha, alpha)

    # A new run starts with the weights in this file instead of random ones: a detector or a backbone of torchvision,
    # detectron2 or focaljax (.safetensors, .npz, .pth, .pkl), relative to the working directory; '': none.
    config.init = ConfigDict({"weights": ""})

    model = config.model = ConfigDict()
    model.variant = ""  # the published RetinaNet that these settings started from, see `apply_variant`
    model.backbone = "resnet50"
    model.norm = "batch_norm"  # or 'frozen_batch_norm', 'group_norm'
    model.norm_epsilon = 1e-5  # added to the variance
    model.stride_in_1x1 = False  # of a stage's first block; detectron2's is there, others' in its 3x3
    model.freeze_at = 0  # parts of the backbone that stay as they are: 1: stem, 2: and first stage, ... 5: all
    model.levels = (3, 4, 5, 6, 7)
    model.fpn_channels = 256
    model.p6_from = "c5"  # or 'p5'
    model.head_depth = 4
    model.head_channels = 256
    model.head_norm = ""  # '': none; or as `norm`
    model.head_init_std = 0.01
    model.prior = 0.01  # pi: every anchor's score at the start
    model.dtype = "float32"  # of the activations; or 'bfloat16'; weights, losses and statistics are float32
    model.remat = False  # compute activations anew in the backward pass: less memory, a third more arithmetic

    anchors = config.anchors = ConfigDict()
    anchors.layout = "centered"  # or 'torchvision': whole pixels, ratio by ratio
    anchors.sizes = (32.0, 64.0, 128.0, 256.0, 512.0)  # pixels, one a level
    anchors.scales = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    anchors.ratios = (0.5, 1.0, 2.0)  # height / width

    matching = config.matching = ConfigDict()
    matching.positive_iou = 0.5
    matching.negative_iou = 0.4
    matching.low_quality = True
    matching.low_quality_at_zero = False  # as torchvision and detectron2 do, for equality with them only

    loss = config.loss = ConfigDict()
    # 'focal', 'balanced_cross_entropy', 'cross_entropy', 'focal_star', 'poly1_focal', 'quality_focal', 'varifocal',
    # 'ghm'; between the classes and background: 'softmax_focal', 'softmax_cross_entropy'.
    loss.classification = "focal"
    loss.alpha = 0.25
    loss.gamma = 2.0  # of 'quality_focal', its beta
    loss.star_beta = 1.0  # of 'focal_star'
    loss.poly_epsilon = 1.0  # of 'poly1_focal'
    loss.ghm_bins = 10  # of 'ghm', which is divided by the number of outputs whatever the normalizer
    # Which anchors count for the classification: '': all. 'hard_negatives': `mining_ratio` for each assigned anchor, of
    # the highest loss (SSD). 'ohem': the `mining_size` of an image with the highest loss after non-maximum suppression,
    # divided by how many they are; with a `mining_ratio` above 0 so many negatives to a positive.
    loss.mining = ""
    loss.mining_ratio = 3
    loss.mining_size = 512
    loss.mining_iou = 0.7  # of the suppression
    loss.box = "smooth_l1"  # or 'l1'; of the decoded box: 'iou', 'giou', 'diou', 'ciou'
    loss.beta = 0.1  # of smooth L1
    loss.box_weight = 1.0
    # The loss is divided by the anchors assigned on each 'image', on the whole 'batch', by the moving average 'ema' of
    # the batch's, or by nothing: 'none'.
    loss.normalizer = "image"
    loss.normalizer_momentum = 0.9  # of 'ema': weight of the past

    optim = config.optim = ConfigDict()
    optim.name = "sgd"  # or 'adamw'
    optim.learning_rate = 0.01  # for a batch of `learning_rate_batch` images
    optim.learning_rate_batch = 16  # for other batches the rate is in proportion (Goyal et al. 2017); 0: it is as given
    optim.batch_size = 16  # of all devices together
    optim.accumulate = 1  # parts of a batch, computed one after the other for less memory; the gradient is the same
    optim.steps = 90_000
    optim.schedule = "step"  # or 'cosine', 'constant'
    optim.milestones = (60_000, 80_000)
    optim.decay = 0.1
    optim.warmup_steps = 500
    optim.warmup_factor = 1e-3
    optim.momentum = 0.9
    optim.weight_decay = 1e-4  # of convolution kernels
    optim.norm_weight_decay = 0.0  # of normalisations' scales and biases; -1: as weight_decay
    optim.bias_weight_decay = 0.0  # of convolutions' biases; -1: as weight_decay
    optim.clip_norm = 0.0  # 0: not clipped
    # A step whose loss or gradient is not finite: 'stop' saves the state before it and ends with an error, 'skip' goes
    # on without it. The images of its batch are written down either way.
    optim.nonfinite = "stop"
    optim.ema_decay = 0.0  # of the averaged weights that are evaluated; 0: none

    log = config.log = ConfigDict()
    log.every = 20  # steps
    log.pictures = 4  # images of the evaluated split that are shown at each evaluation, detections beside the truth
    # Weights & Biases beside TensorBoard: '': no; 'offline': kept in WORKDIR/wandb until `wandb sync`; 'online'.
    log.wandb = ""
    log.wandb_project = "focaljax"

    evaluation = config.eval = ConfigDict()
    evaluation.split = "val"
    evaluation.every = 0  # steps; 0: at the end only
    evaluation.batch_size = 16
    evaluation.score_threshold = 0.05
    evaluation.pre_nms_top_k = 1000
    evaluation.nms_iou = 0.5
    evaluation.suppression = "hard"  # or soft-NMS: 'linear', 'gaussian'
    evaluation.soft_sigma = 0.5  # of 'gaussian'
    evaluation.max_detections = 100
    # Test-time augmentation: what is found in all views of an image goes through one non-maximum suppression.
    evaluation.tta_flip = False  # also look at the mirrored image
    evaluation.tta_scales = (1.0,)  # factors on data.image_size; such as (0.8, 1.0, 1.2)

    checkpoint = config.checkpoint = ConfigDict()
    checkpoint.every = 1000  # steps; one is also saved before each evaluation
    checkpoint.keep = 2  # the latest so many, and the one with the best AP
    return config


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
    temporary = workdir / "config.json.tmp"
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    temporary.replace(workdir / "config.json")


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
    # A run of an older version lacks newer settings, whose defaults are what it did.
    return ConfigDict(_over(default_config().to_dict(), _lists_to_tuples(saved)))


def differences(saved: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns a line for each setting that matters to what is trained and is not the same in both configs."""
    saved_settings, new_settings = dict(flatten(saved)), dict(flatten(new))
    lines = []
    for key in {**saved_settings, **new_settings}:
        if any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME):
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

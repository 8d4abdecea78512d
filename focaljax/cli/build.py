"""From a config to the parts of a run: model, optimiser, state, compiled steps."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from focaljax.cli.main import UsageError
from focaljax.cli.prediction import anchor_settings, compiled_predict_step, pixel_settings
from focaljax.data.augmentation import Augmentation
from focaljax.losses import INITIAL_EMA_NORMALIZER
from focaljax.models.resnet import frozen_parameters
from focaljax.models.retinanet import RetinaNet
from focaljax.training import mesh as meshes
from focaljax.training.classification import is_softmax, make_classification_loss, make_mining
from focaljax.training.objective import detection_loss, make_box_loss
from focaljax.training.optimizer import make_optimizer, make_schedule
from focaljax.training.programs import jit_for_one_run
from focaljax.training.state import TrainState, create_state, state_shardings
from focaljax.training.step import make_train_step


def make_model(config: ConfigDict, num_classes: int) -> RetinaNet:
    """Returns the model that the config describes."""
    model = config.model
    return RetinaNet(
        num_classes=num_classes,
        anchors_per_position=len(config.anchors.scales) * len(config.anchors.ratios),
        backbone=model.backbone,
        norm=model.norm,
        norm_epsilon=model.norm_epsilon,
        stride_in_1x1=model.stride_in_1x1,
        freeze_at=model.freeze_at,
        levels=tuple(model.levels),
        fpn_channels=model.fpn_channels,
        p6_from=model.p6_from,
        head_depth=model.head_depth,
        head_channels=model.head_channels,
        head_norm=model.head_norm or None,
        head_init_std=model.head_init_std,
        prior=_prior_of_a_class(config, num_classes),
        dtype=jnp.dtype(model.dtype),
        remat=model.remat,
    )


def _prior_of_a_class(config: ConfigDict, num_classes: int) -> float:
    """Returns p such that a bias of log(p / (1 - p)) gives an anchor the score `model.prior` at the start.

    Of sigmoids that is the score of each class, of a softmax with background at logit 0 that of all classes together.
    """
    prior = config.model.prior
    if not is_softmax(config.loss.classification):
        return prior
    return prior / (prior + num_classes * (1.0 - prior))


def _divisor(config: ConfigDict) -> str:
    """Returns what the classification loss is divided by, see `detection_loss`."""
    if config.loss.classification == "ghm":
        return "outputs"
    return "kept" if config.loss.mining == "ohem" else "positives"


def make_optimizer_and_schedule(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimiser that the config describes, and its learning rate."""
    optim = config.optim
    schedule = make_schedule(
        optim.schedule,
        learning_rate=scaled_learning_rate(config),
        steps=optim.steps,
        warmup_steps=optim.warmup_steps,
        warmup_factor=optim.warmup_factor,
        milestones=optim.milestones,
        decay=optim.decay,
    )
    as_kernels = {-1.0: optim.weight_decay}
    freeze_at = config.model.freeze_at
    optimizer = make_optimizer(
        optim.name,
        schedule,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        norm_weight_decay=as_kernels.get(optim.norm_weight_decay, optim.norm_weight_decay),
        bias_weight_decay=as_kernels.get(optim.bias_weight_decay, optim.bias_weight_decay),
        clip_norm=optim.clip_norm,
        # None rather than nothing frozen: the state keeps the structure that it has in older checkpoints.
        is_frozen=functools.partial(frozen_parameters, freeze_at=freeze_at) if freeze_at else None,
    )
    return optimizer, schedule


def scaled_learning_rate(config: ConfigDict) -> float:
    """Returns the learning rate for the config's batch, in proportion to its size.

    Source: Goyal et al. 2017 (arXiv 1706.02677), section 2.1, 'Linear Scaling Rule'.
    """
    optim = config.optim
    factor = optim.batch_size / optim.learning_rate_batch if optim.learning_rate_batch else 1.0
    return optim.learning_rate * factor


def new_state(config: ConfigDict, variables: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step, of these variables."""
    # detectron2's 100 is for two images.
    normalizer = INITIAL_EMA_NORMALIZER * config.optim.batch_size / 2 if config.loss.normalizer == "ema" else None
    ghm_bins = config.loss.ghm_bins if config.loss.classification == "ghm" else 0
    has_ema = config.optim.ema_decay > 0
    return create_state(variables, optimizer, has_ema=has_ema, normalizer=normalizer, ghm_bins=ghm_bins)


def initial_state(
    config: ConfigDict, model: RetinaNet, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> Callable[[], TrainState]:
    """Returns the function that makes the state before the first step, laid out over the mesh; not yet called."""
    height, width = config.data.image_size

    def initialize() -> TrainState:
        variables = model.init(jax.random.key(config.seed), jnp.zeros((1, height, width, 3)), train=False)
        return new_state(config, variables, optimizer)

    # Compiled: initialising operation by operation takes ten seconds for a ResNet-50.
    return jit_for_one_run(initialize, out_shardings=layout(config, initialize, mesh))


def layout(config: ConfigDict, initialize: Callable[[], TrainState], mesh: jax.sharding.Mesh) -> Any:
    """Returns where each array of the state that `initialize` makes lies; one sharding if it is the same for all."""
    if mesh.shape[meshes.MODEL_AXIS] == 1:
        return meshes.replicated(mesh)
    return state_shardings(jax.eval_shape(initialize), mesh, large=config.mesh.large)


def abstract_state(config: ConfigDict, initialize: Callable[[], TrainState], mesh: jax.sharding.Mesh) -> TrainState:
    """Returns shapes, dtypes and places of the state that `initialize` makes; nothing is computed."""
    shapes = jax.eval_shape(initialize)
    describe = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)  # noqa: E731
    return jax.tree.map(describe, shapes, state_shardings(shapes, mesh, large=config.mesh.large))


def compiled_train_step(
    config: ConfigDict,
    model: RetinaNet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: jax.sharding.Mesh,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the train step, compiled at its first call; it gives away the buffers of the state."""
    loss = functools.partial(
        detection_loss,
        classification_loss=make_classification_loss(
            config.loss.classification,
            **{name: config.loss[name] for name in ("alpha", "gamma", "star_beta", "poly_epsilon", "ghm_bins")},
        ),
        box_loss=make_box_loss(config.loss.box, beta=config.loss.beta),
        box_weight=config.loss.box_weight,
        normalizer=config.loss.normalizer,
        mining=make_mining(
            config.loss.mining,
            negatives_per_positive=config.loss.mining_ratio,
            size=config.loss.mining_size,
            iou_threshold=config.loss.mining_iou,
        ),
        divisor=_divisor(config),
        ghm_momentum=config.loss.ghm_momentum,
    )
    step = make_train_step(
        model,
        optimizer,
        schedule,
        loss=loss,
        anchors=anchor_settings(config),
        matching=dict(config.matching),
        pixels=pixel_settings(config),
        ema_decay=config.optim.ema_decay,
        accumulate=config.optim.accumulate,
        normalizer_momentum=config.loss.normalizer_momentum,
        on_nonfinite=config.optim.nonfinite,
    )
    places = layout(config, initial_state(config, model, optimizer, mesh), mesh)
    return jax.jit(
        step,
        in_shardings=(places, meshes.split_batch(mesh)),
        out_shardings=(places, meshes.replicated(mesh)),
        donate_argnums=0,
    )


def check_config(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Builds, without data and without compiling, what the config describes, so that mistakes show at once.

    Raises:
        UsageError: a setting has a value that a part does not accept.
    """
    try:
        check_numbers(config)
        _check_ghm(config)
        meshes.check_batch_size(config.optim.batch_size, mesh, parts=config.optim.accumulate)
        meshes.check_batch_size(config.eval.batch_size, mesh)
        optimizer, schedule = make_optimizer_and_schedule(config)
        model = make_model(config, num_classes=1)
        step = compiled_train_step(config, model, optimizer, schedule, mesh)
        state = jax.eval_shape(initial_state(config, model, optimizer, mesh))
        jax.eval_shape(step, state, example_batch(config))
        jax.eval_shape(
            compiled_predict_step(config, model, mesh), state.variables(), example_batch(config, ("image", "size"))
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"config: {error}") from None


def _check_ghm(config: ConfigDict) -> None:
    if config.loss.classification == "ghm" and (config.optim.accumulate > 1 or config.loss.mining):
        raise ValueError(
            "loss.classification='ghm' weighs each output by those of the whole batch: optim.accumulate must be 1 and "
            f"loss.mining '', got {config.optim.accumulate} and {config.loss.mining!r}"
        )


def check_numbers(config: ConfigDict) -> None:
    """Checks the settings whose range does not depend on data or devices.

    Raises:
        ValueError: one is out of its range.
    """
    size = config.data.image_size
    if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
        raise ValueError(f"data.image_size must be (height, width) in whole pixels, got {size}")
    for name in ("pixel_mean", "pixel_std"):
        if len(config.data[name]) != 3 or (name == "pixel_std" and min(config.data[name]) <= 0):
            raise ValueError(f"data.{name} must be three numbers in 0..255, of std above 0, got {config.data[name]}")
    for setting in (
        "optim.steps", "optim.batch_size", "optim.accumulate", "log.every", "eval.batch_size", "checkpoint.keep",
    ):  # fmt: skip
        group, key = setting.split(".")
        if config[group][key] < 1:
            raise ValueError(f"{setting} must be at least 1, got {config[group][key]}")
    if config.log.pictures < 0:
        raise ValueError(f"log.pictures must be at least 0, got {config.log.pictures}")
    if config.data.max_boxes < 0 or config.seed < 0:
        raise ValueError(f"data.max_boxes and seed must be at least 0, got {config.data.max_boxes} and {config.seed}")
    if config.data.timeout <= 0:
        raise ValueError(f"data.timeout must be seconds above 0, got {config.data.timeout}")
    if config.optim.learning_rate_batch < 0:
        raise ValueError(f"optim.learning_rate_batch must be at least 0, got {config.optim.learning_rate_batch}")
    short_sides = Augmentation(**config.augment).short_sides
    if short_sides and short_sides[-1] > min(size):
        raise ValueError(
            f"augment.short_sides {short_sides}: no image with a shorter side of {short_sides[-1]} pixels fits into "
            f"data.image_size {tuple(size)}; make both sides at least that, and 4/3 of it for photos of 640 x 480"
        )


def example_batch(config: ConfigDict, keys: tuple[str, ...] = ()) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of a training batch of all devices together, or of those entries of it."""
    B, (height, width) = config.optim.batch_size, config.data.image_size
    N = config.data.max_boxes or 8
    shapes = {
        "image": ((B, height, width, 3), np.uint8),
        "size": ((B, 2), np.int32),
        "boxes": ((B, N, 4), np.float32),
        "labels": ((B, N), np.int32),
        "is_crowd": ((B, N), np.bool_),
        "is_box": ((B, N), np.bool_),
    }
    return {name: jax.ShapeDtypeStruct(*shapes[name]) for name in keys or shapes}

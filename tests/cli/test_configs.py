"""Every file in configs/: its settings as they were, its header, its model in full size, a step of it in small."""

import ast
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.cli import build, datasets
from focaljax.cli.config import default_config, flatten, load_config
from focaljax.training import mesh as meshes
from tests.data.test_pipeline import FakeSource
from tests.golden.make_configs import CONFIGS, GOLDEN, ROOT, resolved

NUM_CLASSES = {
    "openimages_mlperf": 264,
    "voc_0712": 20,
    "lvis_v1": 1203,
    "bccd": 3,
    "bccd_gpu": 3,
    "bccd_quarter": 3,
    "bccd_finetune": 3,
}
every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@every_config
def test_settings_are_those_that_were_written_down(path):
    golden = GOLDEN / f"{path.stem}.txt"
    rewrite = "if that is meant, write them anew: python -m tests.golden.make_configs"
    assert golden.is_file(), f"no {golden.relative_to(ROOT)}; {rewrite}"
    before, now = set(golden.read_text().splitlines()), set(resolved(path).splitlines())
    changes = [f"- {line}" for line in sorted(before - now)] + [f"+ {line}" for line in sorted(now - before)]
    assert not changes, f"settings of {path.name} have changed; {rewrite}\n" + "\n".join(changes)


def test_no_settings_are_written_down_of_a_config_that_is_gone():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == {path.stem for path in CONFIGS}


@every_config
def test_header_says_the_command_and_what_is_known_of_its_result(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert re.search(rf"focaljax train --config configs/{path.stem}\.py|make demo", header)
    assert re.search(r"\bAP\b|base of the experiments", header)
    for command in re.findall(r"focaljax train (--config .*?)(?:\n\S|\n\n|$)", header.replace("\\\n", " "), re.DOTALL):
        overrides = re.findall(r"--config\.([\w.]+)=('[^']*'|\S+)", command)
        arguments = [f"--config.{key}={value.strip(chr(39))}" for key, value in overrides if "DIR" not in value]
        load_config([f"--config={path}", *arguments])


@every_config
def test_model_in_full_size_has_outputs_for_every_class(path):
    config = load_config([f"--config={path}"])
    num_classes = NUM_CLASSES.get(path.stem, 80)
    model = build.make_model(config, num_classes)
    image = jax.ShapeDtypeStruct((1, *config.data.image_size, 3), jnp.float32)
    (class_logits, box_deltas), variables = jax.eval_shape(
        functools.partial(model.init_with_output, train=False), jax.random.key(0), image
    )
    anchors = len(config.anchors.scales) * len(config.anchors.ratios)
    for stride, logits, deltas in zip(
        (2**level for level in config.model.levels), class_logits, box_deltas, strict=True
    ):
        height, width = (-(-side // stride) for side in config.data.image_size)
        assert logits.shape == (1, height * width * anchors, num_classes)
        assert deltas.shape == (1, height * width * anchors, 4)
    if config.model.backbone == "resnet50":  # the published numbers, without the classes' outputs
        assert 30e6 < sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) < 70e6


@every_config
def test_learning_rate_rises_to_its_peak_and_is_positive_to_the_end(path):
    config = load_config([f"--config={path}"])
    _, schedule = build.make_optimizer_and_schedule(config)
    peak, steps = build.scaled_learning_rate(config), config.optim.steps
    assert schedule(0) < schedule(config.optim.warmup_steps) == pytest.approx(peak)
    assert 0 < schedule(steps - 1) <= peak
    if config.optim.schedule == "step":
        assert config.optim.milestones[0] > 0
        assert config.optim.milestones[-1] < steps
        assert schedule(steps - 1) == pytest.approx(peak * config.optim.decay ** len(config.optim.milestones))


def in_small(path):
    """The config of a file without what only makes it large or long, so that many need the same program."""
    config = load_config([f"--config={path}"])
    config.augment.short_sides = tuple(sorted({side // 16 for side in config.augment.short_sides}))
    config.data.update(image_size=(64, 64), max_boxes=8)
    config.model.update(backbone="resnet_tiny", levels=(3, 4), fpn_channels=8, head_channels=32, head_depth=1)
    config.model.stride_in_1x1 = False  # it has no 1x1
    config.anchors.update(sizes=(8.0, 16.0), scales=(1.0,))
    config.optim.update(batch_size=2, schedule="constant", milestones=(), warmup_steps=0)
    for name in ("ema_decay", "weight_decay", "clip_norm"):
        config.optim[name] = min(config.optim[name], 0.5)
    config.optim.learning_rate = 1e-3
    config.loss.box_weight = 1.0
    return config


def variables_of(model):
    """Weights by their names; initialising would be compiled too."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def value(path, leaf):
        noise = rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape)
        return jnp.asarray(noise if leaf.ndim > 1 else path[-1].key in ("scale", "var"), jnp.float32) + jnp.zeros(
            leaf.shape
        )

    return jax.tree_util.tree_map_with_path(value, shapes)


@functools.cache
def step_in_small(settings):
    """The state before the first step and the step, of these settings."""
    config = default_config()
    config.update_from_flattened_dict(dict(settings))
    model = build.make_model(config, 2)
    optimizer, schedule = build.make_optimizer_and_schedule(config)
    state = build.new_state(config, variables_of(model), optimizer)
    return state, build.compiled_train_step(config, model, optimizer, schedule, meshes.make_mesh(jax.devices()[:1]))


@every_config
def test_a_step_in_small_on_a_batch_of_its_pipeline_is_finite_and_trains(path):
    config = in_small(path)
    of_the_step = ("model.", "anchors.", "matching.", "loss.", "optim.", "data.pixel", "data.channel_order")
    others = ("model.variant", "optim.steps", "optim.learning_rate_batch")
    settings = {key: value for key, value in flatten(config) if key.startswith(of_the_step) and key not in others}
    state, step = step_in_small(tuple(settings.items()))
    batch = next(datasets.training_batches(config, FakeSource(4), 0))
    # The step gives the state's buffers away, which others need too.
    batch = {name: batch[name] for name in build.example_batch(config)}
    new_state, metrics = step(jax.tree.map(jnp.copy, state), batch)
    assert np.isfinite(metrics["loss"])
    assert metrics["positives"] > 0
    assert metrics["gradient_norm"] > 0
    assert int(new_state.step) == 1
    for kind in ("class_head", "box_head"):
        kernels = [tree[kind]["output"]["kernel"] for tree in (state.params, new_state.params)]
        assert (kernels[0] != kernels[1]).any()

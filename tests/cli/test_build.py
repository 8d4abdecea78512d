"""From a config to the compiled steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.cli import build, datasets, prediction
from focaljax.cli.config import load_config
from focaljax.cli.main import UsageError
from focaljax.training import mesh as meshes
from tests.cli.conftest import TINY


@pytest.mark.parametrize(
    ("settings", "divided_by"),
    [
        ({}, "positives"),
        ({"classification": "softmax_cross_entropy", "mining": "hard_negatives"}, "positives"),
        ({"classification": "cross_entropy", "mining": "ohem", "mining_ratio": 0}, "kept"),
        ({"classification": "ghm", "ghm_bins": 4}, "outputs"),
    ],
)
def test_loss_of_the_config_reaches_the_step(monkeypatch, settings, divided_by):
    config = load_config([f"--config={TINY}"])
    config.loss.update(settings)
    loss = {}
    monkeypatch.setattr(build, "make_train_step", lambda *_, **options: loss.update(options["loss"].keywords))
    monkeypatch.setattr(build.jax, "jit", lambda step, **_: step)
    for name in ("make_classification_loss", "make_mining"):
        monkeypatch.setattr(build, name, lambda kind, **options: (kind, options))
    monkeypatch.setattr(build, "layout", lambda *_: None)
    monkeypatch.setattr(build, "initial_state", lambda *_: None)
    build.compiled_train_step(config, None, None, None, meshes.make_mesh())
    assert loss["divisor"] == divided_by
    assert loss["normalizer"] == config.loss.normalizer
    kind, options = loss["classification_loss"]
    assert kind == config.loss.classification
    assert options == {name: config.loss[name] for name in ("alpha", "gamma", "star_beta", "poly_epsilon", "ghm_bins")}
    kind, options = loss["mining"]
    assert kind == config.loss.mining
    assert options["negatives_per_positive"] == config.loss.mining_ratio


@pytest.mark.parametrize("other", ["optim.accumulate=2", "loss.mining=ohem"])
def test_ghm_goes_with_the_whole_batch_alone(other):
    config = load_config([f"--config={TINY}", "--config.loss.classification=ghm", f"--config.{other}"])
    with pytest.raises(UsageError, match="weighs each output by those of the whole batch"):
        build.check_config(config, meshes.make_mesh(jax.devices()[:1]))


def test_multi_scale_sides_that_fit_no_image_are_an_error():
    settings = ["--config.data.image_size=(64, 48)", "--config.augment.short_sides=(32, 56)"]
    with pytest.raises(UsageError, match=r"a shorter side of 56 pixels fits into data.image_size \(64, 48\)"):
        build.check_config(load_config([f"--config={TINY}", *settings]), meshes.make_mesh(jax.devices()[:1]))


def test_multi_scale_bounds_the_images_that_are_evaluated(data_root):
    settings = [
        "--config.augment.short_sides=(16, 32)",
        "--config.augment.longest_side=40",
        "--config.eval.tta_scales=(1.0, 0.5)",
    ]
    config = load_config([f"--config={TINY}", f"--config.data.root={data_root}", *settings])
    batch = next(prediction.evaluation_batches(config, datasets.make_source(config, "val")))
    # Images of 64 x 64 px.
    np.testing.assert_array_equal(batch["size"], [[32, 32]] * 8)
    np.testing.assert_array_equal(batch["more_views"][0]["size"], [[16, 16]] * 8)


def test_settings_that_save_memory_reach_the_step_and_leave_the_state_in_float32():
    settings = ["--config.model.remat=true", "--config.model.dtype=bfloat16", "--config.optim.accumulate=4"]
    config = load_config([f"--config={TINY}", *settings])
    mesh = meshes.make_mesh(jax.devices()[:2])
    build.check_config(config, mesh)
    model = build.make_model(config, 3)
    assert (model.remat, model.dtype) == (True, jnp.bfloat16)
    optimizer, schedule = build.make_optimizer_and_schedule(config)
    state = jax.eval_shape(build.initial_state(config, model, optimizer, mesh))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    step = build.compiled_train_step(config, model, optimizer, schedule, mesh)
    jaxpr = str(jax.make_jaxpr(step)(state, build.example_batch(config)))
    # A scan over 4 parts of 2 images, blocks computed anew, activations in half the bytes.
    assert "length=4" in jaxpr
    assert "checkpoint" in jaxpr or "remat" in jaxpr
    assert "bf16[2,16,16" in jaxpr

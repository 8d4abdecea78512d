"""From a config to the compiled steps."""

import jax
import jax.numpy as jnp

from focaljax.cli import build
from focaljax.cli.config import load_config
from focaljax.training import mesh as meshes
from tests.cli.conftest import TINY


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

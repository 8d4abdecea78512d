"""Optimisers and schedules, against steps worked by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from focaljax.training.optimizer import make_optimizer, make_schedule

PARAMS = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0]), "scale": jnp.array([2.0])}
ONES = {name: jnp.ones_like(value) for name, value in PARAMS.items()}


def params_after(optimizer, gradients, steps):
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return {name: float(value.squeeze()) for name, value in params.items()}


def test_sgd_with_momentum_and_decay_of_kernels_only():
    optimizer = make_optimizer("sgd", optax.constant_schedule(0.1), momentum=0.5, weight_decay=0.25)
    # Kernel: gradient 1 + 0.25 * 2 = 1.5, 2 - 0.15 = 1.85; then 1 + 0.4625, momentum 0.5 * 1.5 + 1.4625 = 2.2125.
    # Bias and scale: 2 - 0.1 = 1.9; then momentum 1.5: 1.75.
    after = params_after(optimizer, ONES, 2)
    assert after == pytest.approx({"kernel": 1.85 - 0.22125, "bias": 1.75, "scale": 1.75})


def test_adamw_decays_kernels_only():
    optimizer = make_optimizer("adamw", optax.constant_schedule(0.1), weight_decay=0.5)
    # Adam's first step is the learning rate; decoupled decay takes another 0.1 * 0.5 * 2 off the kernel.
    assert params_after(optimizer, ONES, 1) == pytest.approx({"kernel": 1.8, "bias": 1.9, "scale": 1.9}, rel=1e-5)


def test_clipping_limits_the_global_norm():
    optimizer = make_optimizer("sgd", optax.constant_schedule(1.0), momentum=0.0, weight_decay=0.0, clip_norm=1.0)
    large = {name: 100.0 * value for name, value in ONES.items()}
    # Three equal components of a unit vector.
    assert params_after(optimizer, large, 1)["bias"] == pytest.approx(2.0 - 1.0 / np.sqrt(3.0), rel=1e-5)


def test_step_schedule_counts_milestones_from_the_start_of_the_run():
    schedule = make_schedule(
        "step", learning_rate=1.0, steps=100, warmup_steps=10, warmup_factor=0.0, milestones=(60, 80)
    )
    values = [float(schedule(step)) for step in (0, 5, 10, 59, 60, 79, 80, 99)]
    assert values == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01], abs=1e-7)


def test_cosine_schedule_starts_after_the_warm_up_and_ends_at_zero():
    schedule = make_schedule("cosine", learning_rate=2.0, steps=110, warmup_steps=10, warmup_factor=0.5)
    values = [float(schedule(step)) for step in (0, 10, 60, 110)]
    assert values == pytest.approx([1.0, 2.0, 1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "linear"}, "step, cosine, constant"),
        ({"name": "step", "milestones": (80, 60)}, "milestones must be increasing"),
        ({"name": "cosine", "warmup_steps": 100}, "warmup_steps must be less than steps"),
    ],
)
def test_mistakes_in_a_schedule_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**{"learning_rate": 1.0, "steps": 100, **arguments})


def test_unknown_optimizer_is_an_error():
    with pytest.raises(ValueError, match="sgd, adamw"):
        make_optimizer("lars", optax.constant_schedule(1.0))

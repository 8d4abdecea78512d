"""Optimisers and schedules, against steps worked by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from focaljax.models.resnet import frozen_parameters
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


def test_weight_decay_is_added_after_clipping():
    optimizer = make_optimizer("sgd", optax.constant_schedule(1.0), momentum=0.0, weight_decay=0.5, clip_norm=1.0)
    params = {"kernel": jnp.array([[20.0]])}
    updates, _ = optimizer.update({"kernel": jnp.array([[50.0]])}, optimizer.init(params), params)
    assert float(updates["kernel"].squeeze()) == pytest.approx(-(1.0 + 0.5 * 20.0))


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


def nested(kernel, bias, scale):
    """A convolution with a bias, and one with a normalisation."""
    return {
        "head": {"kernel": jnp.full((1, 1), kernel), "bias": jnp.full(1, bias)},
        "backbone": {
            "conv1": {"kernel": jnp.full((1, 1), kernel)},
            "bn1": {"scale": jnp.full(1, scale), "bias": jnp.full(1, bias)},
        },
    }


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_kernels_norms_and_biases_each_have_their_weight_decay(name):
    optimizer = make_optimizer(
        name, optax.constant_schedule(0.5), weight_decay=0.125, norm_weight_decay=0.25, bias_weight_decay=0.5
    )
    params = nested(2.0, 2.0, 2.0)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    # -0.5 * factor * 2
    expected = nested(-0.125, -0.5, -0.25)
    expected["backbone"]["bn1"]["bias"] = jnp.full(1, -0.25)
    jax.tree.map(np.testing.assert_allclose, updates, expected)


def test_decay_of_kernels_alone_is_optax_adamw_to_the_bit_in_its_state_too():
    schedule = optax.constant_schedule(0.1)
    ours = make_optimizer("adamw", schedule, weight_decay=0.5)
    params, gradients = nested(2.0, 1.0, 3.0), nested(0.3, -0.2, 0.1)
    theirs = optax.chain(optax.adamw(schedule, weight_decay=0.5, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)))
    states = [optimizer.init(params) for optimizer in (ours, theirs)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    results = [o.update(gradients, state, params) for o, state in zip((ours, theirs), states, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_get_no_update_have_no_state_and_do_not_count_in_the_norm(name):
    frozen = functools.partial(frozen_parameters, freeze_at=1)
    arguments = {"weight_decay": 0.5, "norm_weight_decay": 0.5, "bias_weight_decay": 0.5, "clip_norm": 1.0}
    optimizer = make_optimizer(name, optax.constant_schedule(0.5), is_frozen=frozen, **arguments)
    params, gradients = nested(2.0, 2.0, 2.0), nested(3.0, 4.0, 1e6)
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    jax.tree.map(lambda update: np.testing.assert_array_equal(update, 0.0), updates["backbone"])
    # The head alone, with an optimiser of its own: its norm is 5, that of all is 1e6.
    head = make_optimizer(name, optax.constant_schedule(0.5), **arguments)
    expected, _ = head.update(gradients["head"], head.init(params["head"]), params["head"])
    jax.tree.map(np.testing.assert_array_equal, updates["head"], expected)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 0]
    assert len(moments) == {"sgd": 2, "adamw": 4}[name]  # kernel and bias of the head, one or two moments each


def test_negative_weight_decay_is_an_error():
    with pytest.raises(ValueError, match="weight decay must be at least 0"):
        make_optimizer("sgd", optax.constant_schedule(1.0), norm_weight_decay=-1.0)

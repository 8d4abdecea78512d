"""Compiled steps: one program for each shape of a batch, announced, and nothing compiled in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.training.programs import ProgramPerShape


def batch_of(size, *, side=4, dtype=np.float32):
    return {"image": np.ones((size, side, side, 3), dtype), "size": np.full((size, 2), side, np.int32)}


@pytest.fixture
def compilations():
    return []


@pytest.fixture
def step(compilations):
    jitted = jax.jit(lambda state, batch: state + batch["image"].sum() * jnp.linalg.norm(batch["image"]))
    return ProgramPerShape(jitted, "sum", compilations.append)


def test_each_shape_is_compiled_once_and_said(step, compilations):
    for batch in (batch_of(2), batch_of(2), batch_of(3), batch_of(2)):
        expected = 1.0 + batch["image"].size ** 1.5
        assert float(step(jnp.float32(1.0), batch)) == pytest.approx(expected)
    assert [(one.name, one.shape, one.count) for one in compilations] == [
        ("sum", (2, 4, 4, 3), 1),
        ("sum", (3, 4, 4, 3), 2),
    ]
    assert all(one.seconds > 0 for one in compilations)


def test_what_would_be_compiled_in_silence_is_an_error(step, compilations):
    step(jnp.float32(1.0), batch_of(2))
    with pytest.raises(TypeError):
        step(jnp.int32(1), batch_of(2))
    assert len(compilations) == 1


def test_memory_is_that_of_arguments_temporaries_and_results(compilations):
    B = 8

    def multiply(state, batch):
        return (batch["image"].reshape(B, -1) @ state) @ state

    step = ProgramPerShape(jax.jit(multiply), "product", compilations.append)
    step(jnp.ones((48, 48)), batch_of(B))
    image, state, size, product = 4 * B * 48, 4 * 48 * 48, 4 * 2 * B, 4 * B * 48
    # The sizes are not used, so they may or may not be passed.
    assert compilations[0].device_bytes >= image + state + 2 * product
    assert compilations[0].device_bytes <= image + state + size + 3 * product + 4096

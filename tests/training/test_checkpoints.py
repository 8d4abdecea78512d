"""Checkpoints: what is saved comes back bit for bit, and damage is passed over and named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.training.checkpoints import CheckpointError, Checkpoints


@pytest.fixture(scope="module")
def state():
    return {"weights": jax.random.normal(jax.random.key(0), (5, 3)), "step": jnp.int32(7)}


def save(workdir, *steps_and_states, keep=2):
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step, state in steps_and_states:
            checkpoints.save(step, state, {"config": {"seed": 0}})


def restore(workdir, state):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore_latest(state)


def damage(workdir, step):
    """Empties every file of a checkpoint that holds numbers."""
    for path in (workdir / "checkpoints" / str(step) / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def test_latest_state_comes_back_bit_for_bit(tmp_path, state):
    save(tmp_path, (1, jax.tree.map(jnp.zeros_like, state)), (2, state))
    step, restored = restore(tmp_path, jax.eval_shape(lambda: state))
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored["weights"].dtype == state["weights"].dtype


def test_only_the_latest_are_kept(tmp_path, state):
    save(tmp_path, *((step, state) for step in (1, 2, 3, 4)), keep=2)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 4]


def test_damaged_checkpoint_is_passed_over_and_named(tmp_path, state, caplog):
    save(tmp_path, (1, state), (2, state))
    damage(tmp_path, 2)
    step, restored = restore(tmp_path, state)
    assert step == 1
    np.testing.assert_array_equal(restored["weights"], state["weights"])
    assert "checkpoint of step 2 cannot be read" in caplog.text


def test_nothing_but_damage_is_an_error_that_says_so(tmp_path, state):
    save(tmp_path, (3, state))
    damage(tmp_path, 3)
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be read; step 3: "):
        restore(tmp_path, state)


def test_workdir_without_checkpoints_is_an_error(tmp_path, state):
    with pytest.raises(CheckpointError, match="no checkpoints in .*focaljax train"):
        restore(tmp_path, state)


def test_saving_a_step_twice_is_once(tmp_path, state):
    save(tmp_path, (1, state), (1, jax.tree.map(jnp.zeros_like, state)))
    np.testing.assert_array_equal(restore(tmp_path, state)[1]["weights"], state["weights"])

"""Checkpoints: what is saved comes back bit for bit, and damage is passed over and named."""

import contextlib
import dataclasses
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.training.checkpoints import CheckpointError, Checkpoints, MismatchError
from focaljax.training.mesh import make_mesh, split_over_model


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


def test_one_step_is_restored_and_no_other(tmp_path, state):
    save(tmp_path, (1, jax.tree.map(jnp.zeros_like, state)), (2, state))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        step, restored = checkpoints.restore_latest(state, only=1)
        assert step == 1
        assert not restored["weights"].any()
        with pytest.raises(CheckpointError, match="no checkpoint of step 3 in .*: there are those of steps 1, 2"):
            checkpoints.restore_latest(state, only=3)
    damage(tmp_path, 1)
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(CheckpointError, match="step 1: "):
        checkpoints.restore_latest(state, only=1)


def test_damaged_checkpoint_is_passed_over_and_named(tmp_path, state, caplog):
    save(tmp_path, (1, state), (2, state))
    damage(tmp_path, 2)
    step, restored = restore(tmp_path, state)
    assert step == 1
    np.testing.assert_array_equal(restored["weights"], state["weights"])
    assert "checkpoint of step 2 cannot be read" in caplog.text


@pytest.mark.parametrize("steps", [(7, 10), (10,), (12,)])
def test_run_goes_on_and_saves_before_at_and_after_the_damaged_step(tmp_path, state, steps):
    save(tmp_path, (5, state), (10, state))
    damage(tmp_path, 10)
    new = jax.tree.map(jnp.ones_like, state)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore_latest(state)[0] == 5
        for step in steps:
            checkpoints.save(step, new, {})
    found, restored = restore(tmp_path, state)
    assert found == steps[-1]
    jax.tree.map(np.testing.assert_array_equal, restored, new)
    # What was damaged is there for whoever wants to look, and counts for nothing.
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == sorted(["damaged-10", *map(str, (5, *steps)[-2:])])


def test_looking_at_a_run_changes_nothing_in_it(tmp_path, state):
    save(tmp_path, (5, state), (10, state))
    damage(tmp_path, 10)
    assert restore(tmp_path, state)[0] == 5
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "5"]


def test_what_the_devices_refuse_is_no_damage(tmp_path, state, monkeypatch):
    save(tmp_path, (5, state), (10, state))
    with Checkpoints(tmp_path) as checkpoints:

        def restore_no_more(*_, **__):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        monkeypatch.setattr(checkpoints._manager, "restore", restore_no_more)
        with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
            checkpoints.restore_latest(state)
    assert restore(tmp_path, state)[0] == 10


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


def files_of(workdir, step):
    return [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]


@pytest.mark.parametrize("fault", ["flipped", "truncated", "removed"])
def test_each_file_that_changes_after_the_commit_is_found(tmp_path, state, caplog, fault):
    save(tmp_path, (1, jax.tree.map(jnp.zeros_like, state)), (2, state))
    files = [path for path in files_of(tmp_path, 2) if path.stat().st_size]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        if fault == "flipped":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        elif fault == "truncated":
            path.write_bytes(content[:-1])
        else:
            path.unlink()
        if (fault, path.name) != ("removed", "sha256.json"):  # then it is as after a kill between commit and digests
            assert restore(tmp_path, state)[0] == 1, path
            assert "checkpoint of step 2 cannot be read" in caplog.text
        caplog.clear()
        path.write_bytes(content)
    assert restore(tmp_path, state)[0] == 2


def test_checkpoint_without_digests_is_taken(tmp_path, state):
    save(tmp_path, (1, state))
    (tmp_path / "checkpoints" / "1" / "sha256.json").unlink()
    assert restore(tmp_path, state)[0] == 1
    # A run that goes on makes up for them.
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore_latest(state)
    assert (tmp_path / "checkpoints" / "1" / "sha256.json").exists()
    damage(tmp_path, 1)
    with pytest.raises(CheckpointError, match="has changed|bytes, expected"):
        restore(tmp_path, state)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"weights": jnp.zeros((5, 4)), "step": jnp.int32(0)},
            r"weights is float32 \[5, 3\], expected float32 \[5, 4\]",
        ),
        ({"weights": jnp.zeros((5, 3), jnp.bfloat16), "step": jnp.int32(0)}, r"expected bfloat16 \[5, 3\]"),
        ({"weights": jnp.zeros((5, 3))}, r"step is int32 \[\], expected missing"),
        ({"weights": jnp.zeros((5, 3)), "step": jnp.int32(0), "ema": jnp.zeros(2)}, "ema is missing, expected float32"),
    ],
)
def test_state_of_another_model_is_an_error_that_names_the_arrays(tmp_path, state, other, message):
    save(tmp_path, (1, state), (2, state))
    with pytest.raises(MismatchError, match=f"checkpoint of step 2 .* is of another model: .*{message}"):
        restore(tmp_path, other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Before:
    weights: jax.Array
    average: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Now(Before):
    later: jax.Array | None


def test_state_of_a_version_before_a_part_of_it_was_there_is_restored_if_the_part_is_not_in_use(tmp_path, state):
    save(tmp_path, (1, Before(state["weights"], None)))
    _, restored = restore(tmp_path, Now(state["weights"], None, None))
    np.testing.assert_array_equal(restored.weights, state["weights"])
    assert (restored.average, restored.later) == (None, None)
    with pytest.raises(MismatchError, match="later is missing, expected float32"):
        restore(tmp_path, Now(state["weights"], None, jnp.zeros(2)))


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 2)])
def test_state_is_restored_onto_another_number_of_devices(tmp_path, before, after):
    values = np.arange(64.0, dtype=np.float32).reshape(16, 4)

    def placed(count):
        mesh = make_mesh(jax.devices()[:count], model=count)
        return {"split": jax.device_put(values, split_over_model(values.shape, mesh))}

    save(tmp_path, (1, placed(before)))
    expected = placed(after)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), expected)
    _, restored = restore(tmp_path, abstract)
    np.testing.assert_array_equal(restored["split"], values)
    assert restored["split"].sharding == expected["split"].sharding


def test_settings_come_back(tmp_path, state):
    save(tmp_path, (1, state))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.settings(1) == {"config": {"seed": 0}}


def test_best_step_is_kept_besides_the_latest(tmp_path, state):
    with Checkpoints(tmp_path, keep=1, best_step=lambda: 2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state, {})
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4]


@contextlib.contextmanager
def full_disk():
    """No file of this process can grow beyond a few kilobytes, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_a_clear_error_and_the_checkpoint_before_is_as_it_was(tmp_path, caplog):
    large = {"weights": jax.random.normal(jax.random.key(0), (100_000,))}

    def save_on_full_disk():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, large, {})
            checkpoints.wait()
            with full_disk():
                checkpoints.save(2, large, {})
                checkpoints.wait()

    with pytest.raises(
        CheckpointError,
        match=r"checkpoint of step 2 could not be saved in [^:]*: File too large; that of step 1 is whole",
    ):
        save_on_full_disk()
    assert not caplog.records  # such as tracebacks of Orbax's threads
    step, restored = restore(tmp_path, large)
    assert step == 1
    np.testing.assert_array_equal(restored["weights"], large["weights"])
    # With room again, the run goes on there.
    save(tmp_path, (2, large))
    assert restore(tmp_path, large)[0] == 2


def test_workdir_that_vanishes_is_a_clear_error(tmp_path, state):
    def save_into_nothing():
        with Checkpoints(tmp_path / "run") as checkpoints:
            checkpoints.save(1, state, {})
            checkpoints.wait()
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            (tmp_path / "run").write_text("a file in its place")
            checkpoints.save(2, state, {})

    with pytest.raises(CheckpointError, match="checkpoint of step 2 could not be saved in .*; there is none before it"):
        save_into_nothing()
    assert restore(tmp_path / "elsewhere", state)[0] == 1


def test_workdir_that_cannot_be_written_to_is_a_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="cannot keep checkpoints in "):
        Checkpoints(tmp_path)

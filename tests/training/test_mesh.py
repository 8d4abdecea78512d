"""Batches on the devices."""

import jax
import numpy as np
import pytest

from focaljax.training.mesh import check_batch_size, compiled_for_rows, make_mesh, put_batch, put_batches


def test_batch_is_split_over_the_devices():
    mesh = make_mesh()
    batch = put_batch({"image": np.arange(16).reshape(16, 1)}, mesh)["image"]
    assert {shard.data.shape for shard in batch.addressable_shards} == {(16 // len(jax.devices()), 1)}
    np.testing.assert_array_equal(batch[:, 0], np.arange(16))


def test_batches_keep_their_order_and_only_the_named_entries_are_put():
    host = [{"image": np.full((8,), step), "image_id": np.arange(8)} for step in range(3)]
    pairs = list(put_batches(iter(host), make_mesh(), ("image",)))
    assert [int(device["image"][0]) for _, device in pairs] == [0, 1, 2]
    assert all(set(device) == {"image"} for _, device in pairs)
    assert [batch is host[i] for i, (batch, _) in enumerate(pairs)] == [True] * 3


def test_a_step_for_rows_needs_no_word_between_the_devices():
    def halvings(start, batch):
        """How often each row can be halved before it is at most `start`: another number of turns for each."""
        count = lambda row: jax.lax.while_loop(lambda c: c[0] > start, lambda c: (c[0] / 2, c[1] + 1), (row, 0))[1]  # noqa: E731
        return jax.vmap(count)(batch["row"])

    step, batch = compiled_for_rows(halvings, make_mesh()), {"row": 2.0 ** np.arange(16)}
    np.testing.assert_array_equal(step(1.0, batch), np.arange(16))
    assert "all-" not in step.lower(1.0, batch).compile().as_text()


def test_no_batches_are_no_batches():
    assert list(put_batches(iter([]), make_mesh(), ())) == []


@pytest.mark.parametrize("batch_size", [0, -8, 12])
def test_batch_that_cannot_be_split_is_an_error_that_names_the_devices(batch_size):
    with pytest.raises(ValueError, match="multiple of the number of devices, 8"):
        check_batch_size(batch_size, make_mesh())

"""Reading collectives from a compiled program's text: XLA's ways to write them, and a program of eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.training import collectives
from focaljax.training import mesh as meshes
from focaljax.training.collectives import Collective
from focaljax.training.hlo import parse


def collectives_of(text, devices):
    return collectives.collectives_of(parse(text), devices)


def entry(*lines, others=""):
    body = "\n".join(f"  {line}" for line in lines)
    header = "ENTRY %main.1 (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0} parameter(0)"
    return f"HloModule m\n\n{others}\n{header}\n{body}\n}}\n"


def test_arrays_of_a_joined_all_reduce_are_added_up():
    text = entry(
        "%all-reduce.3 = (bf16[3,3,64,128]{3,2,1,0:T(8,128)(2,1)S(1)}, f32[], /*index=2*/f32[10]{0}) all-reduce(%a, "
        "%b, %c), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add",
        "ROOT %g = f32[10]{0} get-tuple-element(%all-reduce.3), index=2",
    )
    # 3 * 3 * 64 * 128 * 2 + 4 + 40 bytes, among the 4 of the second axis.
    assert collectives_of(text, 8) == (Collective("all-reduce", ("bf16", "f32"), 1, 147_500, 4),)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['data'=2,'model'=3] {'data','model'}", 6),
        ("replica_groups={}", 8),
        ("", 8),
    ],
)
def test_groups_are_read_in_each_way_that_xla_writes_them(groups, size):
    (found,) = collectives_of(entry(f"%r = f32[8]{{0}} all-reduce(%p), {groups}, to_apply=%add"), 8)
    assert found.group == size


def test_started_exchange_counts_its_result_once():
    text = entry(
        "%s = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}",
        "%d = f32[8]{0} all-gather-done(%s)",
        "%t = (bf16[6]{0}, bf16[6]{0}, u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,1}}",
        "%u = bf16[6]{0} collective-permute-done(%t)",
        "%v = f32[5]{0} all-reduce-start(%w), replica_groups={{0,1,2,3}}, to_apply=%add",
    )
    assert [(one.kind, one.bytes) for one in collectives_of(text, 4)] == [
        ("all-gather", 32),
        ("collective-permute", 12),
        ("all-reduce", 20),
    ]


def test_loop_runs_its_collectives_as_often_as_it_turns():
    others = """%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %z = f32[] add(%x, %y)
}

%inner (q: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%add
}

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %f = f32[4]{0} fusion(%e), kind=kCustom, calls=%inner
  ROOT %u = (s32[], f32[4]{0}) tuple(%i, %f)
}
"""
    loop = '%w = (s32[], f32[4]{0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    (found,) = collectives_of(entry(loop, others=others), 2)
    assert (found.count, found.bytes) == (3, 16)


def test_sent_bytes_are_those_of_a_ring():
    # 100 bytes among 4: an all-reduce sends 2 * 3/4, a gather 3/4 of them, a permutation all.
    sent = {kind: Collective(kind, ("f32",), 2, 100, 4).sent_bytes for kind in ("all-reduce", "all-gather")}
    assert sent == {"all-reduce": 300.0, "all-gather": 150.0}
    assert Collective("collective-permute", ("f32",), 1, 100, 4).sent_bytes == 100.0
    assert Collective("all-reduce", ("f32",), 1, 100, 1).sent_bytes == 0.0


def test_scattered_arrays_are_counted_whole():
    (found,) = collectives_of(entry("%r = f32[2]{0} reduce-scatter(%p), replica_groups=[1,4]<=[4]"), 4)
    assert (found.bytes, found.sent_bytes) == (32, 24.0)


def test_gradient_of_a_split_batch_is_reduced_over_eight_devices(mesh_of_eight):
    def mean_gradient(weights, batch):
        def add(total, part):
            return total + jax.grad(lambda w: jnp.sum(jnp.tanh(part @ w)))(weights), None

        return jax.lax.scan(add, jnp.zeros_like(weights), batch.reshape(-1, 3, 16).swapaxes(0, 1))[0]

    replicated = meshes.replicated(mesh_of_eight)
    step = jax.jit(
        mean_gradient, in_shardings=(replicated, meshes.split_batch(mesh_of_eight)), out_shardings=replicated
    )
    compiled = step.lower(np.zeros((16, 32), np.float32), np.zeros((24, 16), np.float32)).compile()
    reduced = [one for one in collectives_of(compiled.as_text(), 8) if one.kind == "all-reduce"]
    # The weights' gradient, 16 * 32 * 4 bytes, once or in each of the three parts.
    assert {one.group for one in reduced} == {8}
    assert max(one.bytes for one in reduced) == 2048
    assert sum(one.count for one in reduced if one.bytes == 2048) in (1, 3)

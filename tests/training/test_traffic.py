"""What a program moves between a device and its large memory, by hand, from lines as XLA writes them."""

import pytest

from focaljax.training.hlo import parse
from focaljax.training.traffic import memory_traffic

FUSED = """%fused (a.1: f32[100], b.1: f32[8]) -> f32[8] {
  %a.1 = f32[100]{0} parameter(0)
  %b.1 = f32[8]{0} parameter(1)
  %s.1 = f32[8]{0} slice(%a.1), slice={[0:8]}
  ROOT %r.1 = f32[8]{0} add(%s.1, %b.1)
}
"""


def traffic(*lines, others=""):
    parameters = (
        "%p = f32[100]{0:T(128)} parameter(0)",
        "%q = f32[8]{0} parameter(1)",
        "%c = f32[8]{0:T(8)S(1)} parameter(2)",
        "%i = s32[] parameter(3)",
    )
    body = "\n".join(f"  {line}" for line in (*parameters, *lines))
    return memory_traffic(parse(f"HloModule m\n\n{others}\nENTRY %main (x: f32[100]) -> f32[8] {{\n{body}\n}}\n"))


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        # Reads 32 bytes, writes 32.
        ("%r = f32[8]{0} negate(%q)", 64),
        # On the chip: a TPU's memory 1.
        ("%r = f32[8]{0:T(8)S(1)} negate(%q)", 32),
        ("%r = f32[8]{0} add(%q, %c)", 64),
        ("%r = f32[8]{0:S(1)} negate(%c)", 0),
        # Only what is taken of 400 bytes, and written.
        ("%r = f32[8]{0} slice(%p), slice={[0:8]}", 64),
        ("%r = f32[8]{0} fusion(%p, %q), kind=kLoop, calls=%fused", 32 + 32 + 32),
        # In place: what is new is read and written.
        ("%r = f32[100]{0} dynamic-update-slice(%p, %q, %i)", 64),
        # From one place to the other; its end moves nothing more.
        ("%r = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%q)", 32),
        ("%r = ((f32[100]{0}), f32[8]{0:S(1)}, s32[]) slice-start(%p), slice={[0:8]}", 32),
        ("%r = f32[8]{0} copy-done(%q)", 0),
        # Exchanges read and write all that they have.
        ("%r = (f32[100]{0}, f32[8]{0}) all-reduce-start(%p, %q)", 2 * (400 + 32)),
        ("%r = (f32[8]{0}, f32[100]{0}) tuple(%q, %p)", 0),
        ("%r = f32[100]{0} bitcast(%p)", 0),
    ],
)
def test_instruction_moves_what_is_not_on_the_chip(line, moved):
    assert traffic(line, others=FUSED) == moved


# As the compilers for GPUs and for TPUs tell how often a loop turns.
NUMBERED = '%w = (s32[], f32[8]{0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}'
COUNTING = "%w = (s32[]{:T(128)}, f32[8]{0}) while(%t), condition=%wide.c_spmd.clone, body=%body, metadata={}"
CONDITION = """%wide.c_spmd.clone (t: (s32[], f32[8])) -> pred[] {
  %constant.35.clone = s32[]{:T(128)} constant(3)
  %t.2 = (s32[]{:T(128)}, f32[8]{0:T(8,128)S(1)}) parameter(0)
  %get-tuple-element.8 = s32[]{:T(128)} get-tuple-element(%t.2), index=0
  ROOT %lt.71 = pred[]{:T(512)} compare(%get-tuple-element.8, %constant.35.clone), direction=LT, metadata={}
}
"""


@pytest.mark.parametrize(
    ("loop", "condition", "moved"),
    [
        (NUMBERED, "", 3 * 64),
        # The comparison of two numbers of 4 bytes with one of 1.
        (COUNTING, CONDITION, 3 * (64 + 9)),
        (COUNTING, CONDITION.replace("LT", "NE"), 64 + 9),
        (COUNTING, "", 64),
    ],
)
def test_loop_moves_it_at_every_turn(loop, condition, moved):
    body = """%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %y = f32[8]{0} negate(%x)
  ROOT %u = (s32[], f32[8]{0}) tuple(%i, %y)
}
"""
    assert traffic(loop, others=body + condition) == moved

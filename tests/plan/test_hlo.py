"""What is read from compiled programs: loops, collectives, products; against counting by hand."""

import jax
import jax.numpy as jnp
import pytest

from inception_jax.plan import collectives, hlo, products
from inception_jax.plan.collectives import Collective
from inception_jax.plan.traffic import traffic

LOOPS = """\
HloModule example

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%known_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %r = f32[8,4]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %r)
}

%known_condition (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%ring_body (p: (f32[8,4], s32[])) -> (f32[8,4], s32[]) {
  %p = (f32[8,4]{1,0}, s32[]) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=0
  %i = s32[] get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %moved = f32[8,4]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %t = (f32[8,4]{1,0}, s32[]) tuple(%moved, %next)
}

%ring_condition (p: (f32[8,4], s32[])) -> pred[] {
  %p = (f32[8,4]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=1
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %x)
  %w = (s32[], f32[8,4]{1,0}) while(%start), condition=%known_condition, body=%known_body, \
backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[8,4]{1,0} get-tuple-element(%w), index=1
  %again = (f32[8,4]{1,0}, s32[]) tuple(%y, %zero)
  %v = (f32[8,4]{1,0}, s32[]) while(%again), condition=%ring_condition, body=%ring_body
  %g = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3},{4,5,6,7}}
  %s = f32[2,4]{1,0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%sum
  %alone = f32[8,4]{1,0} all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%sum
  %k = token[] after-all()
  %d = (bf16[8,4]{1,0}, u32[], token[]) send(%x, %k), is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %z = f32[8,4]{1,0} get-tuple-element(%v), index=0
}
"""


def test_collectives_are_found_with_their_sizes_groups_and_rounds():
    """A ring that counts 0, 2, 4, 6 makes four rounds; an array of 8x4 has 128 bytes."""
    found = collectives.read(hlo.read(LOOPS), num_devices=8, slices=2)
    assert sorted(found) == sorted(
        [
            Collective("all-reduce", 128, 4, 3),
            Collective("collective-permute", 128, 8, 4),
            Collective("all-gather", 512, 4, 1),
            Collective("reduce-scatter", 128, 4, 1),
            Collective(collectives.BETWEEN_SLICES, 64, 2, 1),
        ]
    )


def test_arrays_that_are_moved_together_are_each_counted():
    text = """\
ENTRY %main (x: f32[8,4], y: f32[2,2]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %y = f32[2,2]{1,0} parameter(1)
  %both = (f32[8,4]{1,0}, f32[2,2]{1,0}, f32[8,4]{1,0}, f32[2,2]{1,0}, u32[], u32[]) \
collective-permute-start(%x, %y), source_target_pairs={{0,1},{1,0}}
  ROOT %z = f32[8,4]{1,0} get-tuple-element(%both), index=2
}
"""
    program = hlo.read(text)
    (moved,) = collectives.read(program, num_devices=2, slices=1)
    assert moved == Collective("collective-permute", 128 + 16, 2, 1)
    assert traffic(program) == 2 * (128 + 16)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 2 * 3 / 4 * 100),  # once around to add up, once around to tell
        ("all-gather", 3 / 4 * 100),
        ("reduce-scatter", 3 / 4 * 100),
        ("collective-permute", 100),
        (collectives.BETWEEN_SLICES, 2 * 3 / 4 * 100),
    ],
)
def test_what_a_device_of_four_sends(kind, sent):
    assert Collective(kind, 100, 4).sent == sent
    assert Collective(kind, 100, 4, times=3).sent == 3 * sent


def test_loops_read_and_write_in_every_round():
    """An array of 8x4 has 128 bytes, a number 4; an operation reads two of them and writes one."""
    three_times = 2 * 128
    ring = 2 * 128 + 3 * 4 + (4 + 4 + 1)  # moved; next = i + two; i < limit
    once = (128 + 512) + (128 + 32) + 2 * 128 + 128  # %g, %s, %alone, %d
    assert traffic(hlo.read(LOOPS)) == 3 * three_times + 4 * ring + once


@pytest.mark.parametrize("rounds", [1, 5])
def test_products_of_a_loop_count_in_every_round(rounds):
    def function(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=rounds)[0]

    shapes = (
        jax.ShapeDtypeStruct((16, 32), jnp.float32),
        jax.ShapeDtypeStruct((32, 32), jnp.float32),
    )
    program = hlo.read(jax.jit(function).lower(*shapes).compile().as_text())
    assert products.flops(program) == rounds * 2 * 16 * 32 * 32
    assert products.flops(program, whole=False) == 2 * 16 * 32 * 32


def test_products_leave_out_padding_forward_and_back():
    """A 3x3/2 convolution of 7x7 pixels padded by 1: along a side 2 + 3 + 3 + 2 of 12 taps."""

    def loss(x, w):
        out = jax.lax.conv_general_dilated(
            x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(out**2)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((5, 7, 7, 8), (3, 3, 8, 16))]
    program = hlo.read(jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().as_text())
    assert products.flops(program) == 3 * 2 * 5 * (2 + 3 + 3 + 2) ** 2 * 8 * 16


@pytest.mark.parametrize(
    ("written", "rows"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
    ],
)
def test_groups_are_read_however_they_are_written(written, rows):
    assert [list(row) for row in collectives.groups(written, 4)] == rows

"""Bytes that a step moves, by counting by hand in programs as the TPU compiler writes them."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from inception_jax.plan import collectives, hlo, topology
from inception_jax.plan.collectives import Collective
from inception_jax.plan.traffic import traffic

needs_compiler = pytest.mark.skipif(
    not topology.FOLDER.exists(), reason="the TPU compiler is not here: make libtpu"
)
# Layouts have tiles, and S(1) for what lies beside the processor.
FUSED = """\
HloModule example

%sliced (p: bf16[16,100], at: s32[]) -> bf16[4,100] {
  %p = bf16[16,100]{1,0:T(8,128)(2,1)} parameter(0)
  %at = s32[]{:S(6)} parameter(1)
  %zero = bf16[]{:T(256)} constant(0)
  %wider = bf16[32,100]{1,0:T(8,128)(2,1)} pad(%p, %zero), padding=0_16x0_0
  %some = bf16[4,100]{1,0:T(4,128)(2,1)} dynamic-slice(%wider, %at, %at)
  ROOT %twice = bf16[4,100]{1,0:T(4,128)(2,1)} add(%some, %some)
}

%in_place (whole: f32[64,128], part: f32[8,128], at: s32[]) -> f32[64,128] {
  %whole = f32[64,128]{1,0:T(8,128)} parameter(0)
  %part = f32[8,128]{1,0:T(8,128)} parameter(1)
  %at = s32[]{:S(6)} parameter(2)
  ROOT %new = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%whole, %part, %at, %at)
}

%start (mine: f32[1,128]) -> (f32[1,128], f32[4,128]) {
  %mine = f32[1,128]{1,0:T(1,128)} parameter(0)
  %all = f32[4,128]{1,0:T(4,128)} all-gather(%mine), channel_id=7, replica_groups={{0,1,2,3}}
  ROOT %begun = (f32[1,128]{1,0:T(1,128)}, f32[4,128]{1,0:T(4,128)}) custom-call(%all), \
custom_call_target="AsyncCollectiveStart"
}

%meanwhile (mine: f32[1,128], whole: f32[4,128], x: f32[8,128]) -> (f32[8,128], f32[4,128]) {
  %mine = f32[1,128]{1,0:T(1,128)} parameter(0)
  %whole = f32[4,128]{1,0:T(4,128)} parameter(1)
  %x = f32[8,128]{1,0:T(8,128)} parameter(2)
  %all = f32[4,128]{1,0:T(4,128)} all-gather(%mine), channel_id=7, replica_groups={{0,1,2,3}}
  %y = f32[8,128]{1,0:T(8,128)} negate(%x)
  ROOT %t = (f32[8,128]{1,0:T(8,128)}, f32[4,128]{1,0:T(4,128)}) tuple(%y, %all)
}

%all-reduce-scatter.1 (x: f32[8,128]) -> f32[2,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %sum = f32[8,128]{1,0:T(8,128)} all-reduce(%x), channel_id=8, replica_groups={{0,1,2,3}}
  %zero = s32[] constant(0)
  ROOT %mine = f32[2,128]{1,0:T(2,128)} dynamic-slice(%sum, %zero, %zero)
}

%nested (whole: f32[64,128], part: f32[8,128], at: s32[]) -> f32[64,128] {
  %whole = f32[64,128]{1,0:T(8,128)} parameter(0)
  %part = f32[8,128]{1,0:T(8,128)} parameter(1)
  %at = s32[]{:S(6)} parameter(2)
  ROOT %new = f32[64,128]{1,0:T(8,128)} fusion(%whole, %part, %at), kind=kLoop, calls=%in_place
}

%used (whole: f32[64,128], part: f32[8,128], at: s32[]) -> f32[64,128] {
  %whole = f32[64,128]{1,0:T(8,128)} parameter(0)
  %part = f32[8,128]{1,0:T(8,128)} parameter(1)
  %at = s32[]{:S(6)} parameter(2)
  %new = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%whole, %part, %at, %at)
  ROOT %negated = f32[64,128]{1,0:T(8,128)} negate(%new)
}

ENTRY %main (a: bf16[16,100], b: f32[64,128], c: f32[1,128], d: f32[8,128], at: s32[]) -> f32[] {
  %a = bf16[16,100]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[64,128]{1,0:T(8,128)} parameter(1)
  %c = f32[1,128]{1,0:T(1,128)} parameter(2)
  %d = f32[8,128]{1,0:T(8,128)} parameter(3)
  %at = s32[]{:S(6)} parameter(4)
  %near = bf16[4,100]{1,0:T(4,128)(2,1)S(1)} fusion(%a, %at), kind=kLoop, calls=%sliced
  %fetched = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%d)
  %part = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%fetched)
  %lower = ((f32[64,128]{1,0:T(8,128)}), f32[16,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%b), slice={[0:16], [0:128]}
  %updated = f32[64,128]{1,0:T(8,128)} fusion(%b, %part, %at), kind=kLoop, calls=%in_place
  %again = f32[64,128]{1,0:T(8,128)} fusion(%updated, %part, %at), kind=kLoop, calls=%nested
  %negated = f32[64,128]{1,0:T(8,128)} fusion(%again, %part, %at), kind=kLoop, calls=%used
  %begun = (f32[1,128]{1,0:T(1,128)}, f32[4,128]{1,0:T(4,128)}) fusion(%c), calls=%start
  %mine = f32[1,128]{1,0:T(1,128)} get-tuple-element(%begun), index=0
  %whole = f32[4,128]{1,0:T(4,128)} get-tuple-element(%begun), index=1
  %t = (f32[8,128]{1,0:T(8,128)}, f32[4,128]{1,0:T(4,128)}) fusion(%mine, %whole, %d), \
kind=kOutput, calls=%meanwhile
  %e = f32[8,128]{1,0:T(8,128)} get-tuple-element(%t), index=0
  %f = f32[2,128]{1,0:T(2,128)} fusion(%e), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %g = f32[] constant(0)
}
"""


def test_what_lies_beside_the_processor_is_no_traffic_of_the_main_memory():
    """Slices count as slices, rows padded to 128, what is written in place as the part."""
    expected = {
        "near": 4 * 128 * 2 // 2,  # half of the rows that it may lie in are padding
        "fetched": 8 * 128 * 4,
        "lower": 16 * 128 * 4,
        "updated": 8 * 128 * 4,
        "again": 8 * 128 * 4,
        "negated": 2 * 64 * 128 * 4,
        "gathered once": 128 * 4 + 4 * 128 * 4,
        "meanwhile": 2 * 8 * 128 * 4,
        "scattered": 8 * 128 * 4 + 2 * 128 * 4,
    }
    assert traffic(hlo.read(FUSED)) == sum(expected.values())


def test_what_is_sent_while_others_compute_is_sent_once_and_a_part_of_a_sum_is_half_of_it():
    found = collectives.read(hlo.read(FUSED), num_devices=4, slices=1)
    assert sorted(found) == [
        Collective("all-gather", 4 * 128 * 4, 4, 1),
        Collective("reduce-scatter", 8 * 128 * 4, 4, 1),
    ]


def test_traffic_of_an_operation_that_is_bound_by_it():
    """A million sums read and write four bytes each."""
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    program = hlo.read(jax.jit(lambda x: jnp.tanh(x) + 1).lower(x).compile().as_text())
    assert traffic(program) == 2 * 4 * 1024**2


@needs_compiler
def test_products_in_a_row_stay_beside_the_processor():
    """Eight of 512x512: one is read, one written; XLA's own count has all that lies between."""
    script = """
from inception_jax.plan import hlo, topology
from inception_jax.plan.traffic import traffic
topology.prepare("v5e:2x2")
import jax, jax.numpy as jnp
where = jax.sharding.SingleDeviceSharding(topology.devices("v5e:2x2", 1)[0])
def function(x):
    for _ in range(8):
        x = jnp.tanh(x @ x)
    return x
x = jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=where)
compiled = jax.jit(function, out_shardings=where).lower(x).compile()
print(traffic(hlo.read(compiled.as_text())), int(compiled.cost_analysis()["bytes accessed"]))
"""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    moved, accessed = map(int, process.stdout.split())
    assert moved == 2 * 4 * 512**2
    assert accessed > 5 * moved

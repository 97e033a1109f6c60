"""The command: predictions against what ran on CPU, pods that are not here, and its messages."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from inception_jax import process
from inception_jax.plan import __main__ as command
from inception_jax.plan import topology

DIGITS = "--config=configs/digits.py"
NARROW = (DIGITS, "--config.model.width=0.0625")
SMALL = (*NARROW, "--config.model.modules=3a")
THREE = (*NARROW, "--config.model.modules=3a,4a,5b")
needs_compiler = pytest.mark.skipif(
    not topology.FOLDER.exists(), reason="the TPU compiler is not here: make libtpu"
)


def run(*arguments):
    """The finished process."""
    return subprocess.run(
        [sys.executable, "-m", "inception_jax.plan", *arguments, "--format=json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@functools.cache
def plan(*arguments):
    """What it printed."""
    finished = run(*arguments)
    assert finished.returncode == 0, finished.stderr
    for line in finished.stderr.splitlines():  # nothing of libraries
        assert line.startswith(("compiling for ", "  ")), finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_plan_is_what_a_step_takes_on_cpu(devices):
    """What it holds, but for fields of the batch that it does not use; what it computes in between,
    as the process grows, of which convolutions take about a third for themselves; and its flops, as
    XLA counts those of the step that ran."""
    arguments = (*THREE, "--config.batch_size=4096")
    (step,) = plan(*arguments, f"--topology=cpu:{devices}")["steps"]
    ran = subprocess.run(
        [sys.executable, "tests/step_on_cpu.py", str(devices), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(ran.stdout)
    unused = 2 * 4 * 4096 // devices  # epoch and example: nothing is random in these images
    assert step["memory_bytes"]["held"] == measured["held"] - unused
    grown = measured["temporaries"] / (devices * step["memory_bytes"]["temporaries"])
    assert 1 < grown < 1.5
    assert step["flops"]["all"] == measured["flops"]


@pytest.mark.parametrize(
    ("devices", "more"),
    [
        (1, ()),
        (8, ()),
        (8, ("--config.accumulation=4",)),
        (1, ("--config.optim.freeze=('(conv|inception).*',)",)),
        (1, ("--config.optim.freeze=('conv.*',)",)),
    ],
    ids=["one", "eight", "in_parts", "classifier", "all_but_the_stem"],
)
def test_products_are_those_of_the_cost_command(devices, more):
    (step,) = plan(*SMALL, *more, "--config.batch_size=64", f"--topology=cpu:{devices}")["steps"]
    assert step["images"] == 64 // devices
    flops = step["flops"]
    assert flops["products"] == flops["products_by_cost_command"] > 0
    assert flops["products_with_zeros"] == 0
    assert flops["others"] > 0
    assert bool(step["collectives"]) == (devices > 1)


def test_a_share_of_the_work_is_an_eighth_of_it():
    one, eight = (
        plan(*THREE, "--config.batch_size=64", f"--topology=cpu:{n}")["steps"][0] for n in (1, 8)
    )
    assert one["flops"]["products"] == 8 * eight["flops"]["products"]
    assert 7 < one["traffic_bytes"] / eight["traffic_bytes"] < 8  # each reads all parameters


def test_zeros_of_blocks_are_told_apart_from_what_the_network_needs():
    """The 7x7/2 becomes 4x4 over 2x2 blocks: 64 places for 49 weights."""
    small = (*SMALL[1:], "--config.data.image_size=64", "--config.model.dtype=float32")
    options = ("--config.batch_size=8", "--topology=cpu:1")
    (step,) = plan("--config=configs/imagenet_pod.py", *small, *options)["steps"]
    flops = step["flops"]
    zeros = flops["products_with_zeros"]
    assert flops["products"] == flops["products_by_cost_command"] + zeros
    # by hand, along a side of 32 places: of 7 taps 3 + 1 fall beside the left edge, 2 beside the
    # right one; of 4 blocks 2 + 1 and 1
    taps, taps_of_blocks = 32 * 7 - (3 + 1) - 2, 32 * 4 - (2 + 1) - 1
    channels = 4
    by_hand = (taps_of_blocks**2 * 4 - taps**2) * 3 * channels
    assert zeros == 2 * 8 * 2 * by_hand  # 8 images, forward and for the weights


@needs_compiler
@pytest.mark.slow
def test_two_slices_of_chips_that_are_not_here():
    found = plan(
        *(*SMALL, "--config.batch_size=64", "--config.mesh.slices=2"),
        *("--config.mesh.fully_sharded=true", "--topology=v5e:2x2"),
    )
    assert found["mesh"] == {"slice": 2, "data": 4, "model": 1}
    assert found["devices"] == 8
    (step,) = found["steps"]
    memory = step["memory_bytes"]
    assert 0 < memory["needed"] < memory["available"] < 16 * 2**30
    assert step["flops"]["products"] == step["flops"]["products_by_cost_command"]
    among = {(each["kind"], each["devices"]) for each in step["collectives"]}
    assert {("between slices", 2), ("all-gather", 4)} <= among
    assert step["roofline_seconds"]["network"] > 0
    assert 0 < step["ceilings"]["mfu"] < 1
    assert found["recipe"]["chip_hours"] == pytest.approx(8 * found["recipe"]["hours"])


@needs_compiler
@pytest.mark.slow
def test_a_chip_of_a_larger_pod_does_what_one_of_a_smaller_does():
    """But for its share of sums over all, which grows from 3/4 to 15/16 of twice their size."""
    small, large = (
        plan(*SMALL, f"--config.batch_size={8 * chips}", f"--topology=v5e:{shape}")["steps"][0]
        for shape, chips in (("2x2", 4), ("4x4", 16))
    )
    for same in ("images", "flops", "traffic_bytes"):
        assert small[same] == large[same]
    for same in ("held", "next_batch", "temporaries"):
        assert small["memory_bytes"][same] == large["memory_bytes"][same]
    sums = [
        [(each["kind"], each["size"], each["times"]) for each in step["collectives"]]
        for step in (small, large)
    ]
    assert sums[0] == sums[1]
    sent = [sum(each["sent"] for each in step["collectives"]) for step in (small, large)]
    assert sent[1] / sent[0] == pytest.approx((15 / 16) / (3 / 4))


@needs_compiler
@pytest.mark.slow
def test_vgg_fully_sharded_on_a_small_pod():
    """Its weight gradients are loops around the ring; its state lies in sixteenths."""
    found = plan(
        *("--config=configs/digits.py:vgg11", "--config.model.width=1.0"),
        *("--config.mesh.fully_sharded=true", "--config.batch_size=128", "--topology=v5e:4x4"),
    )
    (step,) = found["steps"]
    assert step["flops"]["products"] == step["flops"]["products_by_cost_command"]
    assert step["flops"]["all"] == pytest.approx(step["flops"]["products"], rel=0.03)
    assert any(c["kind"] == "collective-permute" and c["times"] > 1 for c in step["collectives"])
    sides = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    convolutions = 9 * sum(inputs * outputs for inputs, outputs in itertools.pairwise(sides))
    kernels = convolutions + 512 * 4096 + 4096 * 4096 + 4096 * 10  # one place is left of 32x32
    state = 3 * 4 * kernels / 16  # and Adam's moments, in float32
    batch = 8 * 32 * 32 * 3
    assert step["memory_bytes"]["held"] == pytest.approx(state + batch, rel=0.02)
    gathered = sum(c["size"] for c in step["collectives"] if c["kind"] == "all-gather")
    # kernels once, as bfloat16, and what lies in front of 4,096 outputs, twice, as float32
    assert gathered == 2 * kernels + 4 * 2 * 4096


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("--config.batch_size=4000000", "--topology=v5e:2x2"),
            "does not fit on v5e:2x2: a chip needs",
        ),
        (
            ("--config.batch_size=6", "--topology=v5e:2x2"),
            "config.batch_size=6 is not divisible by 4",
        ),
        (
            ("--config.mesh.model=3", "--topology=v5e:2x2"),
            "config.mesh.model=3 cannot lay out 4 devices",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_line(arguments, told):
    finished = run(*SMALL, *arguments)
    assert finished.returncode == 1
    *_, last = finished.stderr.splitlines()
    assert last.startswith("error: ")
    assert told in last
    assert "Traceback" not in finished.stderr


@needs_compiler
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_silently(number):
    """And not when the compiler is through, which takes minutes."""
    arguments = (*SMALL, "--config.batch_size=64", "--topology=v5e:2x2")
    process = subprocess.Popen(
        [sys.executable, "-m", "inception_jax.plan", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline().startswith("compiling for 64 images")
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -number


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--topology=v5e:3x3",), "--topology=v5e:3x3 is unknown: take one of v5e:1x1|2x2"),
        ((), "no topology given: add --topology=v5e:4x4, or cpu:8"),
        (("--topology=cpu:2", "--find_batch"), "--find_batch needs chips"),
        (("--topology=cpu:2", "--format=csv"), "--format is 'csv'; known: table, json"),
        (("--topology=cpu:2", "--config.batchsize=2"), "did you mean config.batch_size?"),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(arguments, told, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(process, "quiet", lambda: pytest.fail("too late"))
    assert command.main(["plan", DIGITS, *arguments]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert told in error
    assert error.count("\n") == 1

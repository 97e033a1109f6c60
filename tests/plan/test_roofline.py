"""Times and ceilings, by hand for a chip of round numbers; what the report says of them."""

import json

import pytest

from inception_jax.plan import render, roofline
from inception_jax.plan.chips import Chip
from inception_jax.plan.collectives import BETWEEN_SLICES, Collective
from inception_jax.plan.report import Report
from inception_jax.plan.weigh import GIB, Memory, Step

CHIP = Chip(2, 1e14, 16 * GIB, 1e12, 1e11, 1e10, ("2x2",), "by hand")
MEMORY = Memory(GIB, GIB // 2, 2 * GIB, GIB // 4, 15 * GIB)
SUMS = [Collective("all-reduce", 4_000_000, 4, times=2)]  # each sends 2 x 2 x 3/4 of it: 12 MB


def step(traffic=4_000_000_000, others=1 * 10**11, collectives=SUMS):
    return Step(224, 32, MEMORY, 9 * 10**11, others, traffic, collectives)


def test_the_slowest_of_the_limits_binds():
    times = roofline.times(step(), CHIP)
    assert times == pytest.approx((0.01, 0.004, 12e6 / 1e11, 0))
    assert (times.bound, times.step) == ("compute", pytest.approx(0.01))
    times = roofline.times(step(traffic=20_000_000_000), CHIP)
    assert (times.bound, times.step) == ("memory", pytest.approx(0.02))


def test_slices_talk_over_the_network():
    between = [*SUMS, Collective(BETWEEN_SLICES, 10**8, 2)]  # sends all of it once
    times = roofline.times(step(collectives=between), CHIP)
    assert times.interconnect == pytest.approx(12e6 / 1e11)
    assert (times.network, times.bound) == (pytest.approx(0.01), "compute")
    assert roofline.times(step(collectives=between), CHIP._replace(dcn=1e9)).bound == "network"
    assert roofline.times(step(collectives=between), CHIP._replace(dcn=None)).network is None
    assert roofline.times(step(), CHIP._replace(dcn=None)).network == 0


def test_ceilings():
    """Of a step that computes a ninth of its products twice; use is of what the network needs."""
    found = roofline.ceilings(step(), 8 * 10**11, CHIP, num_chips=4)
    assert found["images_per_second"] == pytest.approx(4 * 32 / 0.01)
    assert found["mfu"] == pytest.approx(0.8)


@pytest.fixture
def report():
    return Report(
        name="example",
        model="googlenet",
        topology="v5p:2x2x1",
        layout={"slice": 1, "data": 4, "model": 1},
        chip=CHIP,
        batch_size=128,
        steps=[step(), step(traffic=20_000_000_000)],
        needed=[9 * 10**11, 8 * 10**11],
        zeros=[0, 2 * 10**10],
        epochs=90.0,
        total_steps=480_000,
    )


def test_hours_are_those_of_all_steps(report):
    assert report.hours == pytest.approx(480_000 * (0.01 + 0.02) / 2 / 3600)  # sizes take turns
    recipe = report.as_json()["recipe"]
    assert recipe["chip_hours"] == pytest.approx(4 * recipe["hours"])


def test_the_table_says_what_a_person_wants_to_know(report):
    text = render.text(report)
    for part in (
        "example on v5p:2x2x1: googlenet, 128 images a step, 4 chips (slice 1 x data 4 x model 1)",
        "one chip (both of its cores)",
        "in all                    3.75 GiB of 15.00 GiB: fits, 11.25 GiB to spare",
        "matrix products         900.00 GFLOP, 2 a valid multiply-add",
        "matrix products         800.00 GFLOP, 2 a valid multiply-add",
        "with zeros               20.00 GFLOP, 2.5% of those: the 7x7/2 is",
        "again                    80.00 GFLOP, 10.0% of those: what is not kept",
        "others                  100.00 GFLOP, 11.1% of those",
        "all-reduce                8.00 MB in 2 among 4 devices; each sends 12.00 MB",
        "compute                 10.000 ms, which binds",
        "memory                  20.000 ms, which binds",
        "all chips               12,800 images/s",
        "MFU                      90.0%",
        "read and written          4.00 GB",
        "at least 2.00 hours, 8.0 chip-hours",
        "ceilings from a roofline, not measurements",
    ):
        assert part in text, part


def test_json_is_json_and_has_the_same(report):
    found = json.loads(json.dumps(report.as_json()))
    first, second = found["steps"]
    assert first["memory_bytes"]["needed"] == 3.75 * GIB
    assert first["roofline_seconds"]["step"] == pytest.approx(0.01)
    assert (first["bound"], second["bound"]) == ("compute", "memory")
    assert first["collectives"][0]["sent"] == 12e6
    assert first["flops"]["products_by_cost_command"] == 9 * 10**11
    assert second["flops"]["products_with_zeros"] == 2 * 10**10


def test_what_lasts_less_than_an_hour_is_told_in_minutes(report):
    report.total_steps = 4000
    assert "4,000 steps: at least 1.00 minutes, 0.1 chip-hours" in render.text(report)


def test_one_virtual_device_is_one(report):
    report.chip, report.layout = None, {"slice": 1, "data": 1, "model": 1}
    assert "128 images a step, 1 virtual device of this CPU (slice 1" in render.text(report)

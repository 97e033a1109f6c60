"""The loop's clock, by a fake one: what a user is told of where the time goes."""

import types

import pytest

from inception_jax import clock


@pytest.fixture
def now(monkeypatch):
    """The time in a list, for the test to move."""
    now = [100.0]
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_waiting_for_data_and_for_the_device_is_told_from_work_and_from_compiling(now):
    ours = clock.Clock(batch_size=8)

    def batches():
        for seconds in (3, 1, 0):
            now[0] += seconds
            yield seconds

    found = []
    for _ in ours.waiting_for(batches()):
        with ours.paused():
            now[0] += 50
        now[0] += 1
        with ours.waiting_for_device():
            now[0] += 4
        ours.tick()
        found.append(ours.lap())
    names = ("images_per_second", "data_wait", "device_wait", "host")
    assert [tuple(lap[name] for name in names) for lap in found] == [
        (8 / 8, 3 / 8, 4 / 8, 1 / 8),
        (8 / 6, 1 / 6, 4 / 6, 1 / 6),
        (8 / 5, 0, 4 / 5, 1 / 5),
    ]
    assert ours.stop() == 8 + 6 + 5


def test_a_lap_is_of_the_steps_since_the_last_one_and_after_a_start(now):
    ours = clock.Clock(batch_size=2)
    with ours.waiting_for_device():
        now[0] += 7
    ours.tick()
    ours.start()
    for seconds in (1, 3):
        with ours.waiting_for_device():
            now[0] += seconds
        ours.tick()
    now[0] += 4
    assert ours.lap() == {
        "images_per_second": 4 / 8,
        "data_wait": 0,
        "device_wait": 4 / 8,
        "host": 4 / 8,
    }
    assert ours.stop() == 8

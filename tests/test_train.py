"""The loop's clock; what it trains is tested in whole runs."""

import types

from inception_jax import train


def test_time_waited_for_data_is_told_from_that_of_training_and_compiling(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(train, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    clock = train._Clock(batch_size=8)

    def batches():
        for seconds in (3, 1, 0):
            now[0] += seconds
            yield seconds

    found = []
    for _ in clock.waiting_for(batches()):
        with clock.paused():
            now[0] += 50
        now[0] += 1
        clock.tick()
        found.append(clock.lap())
    assert found == [(8 / 4, 3 / 4), (8 / 2, 1 / 2), (8 / 1, 0)]

"""The average of the parameters against the weighted sums that it is documented to be."""

import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NARROW, arrays, newest, start_main, wait_until

from configs import googlenet
from inception_jax import average, validate
from inception_jax.errors import UserError


def config(**fields):
    result = googlenet.get_config().average
    result.update(fields)
    return result


def closed_form(name, decay, trajectory):
    """The mean of what there is since the average began, newest last, in float64."""
    count = len(trajectory)
    weights = np.array([1.0 if name == "plain" else decay ** (count - k) for k in range(count)])
    return np.tensordot(weights / weights.sum(), np.array(trajectory, np.float64), axes=1)


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize(
    ("name", "decay"), [("plain", 0.5), ("exponential", 0.9), ("exponential", 0.9999)]
)
def test_at_every_step_the_average_is_the_weighted_sum_of_all_since_it_began(
    name, decay, start, x64
):
    update = average.make_update(
        config(name=name, decay=decay, start_epochs=start / 10), Fraction(10), 1000
    )
    update = jax.jit(update)
    rng = np.random.default_rng(0)
    trajectory = rng.normal(size=(60, 3)).cumsum(axis=0)
    state = average.start({"params": jnp.full(3, 99.0), "batch_stats": {}})  # must not matter
    for step, values in enumerate(trajectory, start=1):
        state = update(state, jnp.int32(step), {"params": jnp.asarray(values), "batch_stats": {}})
        mean = state["mean"]
        began = trajectory[start:step] if step > start else [values]
        expected = closed_form(name, decay, began)
        np.testing.assert_allclose(mean["params"], expected, rtol=1e-11, err_msg=str(step))
        if len(began) == 1:
            np.testing.assert_array_equal(mean["params"], values)


@pytest.mark.parametrize("name", ["plain", "exponential"])
@pytest.mark.parametrize("moves", ["drifts", "stands still"])
def test_in_two_million_steps_of_float32_no_update_is_too_small_to_count(name, moves):
    """Each changes the mean by less than its last digit; uncompensated, both stand still."""
    total, decay = 2_000_000, 0.9999
    update = average.make_update(config(name=name, decay=decay), Fraction(10), total)

    def value(step):
        drifting = 1 + 0.1 * step / total
        return jnp.where(step == 1, 1.01, 1.0 if moves == "stands still" else drifting)

    def one(state, step):
        return update(state, step, value(jnp.asarray(step, float))), None

    steps = jnp.arange(1, total + 1, dtype=jnp.int32)
    state, _ = jax.jit(lambda: jax.lax.scan(one, average.start(jnp.ones(())), steps))()

    each = np.arange(1, total + 1, dtype=np.float64)
    values = np.ones(total) if moves == "stands still" else 1 + 0.1 * each / total
    values[0] = 1.01
    weights = np.ones(total) if name == "plain" else decay ** (total - each)
    np.testing.assert_allclose(state["mean"], np.average(values, weights=weights), rtol=2e-7)


def test_an_average_that_would_have_no_steps_is_told():
    for name in ("plain", "exponential"):
        assert average.make_update(config(name=name, start_epochs=9.9), Fraction(10), 100)
        with pytest.raises(UserError) as caught:
            average.make_update(config(name=name, start_epochs=10.0), Fraction(10), 100)
        told = "config.average.start_epochs=10.0 is not before the end of the run, step 100"
        assert str(caught.value).startswith(told)
        assert "\n" not in str(caught.value)


def test_averages_that_pass_are_those_that_can_be_made():
    assert average.make_update(config(name="none"), Fraction(10), 100) is None
    newest = [
        average.make_update(config(name=name, decay=0.9), Fraction(10), 100)
        for name in validate.AVERAGES
        if name != "none"
    ]
    one = average.start(jnp.ones(()))
    values = {float(update(one, jnp.int32(50), jnp.ones(()) * 2)["mean"]) for update in newest}
    assert len(values) == len(newest) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "exponential"])
def test_rates_and_averages_of_a_run_that_was_killed_are_the_closed_forms(name, run_main, tmp_path):
    """Every step is saved, so the average can be summed up anew from the saved parameters.

    Of the shallowest network, as a save takes as long as it has arrays, here of every kind.
    """
    options = (
        *("--config=configs/digits.py:vgg11", "--config.model.batch_norm=true"),
        *("--config.optim.name=sgd", "--config.schedule.rate=0.1"),
        *(f"--workdir={tmp_path}", "--config.epochs=0.25", "--config.log_every_steps=1"),
        *("--config.checkpoint.every_steps=1", "--config.checkpoint.keep=99"),
        *(f"--config.average.name={name}", "--config.average.decay=0.8"),
        *("--config.average.start_epochs=0.05", "--config.schedule.warmup_epochs=0.1"),
    )
    process = start_main(*options, base=NARROW)
    assert wait_until(process, lambda: newest(tmp_path) >= 5)
    process.kill()
    process.communicate()
    assert newest(tmp_path) < 12
    run_main(*options, base=NARROW)

    total, warmup, start = 12, 4, 2  # of 44.9 steps an epoch: 11.2, 4.49 and 2.25
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    rates = {row["step"]: row["rate"] for row in rows if row["kind"] == "train"}
    for step in range(1, total + 1):
        done = step - 1
        falling = 0.1 * np.cos(np.pi / 2 * (done - warmup) / (total - warmup)) ** 2
        expected = 0.1 * done / warmup if done < warmup else falling
        np.testing.assert_allclose(rates[step], expected, rtol=1e-6, err_msg=str(step))

    saved = {step: arrays(tmp_path, step) for step in range(1, total + 1)}
    names = [n for n in saved[1] if n.startswith(("['params']", "['batch_stats']"))]
    assert len(names) == 8 * 5 + 3 * 2  # of convolutions with batch norm, of full connections
    for step in (1, start, start + 1, start + 2, newest(tmp_path) // 2, total):
        for parameter in names:
            stored = saved[step][f"['average']['mean']{parameter}"]
            began = [saved[k][parameter] for k in range(start + 1, step + 1)]
            began = began or [saved[step][parameter]]
            expected = closed_form(name, 0.8, began)
            # float32's last digit, of what is averaged: that may cancel, its rounding does not
            scale = np.abs(began).max()
            assert np.abs(stored - expected).max() <= 2e-7 * scale, (step, parameter)

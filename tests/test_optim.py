"""Schedules against their closed forms in exact arithmetic, SGD against NumPy."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import googlenet
from inception_jax import optim
from inception_jax.errors import UserError

DIGITS = Fraction(1437, 64)  # steps an epoch: a whole number of batches never ends with one
IMAGENET = Fraction(1_281_167, 32)
RUNS = [(DIGITS, 30), (DIGITS, 25.5), (IMAGENET, 60)]


def config(**fields):
    result = googlenet.get_config()
    for name, value in fields.items():
        section = result.schedule if name in result.schedule else result.optim
        section[name] = value
    return result


def rates(steps_per_epoch, epochs, steps, **fields):
    """Rates as a compiled step computes them, for int32 step numbers."""
    total = math.ceil(Fraction(epochs) * steps_per_epoch)
    schedule = optim.make_schedule(config(**fields).schedule, steps_per_epoch, total)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32)), np.float64)


def run_length(steps_per_epoch, epochs, warmup_epochs):
    """Updates in the run, of which warm-up."""
    return math.ceil(Fraction(epochs) * steps_per_epoch), round(warmup_epochs * steps_per_epoch)


def around(*steps, total):
    return sorted({s + d for s in steps for d in (-1, 0, 1) if 0 <= s + d < total})


@pytest.mark.parametrize("warmup_epochs", [0, 2, 0.7])
@pytest.mark.parametrize("every_epochs", [8.0, 2.5])
@pytest.mark.parametrize("steps_per_epoch, epochs", RUNS)
def test_step_schedule_drops_by_4_percent_at_the_first_step_past_each_boundary(
    steps_per_epoch, epochs, every_epochs, warmup_epochs
):
    total, warmup = run_length(steps_per_epoch, epochs, warmup_epochs)
    stairs = [
        warmup + math.ceil(n * Fraction(every_epochs) * steps_per_epoch)
        for n in range(int(epochs / every_epochs) + 1)
    ]
    steps = [s for s in around(*stairs, total - 1, total=total) if s >= warmup]
    expected = [
        0.01 * 0.96 ** math.floor((s - warmup) / steps_per_epoch / Fraction(every_epochs))
        for s in steps
    ]
    assert len(set(expected)) >= 3
    got = rates(
        steps_per_epoch,
        epochs,
        steps,
        name="step",
        every_epochs=every_epochs,
        warmup_epochs=float(warmup_epochs),
    )
    np.testing.assert_allclose(got, expected, rtol=2e-7)  # float32's half step


def test_the_papers_defaults_are_the_default():
    """0.01, 4 % lower every 8 epochs; at batch 32 the reference says every 320,000 updates."""
    eight_epochs = 8 * 1_281_167 / 32
    assert abs(eight_epochs - 320_000) < 300
    steps = [0, 320_291, 320_292, 640_583, 640_584, 2_402_188]
    expected = [0.01, 0.01, 0.0096, 0.0096, 0.009216, 0.01 * 0.96**7]
    np.testing.assert_allclose(rates(IMAGENET, 60, steps), expected, rtol=2e-7)


@pytest.mark.parametrize("warmup_epochs", [0, 2, 0.7])
@pytest.mark.parametrize("steps_per_epoch, epochs", RUNS)
def test_poly_schedule_falls_to_zero_with_the_power(steps_per_epoch, epochs, warmup_epochs):
    total, warmup = run_length(steps_per_epoch, epochs, warmup_epochs)
    rest = total - warmup
    steps = [s for s in around(warmup, warmup + rest // 3, total - 1, total=total) if s >= warmup]
    got = rates(steps_per_epoch, epochs, steps, name="poly", warmup_epochs=float(warmup_epochs))
    # Squared, as 1 - t/T is where float32 rounds; one step is 4e-7 of it even on ImageNet.
    expected = [float(1 - Fraction(s - warmup, rest)) for s in steps]
    np.testing.assert_allclose((got / 0.01) ** 2, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("warmup_epochs", [0, 2, 0.7])
@pytest.mark.parametrize("steps_per_epoch, epochs", RUNS)
def test_cosine_schedule_is_half_a_wave(steps_per_epoch, epochs, warmup_epochs):
    total, warmup = run_length(steps_per_epoch, epochs, warmup_epochs)
    rest = total - warmup
    marks = (warmup, warmup + rest // 4, warmup + rest // 2, total - 1)
    steps = [s for s in around(*marks, total=total) if s >= warmup]
    expected = [0.1 * (1 + math.cos(math.pi * (s - warmup) / rest)) / 2 for s in steps]
    got = rates(
        steps_per_epoch, epochs, steps, name="cosine", rate=0.1, warmup_epochs=float(warmup_epochs)
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-8)


@pytest.mark.parametrize("name", ["step", "poly", "cosine"])
@pytest.mark.parametrize("steps_per_epoch, epochs", RUNS)
def test_warm_up_climbs_from_zero_and_reaches_the_rate_at_its_end(name, steps_per_epoch, epochs):
    total, warmup = run_length(steps_per_epoch, epochs, 2)
    assert warmup == {DIGITS: 45, IMAGENET: 80_073}[steps_per_epoch]  # 44.9 and 80,072.9 steps
    steps = [s for s in around(0, 1, warmup // 2, warmup, total=total) if s <= warmup]
    got = rates(steps_per_epoch, epochs, steps, name=name, rate=0.1, warmup_epochs=2.0)
    expected = [0.1 * s / warmup for s in steps]  # a step is 1e-6 at least, optax rounds to 6e-9
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)


def test_a_run_that_is_all_warm_up_still_has_a_rate():
    assert rates(DIGITS, 1, [11], name="cosine", rate=0.1, warmup_epochs=2.0) == pytest.approx(
        0.1 * 11 / 45
    )


@pytest.mark.parametrize("form", ["optax", "caffe"])
def test_sgd_is_the_stated_form_of_momentum_and_decays_kernels_only(form):
    """With a rate that changes, the forms differ; with decay on biases, so would the biases."""
    steps = [0.5, 0.1, 0.3, 0.02]
    optimizer = optim.make_optimizer(
        config(momentum=0.8, weight_decay=0.05, momentum_form=form).optim,
        lambda count: jnp.asarray(steps)[count],
    )
    rng = np.random.default_rng(0)
    names = {"conv": ("kernel", "bias"), "conv_bn": ("scale", "bias"), "kernel": ("scale",)}
    params = {m: {n: rng.normal(size=(3, 2)) for n in leaves} for m, leaves in names.items()}
    ours = jax.tree.map(jnp.float32, params)
    opt_state = optimizer.init(ours)
    buffers = jax.tree.map(np.zeros_like, params)

    for rate in steps:
        gradients = {m: {n: rng.normal(size=(3, 2)) for n in p} for m, p in params.items()}
        updates, opt_state = optimizer.update(jax.tree.map(jnp.float32, gradients), opt_state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        for module, leaves in params.items():
            for name in leaves:
                g, v = gradients[module][name], buffers[module][name]
                if (module, name) == ("conv", "kernel"):
                    g = g + 0.05 * leaves[name]
                v = 0.8 * v + (rate * g if form == "caffe" else g)
                leaves[name] = leaves[name] - (v if form == "caffe" else rate * v)
                buffers[module][name] = v
                np.testing.assert_allclose(ours[module][name], leaves[name], rtol=1e-5, atol=1e-6)


def test_published_optimiser_is_the_default():
    """Momentum 0.9 and decay 2e-4: one update from rest, by hand, then one without gradient."""
    optimizer = optim.make_optimizer(config().optim, lambda count: 0.01)
    params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    state = optimizer.init(params)
    first, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_allclose(first["kernel"], -0.01 * (1 + 2e-4), rtol=1e-6)
    np.testing.assert_allclose(first["bias"], -0.01, rtol=1e-6)
    second, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(second["kernel"], -0.01 * (0.9 * 1.0002 + 2e-4), rtol=1e-6)
    np.testing.assert_allclose(second["bias"], -0.01 * 0.9, rtol=1e-6)


def test_numbers_mean_what_they_say_in_decimals():
    """0.2 in binary is a little more than a fifth: every stair would begin a step late."""
    stair = config(every_epochs=0.2).schedule  # 375 steps
    schedule = optim.make_schedule(stair, Fraction(60_000, 32), 1000)
    rates = [float(schedule(step)) for step in (374, 375, 749, 750)]
    np.testing.assert_allclose(rates, [0.01, 0.0096, 0.0096, 0.009216], rtol=1e-6)


def test_stairs_shorter_than_a_step_are_refused():
    stair = config(every_epochs=1e-9).schedule
    with pytest.raises(
        UserError, match=r"^config.schedule.every_epochs=1e-09 is shorter than a st"
    ):
        optim.make_schedule(stair, Fraction(60_000, 32), 1000)

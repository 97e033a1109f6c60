"""Schedules against their closed forms in exact arithmetic, optimisers against NumPy."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import googlenet
from inception_jax import optim, validate
from inception_jax.errors import UserError

DIGITS = Fraction(1437, 64)  # steps an epoch: a whole number of batches never ends with one
IMAGENET = Fraction(1_281_167, 32)
RUNS = [(DIGITS, 30), (DIGITS, 25.5), (IMAGENET, 60)]


def config(**fields):
    """The defaults, with fields of the schedule changed."""
    result = googlenet.get_config()
    result.schedule.update(fields)
    return result


def optimiser(**fields):
    result = googlenet.get_config().optim
    result.update(fields)
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
    expected = [0.01 * float(1 - Fraction(s - warmup, rest)) ** 0.5 for s in steps]
    np.testing.assert_allclose(got, expected, rtol=3e-7)  # in the very last steps, too


@pytest.mark.parametrize("warmup_epochs", [0, 2, 0.7])
@pytest.mark.parametrize("steps_per_epoch, epochs", RUNS)
def test_cosine_schedule_is_half_a_wave(steps_per_epoch, epochs, warmup_epochs):
    total, warmup = run_length(steps_per_epoch, epochs, warmup_epochs)
    rest = total - warmup
    marks = (warmup, warmup + rest // 4, warmup + rest // 2, total - 1)
    steps = [s for s in around(*marks, total=total) if s >= warmup]
    # 1 + cos(x) = 2 cos^2(x / 2), which keeps its digits where it is almost 0
    halves = [math.pi / 2 * float(1 - Fraction(s - warmup, rest)) for s in steps]
    expected = [0.1 * math.sin(half) ** 2 for half in halves]
    middle = [0.1 * (1 + math.cos(math.pi * (s - warmup) / rest)) / 2 for s in steps]
    np.testing.assert_allclose(expected, middle, rtol=0, atol=1e-16)
    got = rates(
        steps_per_epoch, epochs, steps, name="cosine", rate=0.1, warmup_epochs=float(warmup_epochs)
    )
    np.testing.assert_allclose(got, expected, rtol=6e-7)


@pytest.mark.parametrize("name", ["step", "poly", "cosine"])
@pytest.mark.parametrize("steps_per_epoch, epochs", RUNS)
def test_warm_up_climbs_from_zero_and_reaches_the_rate_at_its_end(name, steps_per_epoch, epochs):
    total, warmup = run_length(steps_per_epoch, epochs, 2)
    assert warmup == {DIGITS: 45, IMAGENET: 80_073}[steps_per_epoch]  # 44.9 and 80,072.9 steps
    steps = [s for s in around(0, 1, warmup // 2, warmup, total=total) if s <= warmup]
    got = rates(steps_per_epoch, epochs, steps, name=name, rate=0.1, warmup_epochs=2.0)
    expected = [0.1 * s / warmup for s in steps]
    np.testing.assert_allclose(got, expected, rtol=2e-7)


def test_a_run_that_is_all_warm_up_still_has_a_rate():
    assert rates(DIGITS, 1, [11], name="cosine", rate=0.1, warmup_epochs=2.0) == pytest.approx(
        0.1 * 11 / 45
    )


def sgd(form, nesterov):
    """One parameter's momentum as the config states its form: (gradient, rate) -> step."""
    buffer = 0.0

    def step(g, rate):
        nonlocal buffer
        g = rate * g if form == "caffe" else g
        buffer = 0.8 * buffer + g
        moved = g + 0.8 * buffer if nesterov else buffer
        return moved if form == "caffe" else rate * moved

    return step


def caffe_nesterov():
    """As BVLC/caffe writes it (nesterov_solver.cpp): (1 + m) v_new - m v_old."""
    buffer = 0.0

    def step(g, rate):
        nonlocal buffer
        old, buffer = buffer, 0.8 * buffer + rate * g
        return 1.8 * buffer - 0.8 * old

    return step


NAMES = {"conv": ("kernel", "bias"), "conv_bn": ("scale", "bias"), "kernel": ("scale",)}
RATES = [0.5, 0.1, 0.3, 0.02]  # the forms of momentum differ only where the rate changes


def check(fields, make_step, clip=None):
    """Compares four updates with NumPy: make_step(decayed) -> f(gradient, parameter, rate)."""
    rng = np.random.default_rng(0)
    params = {m: {n: rng.normal(size=(3, 2)) for n in leaves} for m, leaves in NAMES.items()}
    ours = jax.tree.map(jnp.asarray, params)
    optimizer = optim.make_optimizer(
        optimiser(weight_decay=0.05, momentum=0.8, **fields),
        lambda count: jnp.asarray(RATES)[count],
        ours,
    )
    opt_state = optimizer.init(ours)
    steps = {(m, n): make_step((m, n) == ("conv", "kernel")) for m in NAMES for n in NAMES[m]}
    for rate in RATES:
        gradients = {m: {n: rng.normal(size=(3, 2)) for n in p} for m, p in params.items()}
        updates, opt_state = optimizer.update(jax.tree.map(jnp.asarray, gradients), opt_state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        norm = np.sqrt(sum((g**2).sum() for p in gradients.values() for g in p.values()))
        for (module, name), step in steps.items():
            g, p = gradients[module][name], params[module][name]
            if clip:
                g = g * min(1, clip / norm)
            rate_of = rate * (2 if name == "bias" else 1)
            p = p - step(g, p, rate_of)
            params[module][name] = p
            np.testing.assert_allclose(
                ours[module][name], p, rtol=1e-12, err_msg=f"{module}/{name}"
            )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("form", ["optax", "caffe"])
def test_sgd_is_the_stated_form_of_momentum_with_kernels_decayed_and_biases_twice_as_fast(
    form, nesterov, x64
):
    def make_step(decayed):
        step = sgd(form, nesterov)
        return lambda g, p, rate: step(g + 0.05 * p * decayed, rate)

    check({"momentum_form": form, "nesterov": nesterov}, make_step)


def test_nesterov_in_the_reference_solvers_form_is_the_reference_solvers(x64):
    def make_step(decayed):
        step = caffe_nesterov()
        return lambda g, p, rate: step(g + 0.05 * p * decayed, rate)

    check({"momentum_form": "caffe", "nesterov": True}, make_step)


@pytest.mark.parametrize("clip", [1.0, 4.0, 100.0])
def test_clipping_bounds_the_norm_of_the_whole_gradient_before_the_decay(clip, x64):
    def make_step(decayed):
        step = sgd("optax", False)
        return lambda g, p, rate: step(g + 0.05 * p * decayed, rate)

    check({"clip_norm": clip}, make_step, clip=clip)


def test_rmsprop_is_tensorflows_with_decay_in_the_gradient(x64):
    def make_step(decayed):
        momentum, square = sgd("caffe", False), 1.0

        def step(g, p, rate):
            nonlocal square
            g = g + 0.05 * p * decayed
            square = 0.9 * square + 0.1 * g**2
            return momentum(g / np.sqrt(square + 1e-2), rate)

        return step

    fields = {"betas": (0.5, 0.9), "epsilon": 1e-2, "momentum_form": "caffe"}
    check({"name": "rmsprop", **fields}, make_step)


@pytest.mark.parametrize("form", ["optax", "caffe"])
def test_lars_scales_decayed_parameters_to_their_norm(form, x64):
    def make_step(decayed):
        momentum = sgd(form, False)

        def step(g, p, rate):
            g = g + 0.05 * p * decayed
            if decayed:
                g = g * 0.02 * np.linalg.norm(p) / np.linalg.norm(g)
            return momentum(g, rate)

        return step

    check({"name": "lars", "trust_coefficient": 0.02, "momentum_form": form}, make_step)


def adam():
    first, second, count = 0.0, 0.0, 0

    def direction(g):
        nonlocal first, second, count
        count += 1
        first, second = 0.7 * first + 0.3 * g, 0.9 * second + 0.1 * g**2
        return first / (1 - 0.7**count) / (np.sqrt(second / (1 - 0.9**count)) + 1e-3)

    return direction


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_adamw_decays_beside_the_gradient_and_lamb_scales_that_to_the_norm(name, x64):
    def make_step(decayed):
        direction = adam()

        def step(g, p, rate):
            moved = direction(g) + 0.05 * p * decayed
            if name == "lamb" and decayed:
                moved = moved * np.linalg.norm(p) / np.linalg.norm(moved)
            return rate * moved

        return step

    check({"name": name, "betas": (0.7, 0.9), "epsilon": 1e-3}, make_step)


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_filters_above_the_limit_are_scaled_back_to_it(limit, x64):
    """After each step, of convolutions only; momentum goes on as if nothing had been scaled."""
    rng = np.random.default_rng(0)
    scale = np.array([0.01, 0.2, 0.8, 3.0])  # of the filters: two stay below 0.3 to the end
    start = {
        "conv/kernel": 0.5 * scale * rng.normal(size=(3, 2, 5, 4)),
        "conv/bias": np.full(4, 2.0),
        "fc/kernel": 2 * rng.normal(size=(6, 4)),
        "fc/bias": np.full(4, 2.0),
    }
    ours = unflatten_dict(jax.tree.map(jnp.asarray, start), sep="/")
    fields = {"max_filter_rms": limit, "momentum": 0.8, "weight_decay": 0.0}
    fields["rate_factors"] = ((".*/bias", 2.0), ("conv/.*", 3.0), (".*", 1.0))
    optimizer = optim.make_optimizer(
        optimiser(**fields), lambda count: jnp.asarray(RATES)[count], ours
    )
    opt_state = optimizer.init(ours)
    expected = start
    buffers = dict.fromkeys(start, 0.0)
    above = []
    for rate in RATES:
        grads = {name: 0.02 * rng.normal(size=p.shape) for name, p in start.items()}
        updates, opt_state = optimizer.update(unflatten_dict(grads, sep="/"), opt_state, ours)
        ours = optax.apply_updates(ours, updates)
        buffers = {name: 0.8 * buffers[name] + grads[name] for name in start}
        factors = {"conv/kernel": 3, "conv/bias": 2, "fc/kernel": 1, "fc/bias": 2}
        expected = {name: p - factors[name] * rate * buffers[name] for name, p in expected.items()}
        if limit:
            filters = expected["conv/kernel"].copy()
            for f in range(4):
                rms = np.sqrt((filters[..., f] ** 2).mean())
                above.append(rms > limit)
                if rms > limit:
                    filters[..., f] *= limit / rms
                    after = np.sqrt((np.asarray(ours["conv"]["kernel"])[..., f] ** 2).mean())
                    np.testing.assert_allclose(after, limit, rtol=1e-12)
            expected["conv/kernel"] = filters
        for name, p in flatten_dict(ours, sep="/").items():
            np.testing.assert_allclose(p, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)
    assert not limit or set(above) == {False, True}


def test_filters_below_the_limit_take_the_very_same_step():
    """Not one a rounding away."""
    rng = np.random.default_rng(0)
    params, grads = ({"kernel": rng.normal(size=(3, 3, 4, 8)).astype("float32")} for _ in range(2))
    steps = []
    for limit in (0.0, 10.0):
        optimizer = optim.make_optimizer(
            optimiser(max_filter_rms=limit, decay_factors=((".*", 0),), rate_factors=((".*", 1),)),
            lambda count: 0.1,
            params,
        )
        steps.append(optimizer.update(grads, optimizer.init(params), params)[0]["kernel"])
    np.testing.assert_array_equal(*steps)


def test_optimisers_that_pass_are_those_that_can_be_made():
    params = {"conv": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    updates = {}
    for name in validate.OPTIMISERS:
        optimizer = optim.make_optimizer(optimiser(name=name), lambda count: 0.01, params)
        update, _ = optimizer.update(params, optimizer.init(params), params)
        updates[name] = float(update["conv"]["kernel"][0])
    assert len(set(updates.values())) == len(updates) == 5, updates


def test_published_optimiser_is_the_default():
    """Momentum 0.9, decay 2e-4 of kernels, biases at twice the rate: by hand, from rest."""
    params = {"conv": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    optimizer = optim.make_optimizer(optimiser(), lambda count: 0.01, params)
    state = optimizer.init(params)
    first, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_allclose(first["conv"]["kernel"], -0.01 * (1 + 2e-4), rtol=1e-6)
    np.testing.assert_allclose(first["conv"]["bias"], -0.02, rtol=1e-6)
    second, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(second["conv"]["kernel"], -0.01 * (0.9 * 1.0002 + 2e-4), rtol=1e-6)
    np.testing.assert_allclose(second["conv"]["bias"], -0.02 * 0.9, rtol=1e-6)


TREE = {"conv1": {"3x3": {"kernel": 0, "bias": 0}}, "loss3": {"classifier": {"kernel": 0}}}


def test_the_first_pattern_that_fits_the_whole_name_gives_the_factor():
    got = optim.factors("rate_factors", ((".*bias", 2), ("loss3/.*", 10), (".*", 0.5)), TREE)
    assert got == {
        "conv1": {"3x3": {"kernel": 0.5, "bias": 2.0}},
        "loss3": {"classifier": {"kernel": 10.0}},
    }


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (
            (("bias", 2.0), (".*", 1.0)),
            "the pattern 'bias' fits no parameter; names are like conv1",
        ),
        ((("conv2/.*", 2.0), (".*", 1.0)), "the pattern 'conv2/.*' fits no parameter"),
        ((("conv1", 2.0), (".*", 1.0)), "the pattern 'conv1' fits no parameter"),
        (((".*", 1.0), (".*/bias", 2.0)), "fits only parameters that patterns before it take"),
        (((".*/bias", 2.0),), "has no pattern for the parameter conv1/3x3/kernel: end it with one"),
        ((), "has no pattern for the parameter conv1/3x3/bias"),
    ],
)
def test_a_pattern_without_a_parameter_or_a_parameter_without_a_pattern_is_told(patterns, told):
    with pytest.raises(UserError) as caught:
        optim.factors("rate_factors", patterns, TREE)
    assert str(caught.value).startswith("config.optim.rate_factors")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


NORM = {"params": {"a": {"conv": {"kernel": 0}, "bn": {"scale": 0, "bias": 0}}, "b": {"bias": 0}}}
NORM["batch_stats"] = {"a": {"bn": {"mean": 0, "var": 0}}}


@pytest.mark.parametrize(
    ("patterns", "names", "statistics"),
    [
        ((), set(), False),
        (("a/conv/kernel",), {"a/conv/kernel"}, False),
        (("a/bn/.*",), {"a/bn/scale", "a/bn/bias"}, True),
        ((".*/scale", "a/b./bias"), {"a/bn/scale", "a/bn/bias"}, True),
        ((".*/scale", "b/bias"), {"a/bn/scale", "b/bias"}, False),
        ((".*/bn/.*", "a/bn/scale"), {"a/bn/scale", "a/bn/bias"}, True),
    ],
)
def test_statistics_are_frozen_where_scale_and_bias_are(patterns, names, statistics):
    got = optim.frozen(patterns, NORM)
    assert {name for name, still in flatten_dict(got["params"], sep="/").items() if still} == names
    assert got["batch_stats"] == {"a": {"bn": {"mean": statistics, "var": statistics}}}


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (
            ("a/.*", "bias"),
            "freeze: the pattern 'bias' fits no parameter; names are like a/bn/bias",
        ),
        (("a/.*", ".*bias"), "freeze=('a/.*', '.*bias') fits every parameter, so that there is no"),
    ],
)
def test_a_freeze_that_does_nothing_or_leaves_nothing_is_told(patterns, told):
    with pytest.raises(UserError) as caught:
        optim.frozen(patterns, NORM)
    assert str(caught.value).startswith(f"config.optim.{told}")
    assert "\n" not in str(caught.value)


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

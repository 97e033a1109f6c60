"""Training steps that are not finite: left out to the bit, counted in a row, told and bounded."""

import dataclasses
import json
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import arrays, rows
from ml_collections import ConfigDict
from test_metrics import events
from test_step import Linear, flat, make, make_batch, start

from configs import googlenet
from inception_jax import average, main, nonfinite, optim, plot, program, sharding, step, validate
from inception_jax import config as config_lib
from inception_jax.data import datasets, device, order, pipeline
from inception_jax.errors import DataError

LEFT_OUT = (1, 2, 4)  # of 6 steps
DECAY = 0.9


def poisoned(batch):
    """With one pixel of one image that is no number."""
    image = batch["image"].copy()
    image[5, 0, 0, 0] = np.nan
    return batch | {"image": image}


def optimizer_of(name, params, schedule):
    config = googlenet.get_config().optim
    config.name, config.clip_norm, config.weight_decay = name, 0.5, 0.01
    config.freeze = ("aux0/bias",)
    frozen = optim.frozen(config.freeze, {"params": params, "batch_stats": {}})["params"]
    return optim.make_optimizer(config, schedule, params), frozen


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("name", validate.OPTIMISERS)
def test_only_the_finite_steps_update_at_the_rates_of_an_undisturbed_run(name, accumulation, x64):
    """Compared with steps that know nothing of it, each with its rate written into its optimiser.

    The average counts the unchanged variables once more for each step that was left out.
    """
    model = Linear(heads=1, batch_norm=True, dropout=0.3, dtype=jnp.float64)
    state = start(model, 4)
    batches = [make_batch(8, 4, seed=seed) for seed in range(6)]
    optimizer, frozen = optimizer_of(name, state.params, lambda t: 0.05 * (t + 1))
    frozen = {"params": frozen, "batch_stats": jax.tree.map(lambda _: False, state.batch_stats)}
    options = {"accumulation": accumulation, "frozen": frozen}

    expected, seen = step.init_state(state.variables, optimizer), []
    for number, batch in enumerate(batches):
        if number not in LEFT_OUT:
            fixed, _ = optimizer_of(name, state.params, lambda _, n=number: 0.05 * (n + 1))
            expected.step = jnp.int32(number)  # of which dropout is a function
            expected, _ = make(model, fixed, **options)(expected, batch)
        seen.append(flat(expected.variables))
    weights = DECAY ** np.arange(5, -1, -1)

    update_average = average.make_update(
        ConfigDict({"name": "exponential", "start_epochs": 0.0, "decay": DECAY}), Fraction(1), 9
    )
    update = make(model, optimizer, update_average=update_average, skip_nonfinite=True, **options)
    state = step.init_state(state.variables, optimizer, averaged=True)
    for number, batch in enumerate(batches):
        before = state
        state, metrics = update(state, poisoned(batch) if number in LEFT_OUT else batch)
        assert np.isnan(metrics["loss"]) == (number in LEFT_OUT)
        assert np.isfinite(metrics["param_norm"])
        if number in LEFT_OUT:
            assert_same_bits(state.variables, before.variables)
            assert_same_bits(without_counts(state.opt_state), without_counts(before.opt_state))

    assert state.step == 6
    for number, value in flat(state.variables).items():
        np.testing.assert_allclose(value, seen[-1][number], rtol=1e-12, atol=1e-12)
    for number, value in flat(state.evaluated).items():
        mean = sum(w * each[number] for w, each in zip(weights, seen, strict=True)) / sum(weights)
        np.testing.assert_allclose(value, mean, rtol=1e-12, atol=1e-12)


def without_counts(opt_state):
    """The optimiser's state but for the numbers of steps that schedules are read from."""
    counted = optax.ScaleByScheduleState
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, counted))
    counts = [node for node in nodes if isinstance(node, counted)]
    assert len(counts) == 1
    return [node for node in nodes if not isinstance(node, counted)]


def assert_same_bits(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_a_gradient_that_overflows_is_left_out_though_the_loss_is_finite():
    """Images as bright as float32 allows: the squares of their gradients are beyond it."""
    model = Linear()
    state, batch = start(model, 4), make_batch(8, 4)
    batch["image"] = batch["image"].astype(np.float32) * 1e30
    plain, metrics = make(model)(state, batch)
    assert np.isfinite(metrics["loss"]) and np.isinf(metrics["grad_norm"])
    after, _ = make(model, skip_nonfinite=True)(state, batch)
    assert_same_bits(after.params, state.params)
    assert abs(plain.params["main"]["kernel"]).max() > 1e20


def test_with_0_the_step_is_compiled_as_if_there_were_no_such_field(config, monkeypatch):
    def trace():
        made = program.make(config, sharding.make_mesh(config.mesh), num_examples=99, num_classes=7)
        made.train_step.trace(made.state, made.train_batch[config.data.image_size])

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(nonfinite, "unless", fail)
    trace()
    config.optim.skip_nonfinite = 1
    with pytest.raises(ZeroDivisionError):
        trace()


COMMAND = (
    "main",
    "--config=configs/digits.py",
    "--config.model.modules=3a",
    "--config.model.width=0.0625",
    "--config.batch_size=32",
    "--config.epochs=0.5",
    "--config.schedule.warmup_epochs=0.1",
    "--config.data.mixup=0.2",
    "--config.average.name=plain",
    "--config.log_every_steps=1",
    "--config.checkpoint.every_steps=5",
    "--config.optim.skip_nonfinite=3",
)
STEPS = 23


@pytest.fixture
def run(monkeypatch, capfd):
    """Returns run(workdir, steps that are not finite, *overrides, end=None) -> what was said."""
    read, made = pipeline.training, device.make_preprocess

    def make_preprocess(*arguments):
        preprocess = made(*arguments)

        def white_is_no_number(batch, train):
            white = jnp.min(batch["image"]) > 254.9  # mixing rounds
            return jnp.where(white, jnp.nan, preprocess(batch, train))

        return white_is_no_number

    def run(workdir, bad, *overrides, end=None):
        def training(source, index, local, steps, *arguments):
            batches = read(source, index, local, steps, *arguments)
            for number, batch in zip(steps, batches, strict=False):
                if number == end:
                    raise DataError("no more images")
                if number + 1 in bad:
                    batch["image"][:] = 255
                yield batch

        monkeypatch.setattr(device, "make_preprocess", make_preprocess)
        monkeypatch.setattr(pipeline, "training", training)
        code = main.main([*COMMAND, *overrides, f"--workdir={workdir}"])
        said = capfd.readouterr()
        assert code == bool(said.err)
        return said

    return run


def test_a_run_goes_on_as_if_the_steps_left_out_were_none(run, tmp_path, x64):
    bad = (3, 4, 5, 9, 23)
    told = run(tmp_path, bad, "--config.model.dtype=float64").out
    lines = [line for line in told.splitlines() if "became" in line]
    assert lines == [
        f"step {number}: the loss became nan: left out ({in_a_row} in a row, at most 3)"
        for number, in_a_row in ((3, 1), (4, 2), (5, 3), (9, 1), (23, 1))
    ]

    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    logged = [row for row in rows(tmp_path) if row["kind"] == "nonfinite"]
    assert [(row["step"], row["in_a_row"]) for row in logged] == [
        *((3, 1), (4, 2), (5, 3), (9, 1), (23, 1))
    ]
    assert {(row["what"], row["value"]) for row in logged} == {("loss", "nan")}
    trained = [row for row in rows(tmp_path) if row["kind"] == "train"]
    assert [row["step"] for row in trained] == [n for n in range(1, 24) if n not in bad]
    plotted = [(step, value) for tag, step, value in events(tmp_path) if tag.endswith("in_a_row")]
    assert plotted == [(3, 1), (4, 2), (5, 3), (9, 1), (23, 1)]
    assert plot.main(["plot", str(tmp_path), f"--out={tmp_path / 'curve.png'}"]) == 0

    reached, expected = arrays(tmp_path, STEPS), arrays_without(tmp_path, bad)
    assert reached.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(reached[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def arrays_without(workdir, bad):
    """What a run's steps make that know nothing of it, all but some of them in a loop by hand."""
    config = config_lib.read(str(workdir))
    config.optim.skip_nonfinite = 0
    data, mesh = datasets.load(config.data), sharding.make_mesh(config.mesh)
    prog = program.make(config, mesh, num_examples=len(data.train), num_classes=data.num_classes)
    batches = pipeline.training(
        data.train,
        order.training(len(data.train), config.batch_size, config.seed),
        sharding.local_rows(config.batch_size, mesh),
        range(STEPS),
        config.data,
        config.seed,
    )
    update_average = average.make_update(config.average, prog.steps_per_epoch, STEPS)
    state = prog.init()
    for number, batch in enumerate(batches, 1):
        if number in bad:
            state.step += 1
            state.average = update_average(state.average, state.step, state.variables)
            state.opt_state = jax.tree.map(
                lambda x: x + 1 if x.dtype == jnp.int32 else x, state.opt_state
            )
        else:
            del batch["due"]
            state, _ = prog.train_step(state, sharding.place_batch(batch, mesh))
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    )
    # a checkpoint has the optimiser's named tuples as dicts
    names = (re.sub(r"\.(\w+)", r"['\1']", jax.tree_util.keystr(path)) for path, _ in leaves)
    return dict(zip(names, (np.asarray(leaf) for _, leaf in leaves), strict=True))


def test_a_run_goes_on_counting_where_it_was_stopped(run, tmp_path):
    """Stopped between two steps that are left out, then again by one too many."""
    bad = (5, 6, 7)
    run(tmp_path / "whole", bad)
    assert run(tmp_path / "halves", bad, end=6).err == "error: no more images\n"
    told = run(tmp_path / "halves", bad).out
    assert "step 7: the loss became nan: left out (3 in a row, at most 3)" in told
    assert rows(tmp_path / "halves") == rows(tmp_path / "whole")
    first, second = (arrays(tmp_path / name, STEPS) for name in ("whole", "halves"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name

    bad = (5, 6, 7, 8)
    run(tmp_path / "over", bad, end=6)
    for _ in range(2):  # the same line meets the same end
        error = run(tmp_path / "over", bad).err
        assert "training loss became nan at step 8 (rate " in error
        assert "checkpoint 6 is good" in error

"""Starting from stored weights: what is taken over, what is new, what is refused."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, arrays, rows

from configs import digits, finetune, googlenet, imagenet
from inception_jax import (
    evaluate,
    init_from,
    models,
    optim,
    process,
    program,
    sharding,
    step,
    train,
    transfer,
    validate,
)
from inception_jax.checkpoint import Checkpoints
from inception_jax.config import flatten
from inception_jax.console import Console
from inception_jax.cost import __main__ as cost
from inception_jax.data import datasets
from inception_jax.errors import UserError

# What has to be alike for weights to mean the same: the network's form, the pixels it was shown.
TRAVELS = {
    *("name", "width", "batch_norm", "batch_norm_epsilon", "lrn", "lrn_k", "lrn_alpha", "module"),
    *("branches", "projection", "modules", "kernel_5x5", "pool4_window", "auxiliary_heads"),
    *("auxiliary_bins", "small_stem", "variant", "base", "pyramid", "floor_pools"),
}
TRAVELS = {f"model.{name}" for name in TRAVELS}
TRAVELS |= {"data.image_size", "data.eval_resize", "data.mean", "data.std"}


def store(folder, config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config.to_json_best_effort())
    return str(folder)


def starting_from(folder, recipe=googlenet.get_config):
    config = recipe()
    config.init_from = str(folder)
    return config


def torchvision(folder):
    """A stored config that differs from the defaults in what travels, and in what does not."""
    config = imagenet.get_config("torchvision")
    config.model.projection, config.model.branches = False, "1x1,3x3"
    config.model.dtype, config.model.auxiliary_dropout = "bfloat16", 0.1
    config.data.image_size, config.data.eval_resize = 96, 112
    config.data.mean = (123.675, 116.28, 103.53)
    config.data.crop_area = (0.5, 1.0)
    return store(folder, config), dict(flatten(config))


def differing(config, values):
    return {name for name, value in flatten(config) if value != values[name]}


def test_the_networks_form_and_the_pixels_travel_and_nothing_else(tmp_path):
    folder, stored = torchvision(tmp_path / "weights")
    config = starting_from(folder)
    before = dict(flatten(config))
    config.model.lrn_k, config.model.pyramid = 3.0, (1, 2)  # of the recipe's own network
    told = init_from.adopt(config, ())
    assert not differing(config, stored) & TRAVELS
    assert differing(config, before) <= TRAVELS
    assert differing(config, stored) == {
        *("init_from", "epochs", "optim.momentum_form", "data.crop_area"),
        *("model.dtype", "model.dropout", "model.auxiliary_dropout"),
    }
    assert type(config.data.mean) is tuple
    assert told == (
        f"from {folder}: googlenet, images of 96 pixels, mean (123.675, 116.28, 103.53),"
        " std (127.5, 127.5, 127.5)"
    )
    validate.check(config)


def test_every_field_of_a_network_travels_but_what_its_weights_do_not_need():
    """So that a new one is thought of."""
    fields = {f"model.{name}" for name in googlenet.MODEL_FIELDS}
    free = {"dropout", "auxiliary_dropout", "space_to_depth"}
    assert fields - TRAVELS == {f"model.{name}" for name in free}


@pytest.mark.parametrize("name", sorted(TRAVELS))
def test_what_the_command_line_sets_stays(name, tmp_path):
    folder, stored = torchvision(tmp_path / "weights")
    config = starting_from(folder)
    before = dict(flatten(config))
    init_from.adopt(config, {name})
    assert dict(flatten(config))[name] == before[name]
    assert not differing(config, stored) & (TRAVELS - {name})


def test_where_there_is_nothing_to_start_from_nothing_is_touched():
    for value in ("", None):
        config = googlenet.get_config()
        config.init_from = value
        before = dict(flatten(config))
        assert init_from.adopt(config, ()) is None
        assert dict(flatten(config)) == before
    with config.unlocked(), config.ignore_type():
        config.init_from = 5
    assert init_from.adopt(config, ()) is None
    with pytest.raises(UserError, match=r"^config.init_from is 5: it must be of type str"):
        validate.check(config)


def test_a_folder_that_cannot_be_taken_over_is_one_line(tmp_path):
    stored = imagenet.get_config()
    stored.model.name = "googlnet"
    cases = {
        str(tmp_path / "none"): "is neither the workdir of a run nor imported weights",
        str(tmp_path): "is neither the workdir of a run nor imported weights",
        store(tmp_path / "other", stored): "model.name is 'googlnet': did you mean googlenet?",
    }
    for folder, part in cases.items():
        with pytest.raises(UserError) as caught:
            init_from.adopt(starting_from(folder), ())
        text = str(caught.value)
        assert text.startswith(f"config.init_from={folder}: ")
        assert part in text
        assert "\n" not in text


def test_where_the_weights_are_gone_the_run_begun_from_them_knows_their_network(tmp_path):
    folder, stored = torchvision(tmp_path / "weights")
    run, config = tmp_path / "run", starting_from(folder)
    init_from.adopt(config, ())
    store(run, config)
    other = imagenet.get_config("vgg16")
    other.init_from = "elsewhere"
    elsewhere = tmp_path / "elsewhere"
    store(elsewhere, other)
    for workdir in (run, elsewhere, tmp_path):  # the weights themselves where they are there
        config = starting_from(folder)
        init_from.adopt(config, (), workdir)
        assert not differing(config, stored) & TRAVELS
    shutil.rmtree(folder)
    config = starting_from(folder)
    init_from.adopt(config, (), run)
    assert not differing(config, stored) & TRAVELS
    for workdir in (elsewhere, tmp_path, None):
        with pytest.raises(UserError, match="is neither the workdir of a run nor"):
            init_from.adopt(starting_from(folder), (), workdir)


# Which arrays are taken, on trees made by hand.


def layer(*shape, value=1.0):
    return {"kernel": jnp.full(shape, value), "bias": jnp.full(shape[-1:], -value)}


def network(classes=4, heads=("loss1", "loss2"), width=3, value=1.0):
    params = {"conv1": layer(2, width, value=value), "loss3": {}}
    params["loss3"]["classifier"] = layer(width, classes, value=value)
    for head in heads:
        params[head] = {"conv": layer(2, 5), "classifier": layer(5, classes)}
    statistics = {head: {"conv_bn": {"mean": jnp.zeros(5)}} for head in heads}
    return {"params": params, "batch_stats": {"conv1_bn": {"mean": jnp.ones(width)}} | statistics}


def save(folder, state, number=0, classes=4):
    checkpoints = Checkpoints(folder, keep=3)
    checkpoints.save(number, state, {"num_classes": classes}, best=None)
    checkpoints.wait()


def take(folder, variables, classes=4):
    found, lines = transfer.newest(str(folder))
    taken, changes = transfer.read(found, jax.eval_shape(lambda: variables), classes)
    return taken, lines + changes


def test_all_is_taken_where_all_agrees(tmp_path):
    save(tmp_path, network(value=2.5))
    taken, lines = take(tmp_path, network())
    assert lines == []
    expected = jax.tree_util.tree_flatten_with_path(network(value=2.5))[0]
    assert len(taken) == len(expected)
    for path, value in expected:
        np.testing.assert_array_equal(taken["/".join(entry.key for entry in path)], value)


def test_classifiers_are_new_where_there_are_other_classes(tmp_path):
    save(tmp_path, network())
    taken, lines = take(tmp_path, network(classes=3), classes=3)
    assert lines == [
        f"new: loss{number}/classifier, for 3 classes instead of 4" for number in (1, 2, 3)
    ]
    assert {"params/loss1/conv/kernel", "batch_stats/loss1/conv_bn/mean"} <= taken.keys()
    assert not [name for name in taken if "classifier" in name]
    with pytest.raises(UserError, match="6 arrays differ"):  # and only there
        take(tmp_path, network(classes=3), classes=4)


def test_auxiliary_heads_that_one_side_lacks_are_new_or_left_out(tmp_path):
    save(tmp_path, network(heads=("loss1",)))
    taken, lines = take(tmp_path, network(heads=("loss2",)))
    assert lines == [
        "left out: loss1, which the network does not have",
        "new: loss2, which the weights do not have",
    ]
    assert {name.split("/")[1] for name in taken} == {"conv1", "conv1_bn", "loss3"}


def test_everything_else_that_differs_is_told_at_once(tmp_path):
    stored = network()
    stored["params"]["conv2"] = {"kernel": jnp.ones(7)}
    del stored["params"]["loss1"]["conv"]["bias"]
    save(tmp_path, stored)
    with pytest.raises(UserError) as caught:
        take(tmp_path, network(width=6))
    first, *others = str(caught.value).splitlines()
    assert re.match(
        rf"the weights in {tmp_path}/checkpoints/0 do not fit the network, 6 arr", first
    )
    assert "leave config.model and config.data.image_size as they are there" in first
    assert others == [
        "  batch_stats/conv1_bn/mean: [3], not [6]",
        "  params/conv1/bias: [3], not [6]",
        "  params/conv1/kernel: [2,3], not [2,6]",
        "  params/conv2/kernel: [7], not none",
        "  params/loss1/conv/bias: none, not [5]",
        "  params/loss3/classifier/kernel: [3,4], not [6,4]",
    ]


def test_the_average_is_taken_where_there_is_one(tmp_path):
    """It is what was evaluated."""
    state = step.TrainState(jnp.int32(7), opt_state=(), **network(value=1.0))
    state.average = {"mean": network(value=2.0), "lost": network(value=9.0)}
    save(tmp_path, state)
    taken, _ = take(tmp_path, network())
    assert set(taken["params/conv1/kernel"].flat) == {2.0}
    assert set(taken["params/loss3/classifier/bias"].flat) == {-2.0}


def test_the_newest_whole_checkpoint_is_taken_and_the_folder_left_alone(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path, network(value=number), number)
    (tmp_path / "checkpoints" / "3" / "meta.json").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    taken, lines = take(tmp_path, network())
    assert taken["params/conv1/kernel"][0, 0] == 2
    assert lines == [f"checkpoint 3 in {tmp_path} is damaged (meta.json is damaged): taking 2"]
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="/none has no checkpoint: let its run save one"):
        transfer.newest(f"{tmp_path}/none")


@pytest.mark.parametrize("name", models.NAMES)
def test_classifiers_are_what_depends_on_the_number_of_classes(name):
    """Of every network, by the names that starting from weights and the recipe know."""
    config = digits.get_config(name)
    if name == "googlenet":
        config.model.auxiliary_heads, config.data.image_size = True, 32

    def names(classes):
        module = models.build(config.model, classes)
        variables = jax.eval_shape(lambda: step.init_variables(module, config.data.image_size, 0))
        leaves = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
        return variables, {
            "/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves
        }

    (_, ten), (variables, three) = names(10), names(3)
    expected = {layer for layer in ten if ten[layer] != three[layer]}
    assert len(expected) == (6 if name == "googlenet" else 2)
    assert {n for n in three if transfer._CLASSIFIER.fullmatch(f"params/{n}")} == expected
    patterns = finetune.get_config().optim.rate_factors
    factors = optim.factors("rate_factors", patterns, variables["params"])
    leaves = jax.tree_util.tree_flatten_with_path(factors)[0]
    faster = {"/".join(entry.key for entry in path) for path, factor in leaves if factor >= 10}
    assert faster == expected


# A small network with batch norm: a run with an average, and what begins with that.


def recipe():
    config = digits.get_config("vgg11")
    config.model.width, config.model.batch_norm = 0.03125, True
    config.epochs, config.schedule.warmup_epochs = 0.2, 0.0  # 5 steps
    config.average.name, config.average.decay = "exponential", 0.5
    config.log_every_steps = 1
    return config


def run(config, workdir, keep=(), stop=lambda: None):
    """Does what main does, in this process."""
    init_from.adopt(config, keep, workdir)
    validate.check(config)
    return train.train(config, workdir, stop, Console())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    run(recipe(), workdir)
    return workdir


@pytest.fixture
def seven(monkeypatch):
    """The digits below 7 as a data set of their own."""

    def load(config):
        whole = datasets.load(digits.get_config().data)

        def subset(split):
            pairs = [split.read(index) for index in range(len(split))]
            result = datasets.InMemory("digits", [], [])
            result._encoded, result._labels = zip(*(p for p in pairs if p[1] < 7), strict=True)
            return result

        return datasets.Dataset(subset(whole.train), subset(whole.eval), 7)

    monkeypatch.setitem(datasets.OWN, "seven", load)


def tuned(source):
    """A recipe for another data set, whose network and pixels are not yet the source's."""
    config = digits.get_config()
    config.update_from_flattened_dict(
        {
            **{"init_from": str(source), "batch_size": 32, "epochs": 0.3, "data.name": "seven"},
            **{"schedule.warmup_epochs": 0.0, "log_every_steps": 1, "checkpoint.every_steps": 4},
            **{"optim.freeze": ("conv[1-4].*",), "average.name": "exponential"},
        }
    )
    return config


def averaged(workdir, number):
    """The averaged arrays of a checkpoint by name, read by other code."""
    prefix = "['average']['mean']"
    return {
        name.removeprefix(prefix): array
        for name, array in arrays(workdir, number).items()
        if name.startswith(prefix)
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_start_has_the_stored_averages_and_for_the_rest_what_a_fresh_one_has(
    source, dtype, request
):
    if dtype == "float64":
        request.getfixturevalue("x64")
    config = recipe()
    config.model.dtype = dtype
    made = program.make(config, sharding.make_mesh(config.mesh), num_examples=99, num_classes=7)
    found, _ = transfer.newest(str(source))
    given, _ = transfer.read(found, made.state.variables, 7)
    state, fresh, stored = made.init(given), made.init(), averaged(source, 5)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, fresh)
    assert state.step == 0
    new = 0
    for variables in (state.variables, state.average["mean"]):
        for path, value in jax.tree_util.tree_flatten_with_path(variables)[0]:
            name = jax.tree_util.keystr(path)
            if "fc8" in name:
                new += 1
                drawn = fresh.params["fc8"][path[-1].key]
                np.testing.assert_array_equal(value, drawn)
            else:
                np.testing.assert_array_equal(value, stored[name], err_msg=name)
    assert new == 4
    assert not np.array_equal(stored["['params']['fc7']['kernel']"], fresh.params["fc7"]["kernel"])
    for ours, theirs in zip(*map(jax.tree.leaves, (state.opt_state, fresh.opt_state)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tuning_goes_on_to_the_same_end_though_the_weights_are_gone(
    source, seven, tmp_path, capsys
):
    """What is frozen is the source's average to the bit; only a new run reads the weights."""
    weights = shutil.copytree(source, tmp_path / "weights")
    before = averaged(source, 5)
    run(tuned(weights), tmp_path / "whole")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "new: fc8, for 7 classes instead of 10",
        f"new run in {tmp_path / 'whole'}",
    ]
    calls = []

    def stop():
        calls.append(1)
        return "SIGTERM" if len(calls) > 5 else None

    reached, results = run(tuned(weights), tmp_path / "parts", stop=stop)
    assert 0 < reached < 9
    assert results is None
    shutil.rmtree(weights)
    capsys.readouterr()
    reached, results = run(tuned(weights), tmp_path / "parts")
    assert results is not None
    assert capsys.readouterr().out.startswith("going on from step ")
    whole, parts = arrays(tmp_path / "whole", reached), arrays(tmp_path / "parts", reached)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert value.tobytes() == parts[name].tobytes(), name
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")

    frozen = re.compile(r"\['(params|batch_stats)'\]\['conv[1-4].*")
    now = averaged(tmp_path / "whole", reached)
    for name, value in before.items():
        if "fc8" not in name:
            assert (value.tobytes() == now[name].tobytes()) == bool(frozen.match(name)), name
            assert not frozen.match(name) or whole[name].tobytes() == value.tobytes()

    with pytest.raises(UserError, match="is neither the workdir of a run nor imported weights"):
        run(tuned(weights), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    other = tuned(source)
    with pytest.raises(UserError, match=rf"has config.init_from={weights}, not {source}: take an"):
        run(other, tmp_path / "parts")


def test_what_does_not_fit_is_refused_before_anything_is_written(source, tmp_path):
    config = recipe()
    config.init_from, config.model.width = str(source), 0.0625
    with pytest.raises(UserError, match=r"do not fit the network, \d+ arrays differ: leave"):
        run(config, tmp_path / "run", keep={"model.width"})
    assert not (tmp_path / "run").exists()


@pytest.fixture
def imported(source, tmp_path):
    """The source's averages as an import writes weights."""
    folder = tmp_path / "weights"
    stored = json.loads((source / "config.json").read_text())
    found, _ = transfer.newest(str(source))
    made = program.make_evaluation(recipe(), sharding.make_mesh(recipe().mesh), 10)
    given, _ = transfer.read(found, made.variables, 10)
    variables = program.replace(
        jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), made.variables), given
    )
    meta = {"step": 0, "config": stored, "num_classes": 10, "source": "a file"}
    folder.mkdir()
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(0, jax.tree.map(jnp.asarray, variables), meta, best=None)
    checkpoints.wait()
    shutil.copy(source / "config.json", folder / "config.json")
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Returns command(main, *arguments) -> (exit code, stdout, stderr), in this process."""
    monkeypatch.setattr(process, "quiet", lambda: None)  # it is for whole processes

    def command(main, *arguments):
        capsys.readouterr()
        return main(["command", *map(str, arguments)]), *capsys.readouterr()

    return command


def test_a_run_and_its_weights_imported_are_evaluated_alike(source, imported, command):
    results = json.loads((source / "results.json").read_text())
    numbers = {name: results[name] for name in ("top1", "top5", "loss", "examples")}
    for folder, number in ((source, 5), (imported, 0)):
        code, out, error = command(evaluate.main, folder, "--format=json")
        assert (code, error) == (0, "")
        assert json.loads(out) == {"step": number} | numbers


def test_evaluation_takes_overrides_and_says_what_does_not_fit(source, seven, command):
    """Another split; data of other classes; another network."""
    code, out, _ = command(evaluate.main, source, "--format=json", "--config.data.eval_split=train")
    assert code == 0
    assert json.loads(out)["examples"] == 1437
    code, out, error = command(evaluate.main, source, "--config.data.name=seven")
    assert (code, out) == (1, "")
    assert error == (
        f"error: {source} was trained for 10 classes, the data seven have 7: set config.data to"
        " data of its classes\n"
    )
    code, out, error = command(evaluate.main, source, "--config.model.batch_norm=False")
    assert (code, out) == (1, "")
    assert "do not fit the network" in error.splitlines()[0]
    assert "  params/conv1_1/bias: none, not [2]" in error.splitlines()


def test_imported_weights_are_no_workdir_and_stay_as_they_are(imported, tmp_path):
    def content():
        files = (path for path in imported.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.read_bytes() for path in files}

    before = content()
    for config in (recipe(), starting_from(imported, recipe)):
        with pytest.raises(UserError, match="holds imported weights, not a run: start one from"):
            run(config, imported)
    assert content() == before
    reached, _ = run(starting_from(imported, recipe), tmp_path / "run")
    assert reached == 5


def test_the_cost_is_that_of_the_network_taken_over(source, command):
    arguments = ("--format=json", f"--config.init_from={source}", "--config.data.name=digits")
    code, out, error = command(cost.main, f"--config={ROOT}/configs/finetune.py", *arguments)
    assert (code, error) == (0, "")
    results = json.loads((source / "results.json").read_text())
    assert json.loads(out)["totals"]["parameters"] == results["parameters"]

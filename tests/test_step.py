"""The training and evaluation steps: on a linear model, by hand; on GoogLeNet, what must hold."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs import googlenet
from inception_jax import average, optim, program, sharding, step, validate
from inception_jax.models.layers import Logits, Unit

RATE = 0.5
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Linear(nn.Module):
    """A linear classifier with as many linear auxiliary heads in training."""

    classes: int = 7
    heads: int = 0
    batch_norm: bool = False
    dropout: float = 0.0
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        dense = functools.partial(nn.Dense, self.classes, param_dtype=self.dtype)
        x = x.reshape(len(x), -1).astype(self.dtype)
        if self.batch_norm:
            norm = nn.BatchNorm(momentum=0.9, param_dtype=self.dtype, name="bn")
            x = norm(x, use_running_average=not train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        names = [f"aux{n}" for n in range(self.heads)] if train else []
        return Logits(dense(name="main")(x), tuple(dense(name=name)(x) for name in names))


def pixels(batch, train):
    return batch["image"]


def make(model, optimizer=None, **options):
    defaults = {"auxiliary_weight": 0.3, "label_smoothing": 0.0, "accumulation": 1, "seed": 0}
    options = defaults | options
    optimizer = optimizer or optax.sgd(RATE)
    return jit(step.make_train_step(model, optimizer, pixels, schedule=lambda t: RATE, **options))


def start(model, size, seed=1):
    """A state of random parameters, as zeros would hide what a classifier's bias does."""
    variables = jax.eval_shape(lambda: step.init_variables(model, size, 0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.ones(leaf.shape, leaf.dtype)
        scale = 1 / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)

    return step.init_state(jax.tree_util.tree_map_with_path(draw, variables), optax.sgd(RATE))


def make_batch(size, side, classes=7, seed=2):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(loc=0.3, size=(size, side, side, 3)),
        "label": rng.integers(classes, size=size).astype(np.int32),
    }


def cross_entropy(logits, labels):
    """Each image's loss and its gradient: -log softmax, softmax - one hot."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    losses, gradient = -np.log(softmax[rows, labels]), softmax.copy()
    gradient[rows, labels] -= 1
    return losses, gradient


def flat(tree):
    return {k: np.asarray(v) for k, v in flatten_dict(tree, sep="/").items()}


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_update_is_the_gradient_of_main_loss_plus_03_of_each_auxiliary_loss(x64, accumulation):
    """Loss, metrics and parameters by hand, alike for a batch of 32 and for four parts of 8."""
    model = Linear(heads=2, dtype=jnp.float64)
    state, batch = start(model, 4), make_batch(32, 4)
    x, labels, params = batch["image"].reshape(32, -1), batch["label"], flat(state.params)
    weights = {"main": 1.0, "aux0": 0.3, "aux1": 0.3}
    losses, gradients = {}, {}
    for head, weight in weights.items():
        logits = x @ params[f"{head}/kernel"] + params[f"{head}/bias"]
        each, gradient = cross_entropy(logits, labels)
        losses[head] = each.mean()
        gradients[f"{head}/kernel"] = weight * x.T @ gradient / 32
        gradients[f"{head}/bias"] = weight * gradient.mean(axis=0)
    expected = {name: value - RATE * gradients[name] for name, value in params.items()}
    best = (x @ params["main/kernel"] + params["main/bias"]).argmax(axis=1)

    def norm(tree):
        return np.sqrt(sum((leaf**2).sum() for leaf in tree.values()))

    after, metrics = make(model, accumulation=accumulation)(state, batch)
    assert after.step == 1
    for name, value in flat(after.params).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-12, atol=1e-12, err_msg=name)
    assert 0 < np.mean(best == labels) < 1
    by_hand = {
        "loss": sum(weights[head] * loss for head, loss in losses.items()),
        "main_loss": losses["main"],
        "top1": np.mean(best == labels),
        "grad_norm": norm(gradients),
        "param_norm": norm(expected),
        "rate": RATE,
    }
    assert metrics.keys() == by_hand.keys()
    for name, value in by_hand.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-12, err_msg=name)


def test_label_smoothing_spreads_a_share_of_every_label_in_every_loss(x64):
    """Szegedy et al. 2016, section 7: cross entropy with (1 - s) of the label and s / K of each."""
    model = Linear(heads=1, dtype=jnp.float64)
    state, batch = start(model, 4), make_batch(8, 4)
    x, params = batch["image"].reshape(8, -1), flat(state.params)
    target = 0.8 * np.eye(7)[batch["label"]] + 0.2 / 7
    losses, expected = {}, {}
    for head, weight in {"main": 1.0, "aux0": 0.3}.items():
        logits = x @ params[f"{head}/kernel"] + params[f"{head}/bias"]
        softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        losses[head] = -(target * np.log(softmax)).sum(axis=1).mean()
        step_of_bias = RATE * weight * (softmax - target).mean(axis=0)
        expected[head] = params[f"{head}/bias"] - step_of_bias
    after, metrics = make(model, label_smoothing=0.2)(state, batch)
    np.testing.assert_allclose(metrics["main_loss"], losses["main"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], losses["main"] + 0.3 * losses["aux0"], rtol=1e-12)
    for head, bias in expected.items():
        np.testing.assert_allclose(after.params[head]["bias"], bias, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_mixed_labels_share_every_loss_and_the_whole_batch_is_mixed_before_it_is_split(
    x64, accumulation
):
    """With smoothing and an auxiliary head; top-1 is of the label with the greater share."""
    model = Linear(heads=1, dtype=jnp.float64)
    state, batch = start(model, 4), make_batch(32, 4)
    share = np.random.default_rng(1).random(32)

    def mix(batch):
        """Of all rows by those before them."""
        own = share[:, None, None, None]
        mixed = own * batch["image"] + (1 - own) * jnp.roll(batch["image"], 1, axis=0)
        other = jnp.roll(batch["label"], 1)
        return batch | {"image": mixed, "other_label": other, "share": jnp.asarray(share)}

    mixed = {name: np.asarray(values) for name, values in mix(batch).items()}
    x, params = mixed["image"].reshape(32, -1), flat(state.params)
    rows, others = np.arange(32), np.roll(batch["label"], 1)
    target = np.zeros((32, 7))
    target[rows, batch["label"]] += share
    target[rows, others] += 1 - share
    target = 0.9 * target + 0.1 / 7
    losses, expected = {}, {}
    for head, weight in {"main": 1.0, "aux0": 0.3}.items():
        logits = x @ params[f"{head}/kernel"] + params[f"{head}/bias"]
        softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        losses[head] = -(target * np.log(softmax)).sum(axis=1).mean()
        step_of_kernel = RATE * weight * x.T @ (softmax - target) / 32
        expected[head] = params[f"{head}/kernel"] - step_of_kernel
    best = (x @ params["main/kernel"] + params["main/bias"]).argmax(axis=1)
    mainly = np.where(share >= 0.5, batch["label"], others)
    right = np.mean(best == mainly)
    assert right not in (np.mean(best == batch["label"]), np.mean(best == others))

    options = {"label_smoothing": 0.1, "accumulation": accumulation, "mix": mix}
    after, metrics = make(model, **options)(state, batch)
    np.testing.assert_allclose(metrics["main_loss"], losses["main"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], losses["main"] + 0.3 * losses["aux0"], rtol=1e-12)
    np.testing.assert_allclose(metrics["top1"], right, rtol=1e-12)
    for head, kernel in expected.items():
        np.testing.assert_allclose(after.params[head]["kernel"], kernel, rtol=1e-10, atol=1e-12)


def test_the_program_mixes_whole_batches_where_the_config_says_so(config, monkeypatch):
    seen = []

    def spy(keys_B, batch, mixup, cutmix):
        seen.append((len(keys_B), batch["image"].shape, batch["image"].dtype, mixup, cutmix))
        others = {"other_label": batch["label"], "share": jnp.ones(len(keys_B))}
        return batch | others

    monkeypatch.setattr("inception_jax.data.mix.mix", spy)
    mesh = sharding.make_mesh(config.mesh)
    config.accumulation = 2
    for config.data.mixup, config.data.cutmix in ((0.0, 0.0), (0.3, 0.0), (0.0, 0.7)):
        run = program.make(config, mesh, num_examples=320, num_classes=10)
        jax.eval_shape(run.train_step, run.state, run.train_batch[16])
    whole = (32, (32, 16, 16, 3), jnp.float32)
    assert seen == [(*whole, 0.3, 0.0), (*whole, 0.0, 0.7)]


def test_a_network_without_auxiliary_heads_has_the_main_loss_alone():
    model = Linear()
    _, metrics = make(model)(start(model, 4), make_batch(8, 4))
    assert metrics["loss"] == metrics["main_loss"] > 0


def test_batch_norm_takes_each_parts_own_statistics_in_turn(x64):
    """Part p is rows p, p + 4, ...; the running statistics move once a part, the loss is theirs."""
    model = Linear(batch_norm=True, dtype=jnp.float64)
    state, batch = start(model, 2), make_batch(12, 2)
    before = flat(state.params) | flat(state.batch_stats)
    mean, var, losses = before["bn/mean"], before["bn/var"], []
    for part in range(4):
        x, labels = batch["image"].reshape(12, -1)[part::4], batch["label"][part::4]
        mean, var = 0.9 * mean + 0.1 * x.mean(axis=0), 0.9 * var + 0.1 * x.var(axis=0)
        normal = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) + before["bn/bias"]
        logits = normal @ before["main/kernel"] + before["main/bias"]
        losses += [cross_entropy(logits, labels)[0].mean()]

    after, metrics = make(model, accumulation=4)(state, batch)
    np.testing.assert_allclose(after.batch_stats["bn"]["mean"], mean, rtol=1e-10)
    np.testing.assert_allclose(after.batch_stats["bn"]["var"], var, rtol=1e-10)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-10)


def test_dropout_differs_between_steps_parts_and_seeds_and_not_between_runs():
    """Else a resumed run would differ from an unbroken one, or one mask would serve for ever."""
    model = Linear(dropout=0.5)
    state, two = start(model, 4), make_batch(2, 4)

    def loss(number, parts, seed=0):
        """Of step `number` on two images, once in each part."""
        batch = {name: np.repeat(rows, parts, axis=0) for name, rows in two.items()}
        now = step.TrainState(jnp.int32(number), state.params, {}, state.opt_state)
        return make(model, accumulation=parts, seed=seed)(now, batch)[1]["loss"].item()

    for parts in (1, 4):
        losses = [loss(0, parts), loss(1, parts), loss(2, parts), loss(0, parts, seed=1)]
        assert np.diff(sorted(losses)).min() > 1e-4
        assert loss(0, parts) == losses[0]
    assert abs(loss(0, 2) - loss(0, 4)) > 1e-4  # were all parts' masks alike, so would these be


@pytest.mark.parametrize("classes", [7, 3])
def test_evaluation_counts_every_image_once_and_no_padding(classes):
    """Padding rows are made to be right, so that counting any of them shows."""
    model = Linear(classes=classes, heads=1, batch_norm=True)
    state, batch = start(model, 4), make_batch(40, 4, classes)
    v = flat(state.params) | flat(state.batch_stats)
    x = (batch["image"].reshape(40, -1) - v["bn/mean"]) / np.sqrt(1 + 1e-5) + v["bn/bias"]
    logits = x @ v["main/kernel"] + v["main/bias"]
    batch["valid"] = np.arange(40) % 3 != 0
    batch["label"] = np.where(batch["valid"], batch["label"], logits.argmax(axis=1))

    valid, labels = batch["valid"], batch["label"]
    better = (logits > logits[np.arange(40), labels][:, None]).sum(axis=1)
    expected = {
        "top1": np.sum(better[valid] < 1),
        "top5": np.sum(better[valid] < 5),
        "loss": cross_entropy(logits, labels)[0][valid].sum(),
        "examples": 26,
    }
    assert 0 < expected["top1"] < expected["top5"] <= 26
    assert (expected["top5"] == 26) == (classes == 3)  # five of three are all
    sums = jit(step.make_eval_step(model, pixels))(state, batch)
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)


def test_evaluation_is_of_the_average_and_its_statistics_where_there_is_one():
    model = Linear(batch_norm=True)
    state, other = start(model, 4), start(model, 4, seed=5)
    batch = make_batch(40, 4) | {"valid": np.ones(40, bool)}
    eval_step = jit(step.make_eval_step(model, pixels))
    own, averaged = eval_step(state, batch), eval_step(other, batch)
    assert own["loss"] != averaged["loss"]
    state.average = average.start(other.variables)
    assert eval_step(state, batch) == averaged


def test_an_update_takes_the_average_along_and_leaves_training_alone():
    """The average of two steps by hand; parameters and statistics as without."""
    model = Linear(batch_norm=True)
    batches = [make_batch(8, 4, seed=seed) for seed in (2, 3)]
    update = average.make_update(
        ConfigDict({"name": "plain", "start_epochs": 0.0, "decay": 0.5}), Fraction(1), 100
    )
    with_average = make(model, update_average=update)
    state = start(model, 4)
    state.average = average.start(jax.tree.map(jnp.zeros_like, state.variables))
    without, seen = start(model, 4), []
    for batch in batches:
        state, _ = with_average(state, batch)
        without, _ = make(model)(without, batch)
        seen.append(flat(without.variables))
    assert flat(state.evaluated).keys() == seen[0].keys()
    for name, value in flat(state.variables).items():
        np.testing.assert_array_equal(value, seen[1][name], err_msg=name)
        mean = (seen[0][name] + seen[1][name]) / 2
        np.testing.assert_allclose(flat(state.evaluated)[name], mean, rtol=1e-5, atol=1e-6)


class Convolutions(nn.Module):
    """Convolutions with batch norm, then a classifier; `layers` of them on what the others give."""

    layers: tuple[str, ...]
    evaluated: bool = False  # training as evaluation: what a frozen layer is to do

    @nn.compact
    def __call__(self, x, train=False):
        unit = Unit(1.0, jnp.float64, train and not self.evaluated, nn.initializers.he_normal())
        unit = unit._replace(batch_norm=True)
        for name in self.layers:
            x = unit.conv(x, name, 5, 3, padding=1)
        if self.evaluated:
            return x
        return Logits(unit.classify(x.mean((1, 2)), "last", 7))


FROZEN = ("first/.*", "first_bn/.*")


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("name", validate.OPTIMISERS)
def test_the_rest_trains_on_what_is_frozen_as_on_data(name, accumulation, x64):
    """As if the frozen layer's output, with its running statistics, were the images; its bits stay.

    With what else could move it: decay, a limit on filters, clipping, an average.
    """
    fields = {"name": name, "weight_decay": 0.05, "max_filter_rms": 0.05, "clip_norm": 0.5}
    fields |= {"epsilon": 1e-2, "momentum_form": "caffe"}
    config = googlenet.get_config().optim
    config.update(fields)
    update_average = average.make_update(
        ConfigDict({"name": "plain", "start_epochs": 0.0, "decay": 0.5}), Fraction(1), 100
    )

    def train(model, variables, batches, freeze):
        config.freeze = freeze
        optimizer = optim.make_optimizer(config, lambda t: 0.1, variables["params"])
        frozen = optim.frozen(freeze, variables)
        options = {"accumulation": accumulation, "update_average": update_average, "frozen": frozen}
        update = make(model, optimizer, **options)
        state = step.init_state(variables, optimizer, averaged=True)
        for batch in batches:
            state, metrics = update(state, batch)
        return metrics, flat(state.variables), flat(state.evaluated)

    whole = Convolutions(("first", "second"))
    variables = start(whole, 6).variables
    variables["batch_stats"]["first_bn"]["mean"] -= 0.2
    for tree in variables.values():
        for module in tree.values():
            for leaf in module:
                module[leaf] = module[leaf].at[..., 0].set(-0.0 if leaf != "var" else 2.0)
    batches = [make_batch(16, 6, seed=seed) for seed in range(3)]
    metrics, *ours = train(whole, variables, batches, FROZEN)

    features = [
        batch | {"image": Convolutions(("first",), evaluated=True).apply(variables, batch["image"])}
        for batch in batches
    ]
    rest = {
        kind: {layer: leaves for layer, leaves in tree.items() if not layer.startswith("first")}
        for kind, tree in variables.items()
    }
    expected, *theirs = train(Convolutions(("second",)), rest, features, ())
    for metric in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[metric], expected[metric], rtol=1e-10)
    before = flat(variables)
    for got, want in zip(ours, theirs, strict=True):  # what training has, then its average
        assert got.keys() == before.keys()
        for leaf, value in got.items():
            if "first" in leaf:
                assert value.tobytes() == before[leaf].tobytes(), leaf
            else:
                np.testing.assert_allclose(value, want[leaf], rtol=1e-9, atol=1e-12, err_msg=leaf)
                assert not np.array_equal(value, before[leaf]), leaf


def test_a_batch_norm_of_which_a_part_is_trained_goes_on_with_its_statistics():
    model = Linear(batch_norm=True)
    state, batch = start(model, 4), make_batch(8, 4)
    for freeze, still in ((("bn/scale",), False), (("bn/.*",), True)):
        after, _ = make(model, frozen=optim.frozen(freeze, state.variables))(state, batch)
        np.testing.assert_array_equal(after.params["bn"]["scale"], state.params["bn"]["scale"])
        for name, value in after.batch_stats["bn"].items():
            assert np.array_equal(value, state.batch_stats["bn"][name]) == still


def test_freezing_saves_the_backward_pass_below(x64):
    """Of two convolutions that is three of five: two forward, and of the upper one its kernel's."""
    model = Convolutions(("first", "second"))
    state, batch = start(model, 6), make_batch(8, 6)

    def convolutions(freeze):
        update = make(model, frozen=optim.frozen(freeze, state.variables))
        return str(jax.make_jaxpr(update.__wrapped__)(state, batch)).count("conv_general_dilated[")

    assert (convolutions(()), convolutions(FROZEN)) == (5, 3)


def test_a_parameter_frozen_on_a_resume_leaves_its_momentum_and_its_average_on_their_way(x64):
    """The momentum falls without a gradient or a decay; the average goes on towards it."""
    model = Linear(dtype=jnp.float64)
    config = googlenet.get_config().optim
    config.update({"weight_decay": 0.1, "freeze": ("main/kernel",)})
    state, batch = start(model, 4), make_batch(8, 4)
    optimizer = optim.make_optimizer(config, lambda t: 0.1, state.params)
    update = make(
        model,
        optimizer,
        frozen=optim.frozen(config.freeze, state.variables),
        update_average=average.make_update(
            ConfigDict({"name": "plain", "start_epochs": 0.0, "decay": 0.5}), Fraction(1), 100
        ),
    )
    state = step.init_state(state.variables, optimizer, averaged=True)
    state.step = jnp.int32(1)
    state.average = average.start(jax.tree.map(jnp.zeros_like, state.variables))
    state.opt_state = jax.tree.map(jnp.ones_like, state.opt_state)
    after, _ = update(state, batch)
    kernel = state.params["main"]["kernel"]
    np.testing.assert_allclose(after.evaluated["params"]["main"]["kernel"], kernel / 2, rtol=1e-12)
    momenta = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.shape == kernel.shape]
    assert len(momenta) == 1
    np.testing.assert_allclose(momenta[0], 0.9, rtol=1e-12)


def test_padding_of_any_content_leaves_the_sums_alone():
    """Also where it holds what makes the network overflow."""
    model = Linear()
    state, batch = start(model, 4), make_batch(9, 4)
    eval_step = jit(step.make_eval_step(model, pixels))
    whole = eval_step(state, batch | {"valid": np.ones(9, bool)})
    padded = {
        "image": np.concatenate([batch["image"], np.full((3, 4, 4, 3), np.nan)]),
        "label": np.concatenate([batch["label"], np.zeros(3, np.int32)]),
        "valid": np.arange(12) < 9,
    }
    for name, value in eval_step(state, padded).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-6, err_msg=name)


def test_the_compiled_program_learns_purely_compiles_once_and_reuses_its_memory(config):
    """The demo's network, with dropout, in two parts, on one batch again and again."""
    config.accumulation = 2
    config.schedule.warmup_epochs = config.optim.weight_decay = 0.0
    mesh = sharding.make_mesh(config.mesh)
    run = program.make(config, mesh, num_examples=320, num_classes=10)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(256, size=(32, 16, 16, 3), dtype=np.uint8),
        "label": rng.integers(10, size=32).astype(np.int32),
        "epoch": np.zeros(32, np.int32),
        "example": np.arange(32, dtype=np.int32),
    }
    batch = sharding.place_batch(batch, mesh)

    def train(state, steps=30):
        losses = []
        for _ in range(steps):
            old = state
            state, metrics = run.train_step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))  # donated
            losses.append(metrics["loss"].item())
        return state, losses

    first = jax.tree.map(np.asarray, run.init())
    state, losses = train(run.init())
    again, same = train(run.init())
    assert run.train_step._cache_size() == 1
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    assert losses == same and state.step == 30
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    still = jax.tree.map(lambda a, b: (np.asarray(a) == b).all(), state.params, first.params)
    assert not any(flat(still).values()), [name for name, value in flat(still).items() if value]

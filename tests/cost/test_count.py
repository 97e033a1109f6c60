"""Counts against loops over every tap, arithmetic by hand, published totals and XLA's count."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from test_table1 import INPUT_CHANNELS, MODULES, PAPER

from configs import imagenet
from inception_jax import models
from inception_jax.cost import count
from inception_jax.cost.report import Report


class One(nn.Module):
    """A network of one layer."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x_BHWC, train=False):
        return self.layer(x_BHWC)


def taps_loop(size, window, strides, padding):
    """Taps of all windows on a square map, and those of them that fall on pixels."""
    on_pixel = np.pad(np.ones((size, size), int), padding)
    nominal = valid = 0
    for top in range(0, on_pixel.shape[0] - window[0] + 1, strides[0]):
        for left in range(0, on_pixel.shape[1] - window[1] + 1, strides[1]):
            for i, j in np.ndindex(*window):
                nominal += 1
                valid += on_pixel[top + i, left + j]
    return nominal, valid


def pairs_loop(inputs, outputs, groups):
    """Pairs of an input and an output channel that are in the same group."""
    return sum(
        i // (inputs // groups) == o // (outputs // groups)
        for i in range(inputs)
        for o in range(outputs)
    )


@pytest.mark.parametrize(
    "size, window, strides, padding, groups",
    [
        (9, (1, 1), (1, 1), ((0, 0), (0, 0)), 1),
        (9, (3, 3), (1, 1), ((1, 1), (1, 1)), 1),
        (9, (3, 3), (1, 1), ((0, 0), (0, 0)), 3),
        (10, (3, 3), (2, 2), ((1, 1), (1, 1)), 1),  # the last window ends at the edge
        (11, (5, 5), (1, 1), ((2, 2), (2, 2)), 3),
        (20, (7, 7), (2, 2), ((3, 3), (3, 3)), 1),
        (35, (11, 11), (4, 4), ((0, 0), (0, 0)), 1),
        (33, (11, 11), (4, 4), ((2, 2), (2, 2)), 3),
        (13, (3, 5), (2, 3), ((2, 0), (1, 3)), 1),
        (4, (5, 5), (1, 1), ((2, 2), (2, 2)), 1),  # the window is larger than the map
        (7, (3, 3), (3, 3), ((5, 5), (5, 5)), 1),  # windows on padding alone
    ],
)
def test_a_convolution_is_counted_as_by_a_loop_over_every_tap(
    size, window, strides, padding, groups
):
    conv = nn.Conv(6, window, strides, padding, feature_group_count=groups, use_bias=False)
    (layer,) = count.layers(One(conv), size)
    nominal, valid = taps_loop(size, window, strides, padding)
    pairs = pairs_loop(3, 6, groups)
    assert (layer.multiply_adds, layer.valid_multiply_adds) == (nominal * pairs, valid * pairs)
    assert layer.parameters == layer.weights == math.prod(window) * pairs
    assert layer.window == f"{window[0]}x{window[1]}/{strides[0]}"
    assert count.xla_flops(One(conv), size) == 2 * valid * pairs


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (1000, 4096)])
def test_a_matrix_is_counted_as_by_a_loop_over_its_products(shape):
    outputs, inputs = shape

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x_BHWC, train=False):
            x_BF = jnp.broadcast_to(x_BHWC[:, 0, 0, :1], (1, inputs))
            return nn.Dense(outputs, name="fc")(x_BF)

    (layer,) = count.layers(Flat(), 1)
    products = sum(inputs for _ in range(outputs))
    assert (layer.multiply_adds, layer.valid_multiply_adds) == (products, products)
    assert (layer.weights, layer.parameters) == (products, products + outputs)
    assert (layer.output, layer.depth, layer.other_flops) == ((outputs,), 1, outputs)


class Small(nn.Module):
    """Two branches of different length, normalisation, poolings, and a head for training."""

    @nn.compact
    def __call__(self, x_BHWC, train=False):
        x_BHWC = nn.relu(nn.Conv(4, (3, 3), 2, 1, name="stem")(x_BHWC))  # 9x9 to 5x5
        left = nn.Conv(2, (1, 1), use_bias=False, name="left")(x_BHWC)
        right = nn.relu(nn.Conv(3, (1, 1), name="right_reduce")(x_BHWC))
        right = nn.Conv(6, (3, 3), padding=1, feature_group_count=3, name="right")(right)
        with jax.named_scope("output"):
            x_BHWC = jnp.concatenate((left, right), axis=-1)
        x_BHWC = nn.BatchNorm(use_running_average=not train, name="norm")(x_BHWC)
        with jax.named_scope("pool"):
            x_BHWC = nn.max_pool(x_BHWC, (3, 3), (2, 2))  # 5x5 to 2x2
        if train:
            nn.Dense(9, name="head")(x_BHWC.reshape(x_BHWC.shape[0], -1))
        with jax.named_scope("mean"):
            x_BF = jnp.mean(x_BHWC, axis=(1, 2))
        return nn.Dense(7, name="fc")(x_BF)


def test_every_scope_is_a_row_with_what_is_counted_by_hand():
    expected = [
        # name, kind, window, output, depth, weights, parameters, nominal, valid, flops
        # 5 windows along a side, 3 taps each, of which the outer two hang over by 1
        (
            *("stem", "convolution", "3x3/2", (5, 5, 4), 1, 108, 112),
            *(25 * 27 * 4, 13 * 13 * 3 * 4, 2 * 100),  # bias and ReLU
        ),
        ("left", "convolution", "1x1/1", (5, 5, 2), 2, 8, 8, 25 * 8, 25 * 8, 0),
        ("right_reduce", "convolution", "1x1/1", (5, 5, 3), 2, 12, 15, 25 * 12, 25 * 12, 2 * 75),
        (
            *("right", "convolution", "3x3/1", (5, 5, 6), 3, 54, 60),
            *(25 * 9 * 6, 13 * 13 * 6, 150),
        ),
        ("output", "concatenation", "", (5, 5, 8), 3, 0, 0, 0, 0, 0),
        # x - mean, times scale, plus bias: 200 each; variance + epsilon, times gamma: 8 each
        ("norm", "batch norm", "", (5, 5, 8), 3, 0, 16, 0, 0, 3 * 200 + 2 * 8),
        ("pool", "max pool", "3x3/2", (2, 2, 8), 3, 0, 0, 0, 0, 32 * 8),
        ("mean", "average pool", "", (8,), 3, 0, 0, 0, 0, 8 * 3 + 8),  # sums, then a division
        ("fc", "fully connected", "", (7,), 4, 56, 63, 56, 56, 7),
        ("head", "fully connected", "", (9,), 4, 288, 297, 288, 288, 9),
    ]
    found = count.layers(Small(), 9)
    assert [dataclasses.astuple(layer)[:-1] for layer in found] == expected
    assert [layer.name for layer in found if layer.training_only] == ["head"]


def test_a_small_networks_flops_are_xlas():
    rows = [layer for layer in count.layers(Small(), 9) if not layer.training_only]
    ours = sum(2 * layer.valid_multiply_adds + layer.other_flops for layer in rows)
    assert count.xla_flops(Small(), 9) == pytest.approx(ours, abs=8)  # an rsqrt for each channel


def report(recipe, **fields):
    config = imagenet.get_config(recipe)
    for name, value in fields.items():
        config.model[name] = value
    return Report(recipe, config, 1000)


@pytest.fixture(scope="module")
def reports():
    return {recipe: report(recipe) for recipe in imagenet.RECIPES}


def vgg(*convolutions):
    """Rows for the numbers of convolutions in the five stages."""
    channels, before, rows = (64, 128, 256, 512, 512), 3, []
    for stage, number in enumerate(convolutions):
        for _ in range(number):
            rows.append((224 >> stage, channels[stage], 3, before))
            before = channels[stage]
    return rows, 512 * 7 * 7


# Convolutions: side of the map that comes of it, channels, window, channels that each filter sees;
# then the features that the first of three fully connected layers sees. From the papers' figures.
CHAINS = {
    "alexnet": (
        [
            (55, 96, 11, 3),
            (27, 256, 5, 48),
            (13, 384, 3, 256),
            (13, 384, 3, 192),
            (13, 256, 3, 192),
        ],
        256 * 6 * 6,
    ),
    "alexnet_single_tower": (
        [
            (55, 64, 11, 3),
            (27, 192, 5, 64),
            (13, 384, 3, 192),
            (13, 256, 3, 384),
            (13, 256, 3, 256),
        ],
        256 * 6 * 6,
    ),
    "zfnet": (
        [
            (110, 96, 7, 3),
            (26, 256, 5, 96),
            (13, 384, 3, 256),
            (13, 384, 3, 384),
            (13, 256, 3, 384),
        ],
        256 * 6 * 6,
    ),
    "vgg11": vgg(1, 1, 2, 2, 2),
    "vgg13": vgg(2, 2, 2, 2, 2),
    "vgg16": vgg(2, 2, 3, 3, 3),
    "vgg19": vgg(2, 2, 4, 4, 4),
    "sppnet": (
        [
            (110, 96, 7, 3),
            (26, 256, 5, 96),
            (13, 384, 3, 256),
            (13, 384, 3, 384),
            (13, 256, 3, 384),
        ],
        256 * 50,  # 36 + 9 + 4 + 1 bins
    ),
    "sppnet_overfeat7": (
        [(109, 96, 7, 3), (36, 256, 5, 96), (18, 512, 3, 256), *4 * [(18, 512, 3, 512)]],
        512 * 50,
    ),
}
# Published or reimplemented parameters, biases included, and layers with weights.
TOTALS = {
    "googlenet": (6_998_552, 22),
    "poly": (6_998_552, 22),
    "torchvision": (6_624_904, 22),
    "alexnet": (60_965_224, 8),
    "alexnet_single_tower": (61_100_840, 8),
    "zfnet": (62_357_608, 8),
    "vgg11": (132_863_336, 11),
    "vgg13": (133_047_848, 13),
    "vgg16": (138_357_544, 16),
    "vgg19": (143_667_240, 19),
    "sppnet": (77_037_672, 8),
}


@pytest.mark.parametrize("recipe", CHAINS)
def test_layers_in_a_row_cost_what_the_papers_figures_say(recipe, reports):
    convolutions, features = CHAINS[recipe]
    expected = [
        (side * side * channels * window * window * seen, channels * window * window * seen, depth)
        for depth, (side, channels, window, seen) in enumerate(convolutions, start=1)
    ]
    matrices = [(features, 4096), (4096, 4096), (4096, 1000)]
    expected += [(a * b, a * b, len(convolutions) + i) for i, (a, b) in enumerate(matrices, 1)]
    found = [layer for layer in reports[recipe].layers if layer.weights]
    assert [(row.multiply_adds, row.weights, row.depth) for row in found] == expected


def test_published_totals(reports):
    for recipe, (parameters, depth) in TOTALS.items():
        totals = reports[recipe].totals()
        assert (totals["parameters"], totals["depth"]) == (parameters, depth), recipe
    assert reports["googlenet"].totals()["training_parameters"] == 13_378_280
    assert reports["torchvision"].totals()["training_parameters"] == 13_004_888
    for recipe, millions in {"googlenet": "1583", "vgg16": "15470", "alexnet": "724"}.items():
        assert f"{reports[recipe].totals()['multiply_adds'] / 1e6:.0f}" == millions
    assert report("googlenet", module="naive").totals()["depth"] == 13  # 3 + 9 modules + 1


@pytest.mark.parametrize("recipe", imagenet.RECIPES)
def test_no_parameter_is_left_out_or_counted_twice(recipe, reports):
    config = imagenet.get_config(recipe)
    module, size = models.build(config.model, 1000), config.data.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

    def total(train):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = jax.eval_shape(lambda x: module.init(keys, x, train=train), images)
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))

    layers = reports[recipe].layers
    assert sum(layer.parameters for layer in layers) == total(train=True)
    assert sum(layer.parameters for layer in layers if not layer.training_only) == total(False)


def test_googlenets_reductions_and_what_they_save(reports):
    """The lecture's example, 3a's 3x3 branch: 42 % fewer multiplications."""
    reduction, rest = reports["googlenet"].branches()["inception_3a/3x3"]
    (naive,) = report("googlenet", module="naive").branches()["inception_3a/3x3"]
    assert (reduction, rest) == (28 * 28 * 96 * 192, 28 * 28 * 128 * 9 * 96)
    assert naive == 28 * 28 * 128 * 9 * 192
    shown = [f"{n / 1e6:.1f}" for n in (reduction, rest, naive)]
    assert shown == ["14.5", "86.7", "173.4"]
    assert f"{1 - (reduction + rest) / naive:.0%}" == "42%"


def test_googlenets_valid_taps_follow_from_table_1(reports):
    """Along a side of `side` pixels, p pixels of padding take 1 + ... + p taps at either end."""

    def valid(side, window, pairs):
        p = window // 2
        return (side * window - p * (p + 1)) ** 2 * pairs

    # 112 windows of 7x7/2: at the start two hang over, by 3 and 1 pixels, at the end one by 2
    expected = {"conv1": (7 * 112 - 3 - 1 - 2) ** 2 * 3 * 64}
    expected["conv2"] = 56 * 56 * 64 * 64 + valid(56, 3, 64 * 192)
    for row in MODULES:
        (side, *_), _, (n1, reduce3, n3, reduce5, n5, pool), *_ = PAPER[row]
        expected[f"inception_{row}"] = (
            side * side * INPUT_CHANNELS[row] * (n1 + reduce3 + reduce5 + pool)
            + valid(side, 3, reduce3 * n3)
            + valid(side, 5, reduce5 * n5)
        )
    expected["loss3"] = 1024 * 1000
    found = {
        name: sum(layer.valid_multiply_adds for layer in layers)
        for name, layers in reports["googlenet"].blocks().items()
    }
    assert found == expected
    assert f"{2 * sum(found.values()) / 1e9:.3f}" == "3.009"


VARIANTS = [
    *((recipe, {}) for recipe in imagenet.RECIPES),
    ("googlenet", {"module": "naive"}),
    ("googlenet", {"module": "naive", "projection": True}),
    ("googlenet", {"batch_norm": True}),
    ("googlenet", {"auxiliary_bins": 4}),
    ("vgg16", {"batch_norm": True}),
]


@pytest.mark.parametrize("recipe, fields", VARIANTS, ids=str)
def test_xla_agrees_and_the_rest_is_explained(recipe, fields, reports):
    found = report(recipe, **fields) if fields else reports[recipe]
    xla = count.xla_flops(found._module, found.image_size)
    twice = 2 * sum(layer.valid_multiply_adds for layer in found.evaluated)
    assert twice == pytest.approx(xla, rel=0.02)
    assert twice + sum(layer.other_flops for layer in found.evaluated) == pytest.approx(
        xla, rel=1e-5
    )


@pytest.mark.parametrize("recipe", ["googlenet", "vgg16"])
def test_xla_agrees_in_bfloat16_but_for_the_images_cast(recipe):
    found = report(recipe, dtype="bfloat16")
    xla = count.xla_flops(found._module, 224)
    twice = 2 * sum(layer.valid_multiply_adds for layer in found.evaluated)
    assert twice == pytest.approx(xla, rel=0.02)
    rest = xla - twice - sum(layer.other_flops for layer in found.evaluated)
    assert rest == pytest.approx(224 * 224 * 3, abs=1e-5 * xla)


@pytest.mark.parametrize("recipe, size", [("googlenet", 224), ("alexnet", 67)])
def test_what_the_cpu_runs_is_as_much_within_two_percent(recipe, size):
    """Compiled, fused and optimised, unlike the counts above."""
    module = models.build(imagenet.get_config(recipe).model, 1000)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    keys = {"params": jax.random.key(0)}
    variables = jax.eval_shape(lambda x: module.init(keys, x), images)
    compiled = jax.jit(module.apply).lower(variables, images).compile()
    flops = compiled.cost_analysis()["flops"]
    rows = [layer for layer in count.layers(module, size) if not layer.training_only]
    assert 2 * sum(row.valid_multiply_adds for row in rows) == pytest.approx(flops, rel=0.02)
    if recipe == "googlenet":
        assert flops == pytest.approx(3.035e9, rel=5e-4)

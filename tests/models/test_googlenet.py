"""GoogLeNet against Table 1, the reference's names, and a second implementation in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from reference import (
    TORCHVISION,
    Layers,
    agree,
    bin_pool_loop,
    build,
    forward,
    init,
    jit,
    lrn_loop,
    numbers,
    pad,
    photos,
    pool,
    run,
    shapes,
    windows,
)

from inception_jax.errors import UserError
from inception_jax.models.googlenet import GoogLeNet

# The paper's Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
TABLE_1 = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
ROWS = ("conv1", "conv2", *(f"inception_{module}" for module in TABLE_1))
KILO_WEIGHTS = (9.2, 112.0, 159.5, 379.0, 366.8, 438.0, 497.5, 590.5, 847.0, 1018.0, 1409.0)

TINY = {"num_classes": 7, "width": 0.125}  # 16 channels become 2
SMALL = {"batch_norm": True, "small_stem": True}
STILL = {"dropout": 0.0, "auxiliary_dropout": 0.0}
NO_HEADS = {"auxiliary_heads": False}


class Reference(Layers):
    """The network once more, in NumPy and float64, from the paper and the reference's prototxt."""

    def __init__(
        self,
        variables,
        small_stem=False,
        naive=False,
        branches=("1x1", "3x3", "5x5", "pool"),
        projection=True,
        modules=tuple(TABLE_1),
        pool4_window=3,
        floor=(),
        auxiliary_bins=0,
        lrn=(1, 1e-4),  # k and alpha, or None
        **options,
    ):
        super().__init__(variables, **options)
        self.small_stem, self.naive, self.branches = small_stem, naive, branches
        self.projection, self.modules, self.lrn = projection, modules, lrn
        self.pool4_window, self.floor, self.auxiliary_bins = pool4_window, floor, auxiliary_bins

    def __call__(self, x):
        if self.small_stem:
            x = self.same(x, "conv1/3x3")
        else:
            x = pool(self.conv(x, "conv1/7x7_s2", 2, 3), 3, 2, ceil="pool1" not in self.floor)
        x = self.norm(self.same(self.same(self.norm(x), "conv2/3x3_reduce"), "conv2/3x3"))
        auxiliary = []
        for module in TABLE_1:
            if module in ("3a", "4a", "5a"):
                name = {"3a": "pool2", "4a": "pool3", "5a": "pool4"}[module]
                window = self.pool4_window if name == "pool4" else 3
                x = pool(x, window, 2, ceil=name not in self.floor)
            if module not in self.modules:
                continue
            x = self.inception(x, f"inception_{module}/")
            if self.train and module in ("4a", "4d"):
                auxiliary.append(self.auxiliary(x, {"4a": "loss1/", "4d": "loss2/"}[module]))
        return (self.dense(x.mean(axis=(1, 2)), "loss3/classifier"), *auxiliary)

    def inception(self, x, name):
        def reduced(branch):
            return x if self.naive else self.same(x, f"{name}{branch}_reduce")

        branches = []
        if "1x1" in self.branches:
            branches.append(self.same(x, name + "1x1"))
        if "3x3" in self.branches:
            branches.append(self.same(reduced("3x3"), name + "3x3"))
        if "5x5" in self.branches:
            branches.append(self.same(reduced("5x5"), name + "5x5"))
        if "pool" in self.branches:
            pooled = windows(pad(x, 1, 1, -np.inf), 3).max(axis=(-2, -1))
            branches.append(self.same(pooled, name + "pool_proj") if self.projection else pooled)
        return np.concatenate(branches, axis=-1)

    def auxiliary(self, x, name):
        if self.auxiliary_bins:
            x = bin_pool_loop(x, self.auxiliary_bins, np.mean)
        else:
            x = windows(x, 5, 3).mean(axis=(-2, -1))
        x = self.same(x, name + "conv")
        hidden = np.maximum(self.dense(x.reshape(len(x), -1), name + "fc"), 0)
        return self.dense(hidden, name + "classifier")

    def same(self, x, name):
        return self.conv(x, name, pad=len(self.v[f"params/{name}/kernel"]) // 2)

    def norm(self, x):
        if self.lrn is None:
            return x
        k, alpha = self.lrn
        return lrn_loop(x, size=5, alpha=alpha, beta=0.75, k=k)


def published(num_classes, side=None, width=1.0, batch_norm=False, small_stem=False):
    """Shapes by the reference's names, from Table 1; with auxiliary heads if stage 4's side."""
    stem = {"conv1/3x3": (3, 3, 64)} if small_stem else {"conv1/7x7_s2": (7, 3, 64)}
    convs = stem | {"conv2/3x3_reduce": (1, 64, 64), "conv2/3x3": (3, 64, 192)}
    channels = 192
    for module, (n1, reduce3, n3, reduce5, n5, proj) in TABLE_1.items():
        convs |= {
            f"inception_{module}/1x1": (1, channels, n1),
            f"inception_{module}/3x3_reduce": (1, channels, reduce3),
            f"inception_{module}/3x3": (3, reduce3, n3),
            f"inception_{module}/5x5_reduce": (1, channels, reduce5),
            f"inception_{module}/5x5": (5, reduce5, n5),
            f"inception_{module}/pool_proj": (1, channels, proj),
        }
        channels = n1 + n3 + n5 + proj
    dense = {"loss3/classifier": (int(1024 * width), num_classes)}
    if side:
        cells = ((side - 5) // 3 + 1) ** 2
        for head, inputs in (("loss1", 512), ("loss2", 528)):
            convs[f"{head}/conv"] = (1, inputs, 128)
            dense[f"{head}/fc"] = (int(cells * 128 * width), int(1024 * width))
            dense[f"{head}/classifier"] = dense["loss3/classifier"]
    result = {f"params/{name}/kernel": shape for name, shape in dense.items()}
    result |= {f"params/{name}/bias": shape[1:] for name, shape in dense.items()}
    norm = "params/{0}_bn/scale params/{0}_bn/bias batch_stats/{0}_bn/mean batch_stats/{0}_bn/var"
    vectors = norm if batch_norm else "params/{0}/bias"
    for name, (window, *channels) in convs.items():
        inputs, out = (c if c == 3 else int(c * width) for c in channels)
        result[f"params/{name}/kernel"] = (window, window, inputs, out)
        result |= dict.fromkeys(vectors.format(name).split(), (out,))
    return result


def test_parameters_are_as_many_as_published_in_all_and_in_every_row_of_table_1():
    model, count = GoogLeNet(1000), lambda found: sum(map(math.prod, found.values()))
    every = shapes(model, 224)
    assert count(every) == 13_378_280
    assert count(shapes(model, 224, train=False)) == 6_998_552
    assert count(shapes(GoogLeNet(1000, auxiliary_heads=False), 224)) == 6_998_552
    kernels = {name: shape for name, shape in every.items() if name.endswith("kernel")}
    for row, expected in zip(ROWS, KILO_WEIGHTS, strict=True):
        of_row = {name: s for name, s in kernels.items() if name.startswith(f"params/{row}/")}
        assert round(count(of_row) / 1024, 1) == expected, row


@pytest.mark.parametrize(
    "options, size, side",
    [
        ({}, 224, 14),
        ({}, 288, 18),
        (NO_HEADS, 224, None),
        ({"width": 0.25}, 224, 14),
        ({"batch_norm": True}, 224, 14),
        (SMALL, 56, 14),
        (SMALL | NO_HEADS | {"width": 0.125}, 16, None),
    ],
)
def test_names_and_shapes_are_the_references_so_public_weights_load(options, size, side):
    """And each switch changes what it says, nothing else."""
    switches = {k: v for k, v in options.items() if k != "auxiliary_heads"}
    assert shapes(GoogLeNet(10, **options), size) == published(10, side, **switches)


def capture(model, size):
    images = jnp.zeros((1, size, size, 3))
    return model.apply(init(model, size), images, capture_intermediates=True)[1]["intermediates"]


def test_over_blocks_of_pixels_it_computes_the_same(x64):
    """Of the same weights; images of an odd size have a last block that is not full."""
    model = GoogLeNet(**TINY, **STILL, dtype="float64", space_to_depth=True)
    variables = numbers(model, 91)
    got, _ = run(model, variables, photos(2, 91), train=True)
    agree(got, Reference(variables, train=True)(photos(2, 91)))


@pytest.mark.parametrize("small_stem", [False, True])
def test_maps_shrink_as_the_references_do(small_stem):
    """Sizes whose halves are even, odd, or both in turn."""
    places = ("conv1", "conv2", "inception_3b", "inception_4e", "inception_5b")
    for size in (224, 225, 227, 98, 31):
        sides = [size] * 2 if small_stem else [len(range(0, size + 6 - 7 + 1, 2))]
        while len(sides) < 5:  # a window wherever a pixel is not yet covered
            sides.append(1 + len(range(3, sides[-1], 2)))
        sides = [112, 56, 28, 14, 7] if (size, small_stem) == (224, False) else sides
        model = GoogLeNet(**TINY, **NO_HEADS, small_stem=small_stem)
        maps = jax.eval_shape(functools.partial(capture, model, size))
        assert [maps[name]["__call__"][0].shape[1:3] for name in places] == [(s, s) for s in sides]


def test_the_published_network_computes_what_numpy_does(x64):
    """In training with both heads, and in evaluation at another size (even: SAME would differ)."""
    model = GoogLeNet(**TINY, **STILL, dtype="float64")
    variables = numbers(model, 91)
    for size, train in ((91, True), (46, False)):
        got, _ = run(model, variables, photos(2, size), train=train)
        agree(got, Reference(variables, train=train)(photos(2, size)))


def test_the_network_for_small_images_computes_what_numpy_does(x64):
    """Batch norm by the batch's statistics in training, by the running ones in evaluation."""
    model = GoogLeNet(**TINY, **STILL, **SMALL, dtype="float64")
    variables = numbers(model, 21)
    for size, train in ((21, True), (11, False)):
        got, statistics = run(model, variables, photos(4, size), train=train)
        reference = Reference(variables, **SMALL, lrn=None, train=train)
        agree(got, reference(photos(4, size)))
        for name, ours in statistics.items():
            expected = reference.updated[name] if train else variables[name]
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "fields, size, options",
    [
        (TORCHVISION, 75, {"pool4_window": 2, "auxiliary_bins": 4, "lrn": None}),
        # maps of 50, 24, 12 and 5 pixels: both leave a row out, and pool2 does not
        ({"floor_pools": "pool1,pool3"}, 99, {"floor": ("pool1", "pool3")}),
        (
            {"floor_pools": "pool2, pool4", "auxiliary_bins": 2},
            82,
            {"floor": ("pool2", "pool4"), "auxiliary_bins": 2},
        ),
        (
            {"module": "naive", "modules": "3a,4d,5b", "auxiliary_bins": 2, "lrn_k": 2.0},
            75,
            {
                "naive": True,
                "projection": False,
                "modules": ("3a", "4d", "5b"),
                "auxiliary_bins": 2,
                "lrn": (2, 1e-4),
            },
        ),
        (
            {
                "module": "naive",
                "projection": True,
                "branches": "pool,5x5",
                "modules": "4a,3b,4e",
                "kernel_5x5": 7,
                "lrn_alpha": 1e-3,
            },
            79,  # the least for 5x5 windows on stage 4's map
            {
                "naive": True,
                "branches": ("5x5", "pool"),
                "modules": ("3b", "4a", "4e"),
                "lrn": (1, 1e-3),
            },
        ),
        (
            {"projection": False, "branches": "3x3, pool", "modules": "4a,4d,5a", "lrn": False},
            79,
            {
                "projection": False,
                "branches": ("3x3", "pool"),
                "modules": ("4a", "4d", "5a"),
                "lrn": None,
            },
        ),
        (
            {"branches": "1x1", "modules": "3a,4a", "batch_norm": True, "lrn": True},
            79,
            {"branches": ("1x1",), "modules": ("3a", "4a")},
        ),
    ],
)
def test_other_choices_compute_what_numpy_does(fields, size, options, x64):
    """In training with what heads there are, and in evaluation at a smaller size."""
    model = build("googlenet", **STILL, width=0.125, dtype="float64", **fields)
    variables = numbers(model, size)
    norm = {"batch_norm": fields.get("batch_norm", False)}
    norm["epsilon"] = fields.get("batch_norm_epsilon", 1e-5)
    for side, train in ((size, True), (58, False)):
        got, _ = run(model, variables, photos(4, side), train=train)
        agree(got, Reference(variables, **norm, **options, train=train)(photos(4, side)))


@pytest.mark.parametrize(
    "fields, passed_on, kept",
    [
        ({"module": "naive"}, True, "1x1 3x3 5x5"),
        ({"module": "naive", "projection": True}, False, "1x1 3x3 5x5 pool_proj"),
        ({"module": "naive", "branches": "3x3,1x1"}, False, "1x1 3x3"),
        ({"projection": False}, True, "1x1 3x3_reduce 3x3 5x5_reduce 5x5"),
        ({"branches": "5x5"}, False, "5x5_reduce 5x5"),
        ({"branches": "pool", "projection": False}, True, ""),
    ],
)
def test_a_modules_channels_are_those_of_its_branches_side_by_side(fields, passed_on, kept):
    """A pooling without projection adds as many as come in: Figure 2a's modules grow and grow."""
    model = GoogLeNet(10, **NO_HEADS, **fields)
    maps = jax.eval_shape(functools.partial(capture, model, 224))
    kernels = {name for name in shapes(model, 224) if name.endswith("kernel")}
    inputs = 192
    for module, (n1, _, n3, _, n5, proj) in TABLE_1.items():
        widths = {"1x1": n1, "3x3": n3, "5x5": n5, "pool_proj": proj}
        outputs = sum(widths.get(name, 0) for name in kept.split()) + inputs * passed_on
        (map_of_module,) = maps[f"inception_{module}"]["__call__"]
        assert map_of_module.shape[-1] == outputs
        found = {name for name in kernels if f"/inception_{module}/" in name}
        assert found == {f"params/inception_{module}/{name}/kernel" for name in kept.split()}
        inputs = outputs


def test_first_parameters_are_drawn_as_in_the_reference():
    model = GoogLeNet(num_classes=10, width=0.25)
    variables = flatten_dict(jit(functools.partial(init, model, 80))(), sep="/")
    for name, values in variables.items():
        if name.endswith("bias"):
            assert np.all(values == np.float32(0 if "classifier" in name else 0.2)), name
        else:
            bound = np.sqrt(3 / np.prod(values.shape[:-1]))
            error = 5 * np.sqrt(0.8 / values.size)  # of the variance, five standard errors
            assert np.abs(values).max() <= bound, name
            assert abs(np.var(values) * 3 / bound**2 - 1) < error, name


def test_dropout_takes_40_and_70_percent_in_training_and_nothing_in_evaluation():
    """Kernels of 0 and biases of 0.2 make every feature 0.2; the identity shows each as a logit."""
    model = GoogLeNet(num_classes=64, width=0.0625)  # 64 features before every classifier
    values = {"bias": 0.2, "kernel": 0.0}
    variables = {k: np.full(s, values[k.split("/")[-1]]) for k, s in shapes(model, 79).items()}
    for head in ("loss1", "loss2", "loss3"):
        variables[f"params/{head}/classifier/kernel"] = np.eye(64)
        variables[f"params/{head}/classifier/bias"] = np.zeros(64)
    images = np.zeros((64, 79, 79, 3), np.float32)

    logits, _ = run(model, variables, images, train=True)
    for features, dropped in zip(logits, (0.4, 0.7, 0.7), strict=True):
        kept = features != 0
        np.testing.assert_allclose(features[kept], 0.2 / (1 - dropped), rtol=1e-5)
        assert abs(1 - kept.mean() - dropped) < 0.035  # 64 * 64 draws: 4.5 standard errors
        assert (kept != kept[0]).any() and (kept != kept[:, :1]).any()  # each image its own
    assert ((logits[1] != 0) != (logits[2] != 0)).any()  # each head its own

    (features,), _ = run(model, variables, images)
    np.testing.assert_allclose(features, 0.2, rtol=1e-5)


@pytest.mark.parametrize(
    "options, size",
    [
        ({}, 79),
        (SMALL, 20),
        ({"module": "naive", "auxiliary_bins": 2, "modules": "3a,4a,4d,5b"}, 79),
    ],
)
def test_every_parameter_learns(options, size):
    """A branch that is built but not connected would keep its first weights for ever."""
    model = GoogLeNet(**TINY, **STILL, **options)
    variables = {k: np.float32(v) for k, v in numbers(model, size).items()}

    def loss(variables):
        logits, _ = forward(model, variables, photos(4, size), train=True)
        return sum(x[0].sum() for x in logits)

    for name, values in jit(jax.grad(loss))(variables).items():
        if name.startswith("params"):
            assert np.isfinite(values).all() and np.abs(values).max() > 1e-7, name


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_logits_in_float32():
    model = GoogLeNet(**TINY, **STILL, dtype="bfloat16")
    first = jax.eval_shape(functools.partial(init, model, 79))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(first)} == {"float32"}
    maps = jax.eval_shape(functools.partial(capture, model, 79))
    maps = {name: value for name, value in maps.items() if name not in ("__call__", "loss3")}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(maps)} == {"bfloat16"}

    # Positive weights cancel nothing, so that errors stay those of rounding: 2^-9 a layer.
    variables = {k: np.abs(v).astype(np.float32) for k, v in numbers(model, 79).items()}
    got, _ = run(model, variables, photos(4, 79), train=True)
    for ours, exact in zip(got, Reference(variables, train=True)(photos(4, 79)), strict=True):
        assert ours.dtype == np.float32
        error = np.abs(ours - exact).max() / np.abs(exact).max()
        assert 1e-4 < error < 2**-6


@pytest.mark.parametrize(
    "options, least, what",
    [
        (NO_HEADS, 31, "GoogLeNet"),
        ({}, 79, "the auxiliary heads"),
        (NO_HEADS | {"small_stem": True}, 8, "GoogLeNet"),
        ({"small_stem": True}, 20, "the auxiliary heads"),
    ],
)
def test_the_smallest_image_is_named_and_true(options, least, what):
    """It builds there; with a pixel less the check says so, and building really fails."""
    model = GoogLeNet(**TINY, **options)
    model.check(least)
    assert all(min(shape) > 0 for shape in shapes(model, least).values())
    with pytest.raises(UserError) as error:
        model.check(least - 1)
    message = str(error.value)
    assert f"images of {least - 1} pixels are too small for {what}" in message
    assert f"config.data.image_size to {least} or more" in message
    assert ("or config.model.auxiliary_heads=False" in message) == ("heads" in what)
    with pytest.raises((ValueError, ZeroDivisionError)):
        shapes(model, least - 1)

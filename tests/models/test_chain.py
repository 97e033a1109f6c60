"""AlexNet, ZFNet, VGG and SPP-net against the papers' layers, written out in NumPy."""

import numpy as np
import pytest
from reference import (
    Layers,
    agree,
    bin_pool_loop,
    build,
    init,
    jit,
    lrn_loop,
    lrn_within_loop,
    numbers,
    photos,
    pool,
    run,
    shapes,
)

NARROW = {"width": 0.0625, "dropout": 0.0, "dtype": "float64"}  # 96 channels become 6
PAPER, CAFFE = (2.0, 5e-4), (1.0, 1e-4)  # k, and alpha, which is divided by the size of 5


class Chain(Layers):
    """The networks, layer by layer. Three fully connected layers end each of them."""

    def lrn(self, x, constants):
        if constants is None:
            return x
        k, alpha = constants
        return lrn_loop(x, size=5, alpha=alpha, beta=0.75, k=k)

    def head(self, features):
        for name in ("fc6", "fc7"):
            features = np.maximum(self.dense(features, name), 0)
        return (self.dense(features, "fc8"),)

    def alexnet(self, x, groups=2, padding=0, lrn=PAPER, floor=()):
        x = self.lrn(self.conv(x, "conv1", 4, padding), lrn)
        x = pool(x, 3, 2, ceil="pool1" not in floor)
        x = self.lrn(self.conv(x, "conv2", 1, 2, groups), lrn)
        x = pool(x, 3, 2, ceil="pool2" not in floor)
        x = self.conv(x, "conv3", 1, 1)
        x = self.conv(x, "conv4", 1, 1, groups)
        x = self.conv(x, "conv5", 1, 1, groups)
        x = pool(x, 3, 2, ceil="pool5" not in floor)
        return self.head(x.reshape(len(x), -1))

    def zfnet(self, x, lrn=PAPER):
        x = pool(self.conv(x, "conv1", 2, 1), 3, 2, ceil=True)
        x = self.conv(self.lrn(x, lrn), "conv2", 2)
        x = self.lrn(pool(x, 3, 2, ceil=True), lrn)
        for name in ("conv3", "conv4", "conv5"):
            x = self.conv(x, name, 1, 1)
        x = pool(x, 3, 2, ceil=False)
        return self.head(x.reshape(len(x), -1))

    def zfnet512(self, x, lrn=PAPER):
        x = pool(self.lrn(self.conv(x, "conv1", 2), lrn), 3, 2, ceil=False)
        x = pool(self.lrn(self.conv(x, "conv2", 2), lrn), 3, 2, ceil=False)
        for name in ("conv3", "conv4", "conv5"):
            x = self.conv(x, name, 1, 1)
        x = pool(x, 2, 2, ceil=False)
        return self.head(x.reshape(len(x), -1))

    def vgg(self, x, depth):
        table = {  # Table 1, columns A, B, D and E
            11: ("1", "1", "12", "12", "12"),
            13: ("12", "12", "12", "12", "12"),
            16: ("12", "12", "123", "123", "123"),
            19: ("12", "12", "1234", "1234", "1234"),
        }
        for stage, convolutions in enumerate(table[depth], start=1):
            for number in convolutions:
                x = self.conv(x, f"conv{stage}_{number}", 1, 1)
            x = pool(x, 2, 2, ceil=False)
        return self.head(x.reshape(len(x), -1))

    def zf5(self, x):
        x = self.within(self.conv(x, "conv1", 2, 1))
        x = self.conv(pool(x, 3, 2, ceil=True), "conv2", 2)
        x = pool(self.within(x), 3, 2, ceil=True)
        for name in ("conv3", "conv4", "conv5"):
            x = self.conv(x, name, 1, 1)
        return x

    def overfeat7(self, x):
        x = self.within(pool(self.conv(x, "conv1", 2), 3, 3, ceil=False))
        x = pool(self.conv(x, "conv2", 1, 2), 2, 2, ceil=False)
        for name in ("conv3", "conv4", "conv5", "conv6", "conv7"):
            x = self.conv(x, name, 1, 1)
        return x

    def within(self, x):
        return lrn_within_loop(x, size=3, alpha=5e-5, beta=0.75)

    def sppnet(self, x, base, pyramid):
        x = getattr(self, base)(x)
        levels = [bin_pool_loop(x, bins, np.max).reshape(len(x), -1) for bins in pyramid]
        return self.head(np.concatenate(levels, axis=-1))


@pytest.mark.parametrize(
    "fields, size, options",
    [
        ({}, 71, {}),  # maps of 16, 8, 4 and 2 pixels: every pooling hangs over the edge
        ({}, 67, {}),
        ({"floor_pools": "pool1,pool5"}, 75, {"floor": ("pool1", "pool5")}),  # 17, 8, 4 and 1
        ({"floor_pools": ""}, 75, {}),
        ({"lrn_k": 1.0, "lrn_alpha": 1e-4}, 67, {"lrn": CAFFE}),
        ({"variant": "grouped", "lrn": False}, 67, {"lrn": None}),
        ({"variant": "ungrouped"}, 67, {"groups": 1}),
        ({"variant": "single_tower"}, 67, {"groups": 1, "padding": 2, "lrn": None}),
        ({"variant": "single_tower", "lrn": True}, 67, {"groups": 1, "padding": 2}),
    ],
)
def test_alexnet_computes_what_numpy_does(fields, size, options, x64):
    model = build("alexnet", **NARROW, **fields)
    variables = numbers(model, size)
    for train in (True, False):
        got, _ = run(model, variables, photos(3, size), train=train)
        agree(got, Chain(variables).alexnet(photos(3, size), **options))


@pytest.mark.parametrize(
    "fields, lrn", [({}, PAPER), ({"lrn_k": 1.0, "lrn_alpha": 1e-4}, CAFFE), ({"lrn": False}, None)]
)
def test_zfnet_computes_what_numpy_does(fields, lrn, x64):
    """Maps of 38, 19, 8, 4 and 1 pixels: two poolings hang over the edge, the last may not."""
    model = build("zfnet", **NARROW, **fields)
    variables = numbers(model, 79)
    got, _ = run(model, variables, photos(3, 79))
    agree(got, Chain(variables).zfnet(photos(3, 79), lrn))


@pytest.mark.parametrize(
    "fields, lrn", [({}, PAPER), ({"lrn_k": 1.0, "lrn_alpha": 1e-4}, CAFFE), ({"lrn": False}, None)]
)
def test_zfnet512_computes_what_numpy_does(fields, lrn, x64):
    """Maps of 38, 18, 7, 3 and 1 pixels: each pooling has something to leave out."""
    model = build("zfnet512", **NARROW, **fields)
    variables = numbers(model, 81)
    got, _ = run(model, variables, photos(3, 81))
    agree(got, Chain(variables).zfnet512(photos(3, 81), lrn))


@pytest.mark.parametrize("batch_norm", [None, True])
@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_computes_what_numpy_does(depth, batch_norm, x64):
    """Maps of 37, 18, 9, 4, 2 and 1 pixels: the last row is left out where it is odd."""
    epsilon = {"batch_norm_epsilon": 0.01} if batch_norm else {}
    model = build(f"vgg{depth}", **NARROW, batch_norm=batch_norm, **epsilon)
    variables = numbers(model, 37)
    for train in (True, False) if batch_norm else (False,):
        got, statistics = run(model, variables, photos(4, 37), train=train)
        reference = Chain(variables, bool(batch_norm), train, epsilon=0.01)
        agree(got, reference.vgg(photos(4, 37), depth))
        for name, ours in statistics.items():
            expected = reference.updated[name] if train else variables[name]
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "base, pyramid, sides",
    [
        ("zf5", (1, 2, 3, 6), [(112,), (113, 131)]),
        ("zf5", (3, 1), [(64,), (97, 75)]),
        ("overfeat7", (1, 2, 3, 6), [(90,), (93, 110)]),
    ],
)
def test_sppnet_computes_what_numpy_does_at_any_size(base, pyramid, sides, x64):
    """With the same parameters, also of images that are not square."""
    model = build("sppnet", **NARROW, base=base, pyramid=pyramid)
    variables = numbers(model, sides[0][0])
    for shape in sides:
        got, _ = run(model, variables, photos(3, *shape))
        agree(got, Chain(variables).sppnet(photos(3, *shape), base, pyramid))


@pytest.mark.parametrize("name, size", [("alexnet", 67), ("zfnet", 79), ("vgg11", 32)])
def test_dropout_takes_half_of_both_hidden_layers_in_training_and_nothing_in_evaluation(name, size):
    """Features of 1 go through identities, so that what is left of them are 4s, a quarter."""
    model = build(name, num_classes=256, width=0.0625)
    variables = {k: np.zeros(s, np.float32) for k, s in shapes(model, size).items()}
    variables["params/fc6/bias"] += 1
    for layer in ("fc7", "fc8"):
        variables[f"params/{layer}/kernel"] = np.eye(256, dtype=np.float32)
    images = np.zeros((64, size, size, 3), np.float32)

    (features,), _ = run(model, variables, images, train=True)
    assert set(np.unique(features)) == {0, 4}
    assert abs((features > 0).mean() - 0.25) < 0.015  # 64 * 256 draws: 4.5 standard errors
    kept = features > 0
    assert (kept != kept[0]).any() and (kept != kept[:, :1]).any()  # each image its own
    (features,), _ = run(model, variables, images)
    np.testing.assert_array_equal(features, 1)


HALF = "conv2 conv4 conv5 fc6 fc7"


@pytest.mark.parametrize(
    "name, fields, width, size, ones",
    [
        ("alexnet", {}, 1.0, 67, HALF),  # section 5
        ("alexnet", {"variant": "single_tower"}, 0.25, 67, HALF),
        ("zfnet", {}, 0.25, 79, ""),  # section 3
        ("vgg13", {}, 0.25, 32, ""),  # section 3.1
        ("sppnet", {}, 0.25, 112, HALF),
        ("sppnet", {"base": "overfeat7"}, 0.25, 112, f"conv6 conv7 {HALF}"),
    ],
)
def test_first_parameters_are_drawn_as_in_the_papers(name, fields, width, size, ones):
    """A deviation of 0.01, twice that with a quarter of the inputs; VGG's is Glorot's."""
    model = build(name, width=width, **fields)

    def drawn():
        """The rest has millions of weights, and what is not returned is not drawn."""
        layers = init(model, size)["params"].items()
        biases = {layer: values["bias"] for layer, values in layers}
        kernels = {layer: values["kernel"] for layer, values in layers}
        return biases, {k: v for k, v in kernels.items() if v.size < 10**6}

    biases, kernels = jit(drawn)()
    for layer, bias in biases.items():
        np.testing.assert_array_equal(bias, float(layer in ones.split()), err_msg=layer)
    assert len(kernels) >= 3
    for layer, kernel in kernels.items():
        *window, inputs, outputs = kernel.shape
        glorot = np.sqrt(2 / (np.prod(window) * (inputs + outputs)))
        expected = glorot if name == "vgg13" else 0.01 / np.sqrt(width)
        error = 5 / np.sqrt(2 * kernel.size)  # of the deviation, five standard errors
        assert abs(np.std(kernel) / expected - 1) < error, layer
        assert abs(np.mean(kernel)) < 5 * expected / np.sqrt(kernel.size), layer

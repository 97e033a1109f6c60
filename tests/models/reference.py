"""What tests of networks share: random parameters, both ways to run, and layers in plain NumPy."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import googlenet
from inception_jax import models

TORCHVISION = {  # what its network called GoogLeNet does otherwise, dropout aside
    "batch_norm": True,
    "batch_norm_epsilon": 1e-3,
    "kernel_5x5": 3,
    "pool4_window": 2,
    "auxiliary_bins": 4,
}

# Convolutions are calls anyway, so that compiling them well would only take long.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def build(name, num_classes=7, **fields):
    """A network as a config with these fields gives it."""
    config = googlenet.get_config().model
    config.update({"name": name} | fields)
    return models.build(config, num_classes)


def init(model, size, train=True):
    keys = {"params": jax.random.key(0, impl="rbg"), "dropout": jax.random.key(1)}
    return model.init(keys, jnp.zeros((1, size, size, 3)), train=train)


def shapes(model, size, train=True):
    """Shapes of all variables by flat name."""
    tree = jax.eval_shape(lambda: init(model, size, train))
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def sides(model, size):
    """Side of the map that each convolution gets and gives, of the traced network, by its name."""
    found = {}

    def watch(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, nn.Conv):
            (_, *before, _), (_, *after, _) = args[0].shape, result.shape
            assert before[0] == before[1] and after[0] == after[1]
            found["/".join(context.module.path)] = before[0], after[0]
        elif context.module.name == "fc6":
            found["fc6"] = args[0].shape[-1]
        return result

    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with nn.intercept_methods(watch):
        key = jax.random.key(0)
        jax.eval_shape(lambda x: model.init(key, x), images)
    return found


def numbers(model, size):
    """Variables by flat name, all random; kernels sum to 0, else positive maps would kill ReLUs."""
    rng = np.random.default_rng(0)
    variables = {}
    for name, shape in shapes(model, size).items():
        values = rng.normal(size=shape)
        if name.endswith("kernel"):
            values -= values.mean(axis=tuple(range(len(shape) - 1)))
            variables[name] = values * np.sqrt(2 / np.prod(shape[:-1]))
        else:
            variables[name] = np.abs(0.5 + 0.2 * values)
    return variables


def photos(batch, *sides):
    """Images large enough for LRN's alpha of 1e-4 to show; square ones by one side."""
    height, width = sides * 2 if len(sides) == 1 else sides
    return 60 * np.random.default_rng(1).normal(size=(batch, height, width, 3))


def forward(model, variables, images, train=False):
    """Returns logits, main ones first, and the batch statistics by flat name."""
    options = {"rngs": {"dropout": jax.random.key(0)}, "mutable": ["batch_stats"]}
    logits, updated = model.apply(unflatten_dict(variables, sep="/"), images, train, **options)
    return (logits.main_BK, *logits.auxiliary), flatten_dict(updated, sep="/")


def run(model, *arguments, **options):
    return jax.tree.map(np.asarray, jit(functools.partial(forward, model, **options))(*arguments))


def agree(got, expected):
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10 * np.abs(theirs).max())
        assert np.ptp(ours, axis=0).min() > 1e-3  # alive: the images make a difference


class Layers:
    """Layers in NumPy and float64, of variables by flat name."""

    def __init__(self, variables, batch_norm=False, train=False, epsilon=1e-5):
        self.v, self.train, self.updated = variables, train, {}
        self.batch_norm, self.epsilon = batch_norm, epsilon

    def conv(self, x, name, stride=1, pad=0, groups=1):
        y = conv(x, self.v[f"params/{name}/kernel"], stride, pad, groups)
        assert y.max() > 0, f"{name} is dead, so the comparison would not see it"
        if not self.batch_norm:
            return np.maximum(y + self.v[f"params/{name}/bias"], 0)
        mean, var = (self.v[f"batch_stats/{name}_bn/{which}"] for which in ("mean", "var"))
        if self.train:
            now = y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))
            for which, old, new in zip(("mean", "var"), (mean, var), now, strict=True):
                self.updated[f"batch_stats/{name}_bn/{which}"] = 0.9 * old + 0.1 * new
            mean, var = now
        scale, bias = (self.v[f"params/{name}_bn/{which}"] for which in ("scale", "bias"))
        return np.maximum((y - mean) / np.sqrt(var + self.epsilon) * scale + bias, 0)

    def dense(self, x, name):
        return x @ self.v[f"params/{name}/kernel"] + self.v[f"params/{name}/bias"]


def windows(x, size, stride=1):
    """B, rows, columns, C, size, size."""
    every = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return every[:, ::stride, ::stride]


def pad(x, before, after, value=0.0):
    """More pixels above and left, and below and right."""
    return np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), constant_values=value)


def conv(x, kernel, stride, padding, groups):
    """Group g of the filters sees group g of the channels, both in order."""
    seen = windows(pad(x, padding, padding), len(kernel), stride)
    filters = np.split(kernel, groups, axis=-1)
    parts = zip(np.split(seen, groups, axis=3), filters, strict=True)
    return np.concatenate([np.tensordot(x, k, ((4, 5, 3), (0, 1, 2))) for x, k in parts], axis=-1)


def pool(x, window, stride, ceil):
    """Max pooling without padding; less than a stride of pixels is left over, which ceil covers."""
    x = pad(x, 0, stride - 1, -np.inf) if ceil else x
    return windows(x, window, stride).max(axis=(-2, -1))


def lrn_loop(x, size, alpha, beta, k):
    """Caffe's formula, a channel at a time: the window is cut off at the first and last channel."""
    out, channels = np.empty(x.shape), x.shape[-1]
    for c in range(channels):
        total = np.zeros(x.shape[:-1])
        for other in range(max(0, c - size // 2), min(channels, c + size // 2 + 1)):
            total += x[..., other].astype(np.float64) ** 2
        out[..., c] = x[..., c] / (k + alpha / size * total) ** beta
    return out


def lrn_within_loop(x, size, alpha, beta):
    """Caffe's WITHIN_CHANNEL, a pixel at a time: its sum is divided by size^2 at the edge, too."""
    out, (_, rows, columns, _) = np.empty(x.shape), x.shape
    half = size // 2
    for i, j in np.ndindex(rows, columns):
        near = x[:, max(0, i - half) : i + half + 1, max(0, j - half) : j + half + 1]
        total = (near.astype(np.float64) ** 2).sum(axis=(1, 2))
        out[:, i, j] = x[:, i, j] / (1 + alpha / size**2 * total) ** beta
    return out


def bin_pool_loop(x, bins, reduce):
    """A cell at a time: from pixel floor(i a / n) up to ceil((i + 1) a / n), not included."""
    batch, rows, columns, channels = x.shape
    out = np.empty((batch, bins, bins, channels))
    for i, j in np.ndindex(bins, bins):
        (top, bottom), (left, right) = (
            (math.floor(Fraction(c * side, bins)), math.ceil(Fraction((c + 1) * side, bins)))
            for c, side in ((i, rows), (j, columns))
        )
        out[:, i, j] = reduce(x[:, top:bottom, left:right], axis=(1, 2))
    return out

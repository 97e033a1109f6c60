"""Convolutions in a row, then two hidden layers and a classifier: every network before Inception.

A network is a table of Conv, Pool and Norm; a subclass of Chain says which.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from inception_jax.errors import UserError
from inception_jax.models import layers


class Conv(NamedTuple):
    """A convolution with its ReLU; `bias` is what biases start with."""

    name: str
    channels: int
    window: int
    stride: int = 1
    padding: int = 0  # pixels on every side
    groups: int = 1  # parts of the channels that do not see each other
    bias: float = 0.0

    def size(self, size: int) -> int:
        """Side of the map that comes of one of `size` pixels."""
        return (size + 2 * self.padding - self.window) // self.stride + 1

    def __call__(self, x_BHWC, unit):
        return unit.conv(x_BHWC, *self)


class Pool(NamedTuple):
    """Max pooling without padding; in ceil mode a window that hangs over the edge counts."""

    name: str
    window: int
    stride: int
    ceil: bool = True

    def size(self, size: int) -> int:
        """Side of the map that comes of one of `size` pixels."""
        return layers.pool_size(size, self.window, self.stride, self.ceil)

    def __call__(self, x_BHWC, _):
        with jax.named_scope(self.name):
            return layers.pool(x_BHWC, self.window, self.stride, self.ceil)


class Norm(NamedTuple):
    """Response normalisation, by a function of a map."""

    name: str
    normalise: Callable[[jax.Array], jax.Array]

    def size(self, size: int) -> int:
        """The same."""
        return size

    def __call__(self, x_BHWC, _):
        with jax.named_scope(self.name):
            return self.normalise(x_BHWC)


class Chain(nn.Module):
    """A network of this form.

    Its fully connected layers fit one image size only, unless `flatten` makes of any map as many
    features.

    Attributes:
      num_classes: K.
      width: factor on the channels and features of every layer but the classifier. 1 in the papers.
      dropout: share of each hidden layer's features set to 0, in training.
      floor_pools: names of the poolings that leave out what hangs over the edge, with commas; all
        others count it. None: as the table says.
      dtype: of computation: bfloat16, float32, or float64 for verification; parameters are at
        least float32.
    """

    num_classes: int
    width: float = 1.0
    dropout: float = 0.5
    floor_pools: str | None = None
    dtype: str = "float32"

    hidden = (4096, 4096)  # features of the hidden layers, fc6 and fc7
    hidden_bias = 0.0  # what their biases start with

    def table(self) -> tuple[Conv | Pool | Norm, ...]:
        """The layers before the fully connected ones, as published."""
        raise NotImplementedError

    def stack(self) -> tuple[Conv | Pool | Norm, ...]:
        """The table, its poolings as floor_pools says."""
        if self.floor_pools is None:
            return self.table()
        floor = layers.names(self.floor_pools)
        return tuple(
            layer._replace(ceil=layer.name not in floor) if isinstance(layer, Pool) else layer
            for layer in self.table()
        )

    def flatten(self, x_BHWC: jax.Array) -> jax.Array:
        """Makes features of the last map."""
        return x_BHWC.reshape(x_BHWC.shape[0], -1)

    def map_size(self, image_size: int) -> int:
        """Side of the last map, or 0 where one on the way would be empty."""
        size = image_size
        for layer in self.stack():
            size = max(layer.size(size), 0) if size > 0 else 0
        return size

    def check(self, image_size: int) -> None:
        """Raises UserError where the network cannot be built for square images of that size."""
        convs = [layer for layer in self.stack() if isinstance(layer, Conv)]
        pools = [layer.name for layer in self.stack() if isinstance(layer, Pool)]
        layers.check_names("floor_pools", self.floor_pools or "", pools)
        layers.check_width(self.width, {conv.name: conv.channels for conv in convs})
        for before, conv in itertools.pairwise(convs):
            for channels in {round(c.channels * self.width) for c in (before, conv)}:
                if channels % conv.groups:
                    raise UserError(
                        f"config.model.width={self.width} makes the number of channels {channels},"
                        f" which {conv.name} cannot split into {conv.groups} groups: take one that"
                        f" leaves a multiple of {conv.groups}"
                    )
        layers.check_size(image_size, "the network", lambda size: self.map_size(size) > 0)

    @nn.compact
    def __call__(self, images_BHWC: jax.Array, train: bool = False) -> layers.Logits:
        """Classifies images.

        Args:
          images_BHWC: normalised RGB images, of any float type.
          train: dropout and batch statistics on; needs a `dropout` rng.

        Returns:
          Logits, in the parameters' dtype.
        """
        unit = self.unit(jnp.dtype(self.dtype), train)
        x_BHWC = images_BHWC.astype(unit.dtype)
        for layer in self.stack():
            x_BHWC = layer(x_BHWC, unit)
        features_BF = self.flatten(x_BHWC)
        for name, features in zip(("fc6", "fc7"), self.hidden, strict=True):
            features_BF = unit.hidden(features_BF, name, features, self.hidden_bias)
            features_BF = unit.drop(features_BF, self.dropout)
        return layers.Logits(unit.classify(features_BF, "fc8", self.num_classes))

    def unit(self, dtype: jnp.dtype, train: bool) -> layers.Unit:
        """The form of its layers."""
        return layers.Unit(self.width, dtype, train, self.kernel_init())

    def kernel_init(self) -> Callable:
        """Gaussian, of deviation 0.01 in the papers; more in narrow layers, for sums as large."""
        return nn.initializers.normal(0.01 / math.sqrt(self.width))

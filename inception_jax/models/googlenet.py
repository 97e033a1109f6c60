"""GoogLeNet: 22 layers of Inception modules (Szegedy et al. 2014, arXiv:1409.4842, Table 1).

Parameter names are those of the reference implementation (BVLC/caffe, models/bvlc_googlenet):
`inception_3a/5x5_reduce/kernel`, `loss1/classifier/bias`. Used through `models.build`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from inception_jax.errors import UserError
from inception_jax.models import layers


class Widths(NamedTuple):
    """Output channels of one Inception module's convolutions: a row of Table 1."""

    n1x1: int
    n3x3_reduce: int
    n3x3: int
    n5x5_reduce: int
    n5x5: int
    pool_proj: int


TABLE_1 = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}
STAGES = (("3a", "3b"), ("4a", "4b", "4c", "4d", "4e"), ("5a", "5b"))
AUXILIARY = {"4a": "loss1", "4d": "loss2"}  # module whose output feeds each auxiliary head
AUXILIARY_POOL = (5, 3)  # average pool: window, stride, without padding


class Logits(NamedTuple):
    """What a network returns: the main classifier's logits and those of its auxiliary heads."""

    main_BK: jax.Array
    auxiliary: tuple[jax.Array, ...] = ()


class GoogLeNet(nn.Module):
    """The ILSVRC 2014 network, its defaults the published ones.

    The last pooling averages over whatever map is left (7x7 at 224), so the main classifier takes
    any image that survives the five halvings, and evaluating at another size than that of the
    training averages over a larger or smaller map. The auxiliary heads flatten a map whose size
    depends on the image's, so their fully connected layer has other shapes at other sizes; they
    exist in training only and do not limit evaluation.

    Attributes:
      num_classes: K.
      auxiliary_heads: whether training has the two auxiliary classifiers.
      batch_norm: batch normalisation after every convolution, instead of both LRNs and the biases
        of convolutions (Ioffe & Szegedy 2015). Off in the paper.
      width: factor on every layer's channels but the classifiers'. 1 in the paper.
      small_stem: a 3x3/1 convolution instead of 7x7/2 and its pooling, so that small images are
        halved three times instead of five. Off in the paper.
      dropout, auxiliary_dropout: share of features set to 0 before the classifiers, in training.
      dtype: of computation: bfloat16, float32, or float64 for verification; parameters are at
        least float32.
    """

    num_classes: int
    auxiliary_heads: bool = True
    batch_norm: bool = False
    width: float = 1.0
    small_stem: bool = False
    dropout: float = 0.4
    auxiliary_dropout: float = 0.7
    dtype: str = "float32"

    def check(self, image_size: int) -> None:
        """Raises UserError where the network cannot be built for square images of that size."""
        smallest = min(min(widths) for widths in TABLE_1.values())
        if round(smallest * self.width) < 1:
            raise UserError(
                f"config.model.width={self.width} leaves a layer of {smallest} channels with none;"
                f" it must be above {0.5 / smallest}"
            )
        sizes = self.map_sizes(image_size)
        if min(sizes.values()) < 1:
            raise UserError(
                self._too_small(image_size, "GoogLeNet", lambda s: min(s.values()) >= 1)
            )
        if self.auxiliary_heads and sizes["4"] < AUXILIARY_POOL[0]:
            raise UserError(
                self._too_small(
                    image_size,
                    "the auxiliary heads",
                    lambda s: s["4"] >= AUXILIARY_POOL[0],
                )
                + " or set config.model.auxiliary_heads=False"
            )

    def map_sizes(self, image_size: int) -> dict[str, int]:
        """Side of the square feature map, in pixels, of stages 1 to 5 (224: 56, 28, 14, 7)."""
        size = image_size
        if not self.small_stem:
            size = (size - 1) // 2 + 1  # 7x7/2 with 3 pixels of padding
            size = layers.ceil_pool_size(size, 3, 2)
        sizes = {"1": size}
        for stage in ("3", "4", "5"):
            size = layers.ceil_pool_size(size, 3, 2)
            sizes[stage] = size
        return sizes

    def _too_small(self, image_size, what, fits):
        least = next(size for size in range(image_size, 1000) if fits(self.map_sizes(size)))
        return (
            f"images of {image_size} pixels are too small for {what}:"
            f" set config.data.image_size to {least} or more"
        )

    @nn.compact
    def __call__(self, images_BHWC: jax.Array, train: bool = False) -> Logits:
        """Classifies images.

        Args:
          images_BHWC: normalised RGB images, of any float type.
          train: dropout, batch statistics and auxiliary heads on; needs a `dropout` rng.

        Returns:
          Logits, in the parameters' dtype; auxiliary ones (after 4a, after 4d) in training only.
        """
        dtype = jnp.dtype(self.dtype)
        unit = _Unit(self.width, self.batch_norm, dtype, train)
        x_BHWC = images_BHWC.astype(dtype)
        if self.small_stem:
            x_BHWC = ConvStage(unit, (("3x3", 64, 3, 1),), name="conv1")(x_BHWC)
        else:
            x_BHWC = ConvStage(unit, (("7x7_s2", 64, 7, 2),), name="conv1")(x_BHWC)
            x_BHWC = layers.max_pool_ceil(x_BHWC)
        if not self.batch_norm:
            x_BHWC = layers.lrn(x_BHWC)
        x_BHWC = ConvStage(unit, (("3x3_reduce", 64, 1, 1), ("3x3", 192, 3, 1)), name="conv2")(
            x_BHWC
        )
        if not self.batch_norm:
            x_BHWC = layers.lrn(x_BHWC)

        auxiliary = []
        for stage in STAGES:
            x_BHWC = layers.max_pool_ceil(x_BHWC)
            for module in stage:
                x_BHWC = Inception(unit, TABLE_1[module], name=f"inception_{module}")(x_BHWC)
                if train and self.auxiliary_heads and module in AUXILIARY:
                    head = AuxiliaryHead(
                        unit, self.num_classes, self.auxiliary_dropout, name=AUXILIARY[module]
                    )
                    auxiliary.append(head(x_BHWC))

        features_BF = jnp.mean(x_BHWC, axis=(1, 2))
        features_BF = nn.Dropout(self.dropout, deterministic=not train)(features_BF)
        logits_BK = Classifier(self.num_classes, dtype, name="loss3")(features_BF)
        return Logits(logits_BK, tuple(auxiliary))


class _Unit(NamedTuple):
    """A convolution as this network uses it: with bias and ReLU, or batch norm and ReLU."""

    width: float
    batch_norm: bool
    dtype: jnp.dtype
    train: bool

    def channels(self, published: int) -> int:
        return round(published * self.width)

    def param_dtype(self):
        return jnp.promote_types(self.dtype, jnp.float32)

    def __call__(self, x_BHWC, name, published_channels, window, stride=1):
        """Convolves with padding window // 2 on every side, creating `name` in the caller."""
        x_BHWC = nn.Conv(
            self.channels(published_channels),
            (window, window),
            (stride, stride),
            padding=window // 2,
            use_bias=not self.batch_norm,
            dtype=self.dtype,
            param_dtype=self.param_dtype(),
            kernel_init=layers.XAVIER,
            bias_init=nn.initializers.constant(0.2),
            name=name,
        )(x_BHWC)
        if self.batch_norm:
            x_BHWC = nn.BatchNorm(
                use_running_average=not self.train,
                momentum=0.9,  # the paper has no batch norm; short runs need a short memory
                dtype=self.dtype,
                param_dtype=self.param_dtype(),
                name=f"{name}_bn",
            )(x_BHWC)
        return nn.relu(x_BHWC)


class ConvStage(nn.Module):
    """Convolutions in a row: (name, channels, window, stride) each."""

    unit: _Unit
    convolutions: Sequence[tuple[str, int, int, int]]

    @nn.compact
    def __call__(self, x_BHWC):
        for name, channels, window, stride in self.convolutions:
            x_BHWC = self.unit(x_BHWC, name, channels, window, stride)
        return x_BHWC


class Inception(nn.Module):
    """Four branches over the same input, their outputs side by side (paper, Figure 2b)."""

    unit: _Unit
    widths: Widths

    @nn.compact
    def __call__(self, x_BHWC):
        unit, widths = self.unit, self.widths
        pooled = layers.max_pool(x_BHWC, 3, 1, ((1, 1), (1, 1)))
        branches = [
            unit(x_BHWC, "1x1", widths.n1x1, 1),
            unit(unit(x_BHWC, "3x3_reduce", widths.n3x3_reduce, 1), "3x3", widths.n3x3, 3),
            unit(unit(x_BHWC, "5x5_reduce", widths.n5x5_reduce, 1), "5x5", widths.n5x5, 5),
            unit(pooled, "pool_proj", widths.pool_proj, 1),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier on an intermediate map, for training only (paper, section 5)."""

    unit: _Unit
    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x_BHWC):
        unit = self.unit
        window, stride = AUXILIARY_POOL
        x_BHWC = nn.avg_pool(x_BHWC, (window, window), (stride, stride))
        x_BHWC = unit(x_BHWC, "conv", 128, 1)
        features_BF = nn.Dense(
            unit.channels(1024),
            dtype=unit.dtype,
            param_dtype=unit.param_dtype(),
            kernel_init=layers.XAVIER,
            bias_init=nn.initializers.constant(0.2),
            name="fc",
        )(x_BHWC.reshape(x_BHWC.shape[0], -1))
        features_BF = nn.relu(features_BF)
        features_BF = nn.Dropout(self.dropout, deterministic=not unit.train)(features_BF)
        return _classify(features_BF, self.num_classes, unit.dtype)


class Classifier(nn.Module):
    """The main classifier, named as the reference names it: loss3/classifier."""

    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features_BF):
        return _classify(features_BF, self.num_classes, self.dtype)


def _classify(features_BF, num_classes, dtype):
    """A linear layer named `classifier` in the caller; its logits are at least float32."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return nn.Dense(
        num_classes,
        dtype=dtype,
        param_dtype=wide,
        kernel_init=layers.XAVIER,
        name="classifier",
    )(features_BF).astype(wide)

"""GoogLeNet: 22 layers of Inception modules (Szegedy et al. 2014, arXiv:1409.4842, Table 1).

Parameter names are those of the reference implementation (BVLC/caffe, models/bvlc_googlenet):
`inception_3a/5x5_reduce/kernel`, `loss1/classifier/bias`. Used through `models.build`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from inception_jax.config import choose
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
STAGES = {"3": ("3a", "3b"), "4": ("4a", "4b", "4c", "4d", "4e"), "5": ("5a", "5b")}
POOLS = ("pool1", "pool2", "pool3", "pool4")  # before conv2 and each stage
BRANCHES = ("1x1", "3x3", "5x5", "pool")
AUXILIARY = {"4a": "loss1", "4d": "loss2"}  # module whose output feeds each auxiliary head
AUXILIARY_POOL = (5, 3)  # average pool: window, stride, without padding
BIAS = 0.2  # to start with, of all but the classifiers (reference)


class Form(NamedTuple):
    """What all modules of one network have in common; the attributes are GoogLeNet's."""

    reduced: bool
    branches: tuple[str, ...]
    projection: bool
    kernel_5x5: int


class GoogLeNet(nn.Module):
    """The ILSVRC 2014 network, its defaults the published ones.

    The last pooling averages over whatever map is left (7x7 at 224), so the main classifier takes
    any image that survives the five halvings, and evaluating at another size than that of the
    training averages over a larger or smaller map. The auxiliary heads flatten a map whose size
    depends on the image's, so their fully connected layer has other shapes at other sizes; they
    exist in training only and do not limit evaluation.

    Attributes:
      num_classes: K.
      module: reduced, 1x1 convolutions before the 3x3 and the 5x5 (paper, Figure 2b), or naive,
        all straight on the input (Figure 2a).
      branches: which of 1x1, 3x3, 5x5 and pool each module has, with commas.
      projection: a 1x1 convolution after each module's pooling; None: in reduced modules.
      modules: which of 3a to 5b there are, with commas.
      kernel_5x5: window of the convolution called 5x5; 3 in torchvision's network.
      pool4_window: of the pooling before 5a; 2 in torchvision's network.
      floor_pools: which of the poolings pool1 to pool4, with commas, leave out what hangs over the
        edge; all do in the ONNX Model Zoo's inception_v1, none in the reference.
      auxiliary_heads: whether training has the two auxiliary classifiers.
      auxiliary_bins: 0: the heads average over 5x5 windows, 3 pixels apart; else over as many bins
        along each side of the map, 4 in torchvision's network, so that any image size fits.
      lrn: response normalisation before and after conv2; None: unless batch_norm.
      lrn_k, lrn_alpha: its constants; alpha is divided by the size of 5.
      batch_norm: batch normalisation after every convolution, instead of the biases of
        convolutions (Ioffe & Szegedy 2015). Off in the paper.
      batch_norm_epsilon: added to the variance; 1e-3 in torchvision's network.
      width: factor on every layer's channels but the classifiers'. 1 in the paper.
      small_stem: a 3x3/1 convolution instead of 7x7/2 and its pooling, so that small images are
        halved three times instead of five. Off in the paper.
      space_to_depth: the first convolution is computed over blocks of 2x2 pixels, which suits
        accelerators better; the same weights give the same outputs.
      dropout, auxiliary_dropout: share of features set to 0 before the classifiers, in training.
      dtype: of computation: bfloat16, float32, or float64 for verification; parameters are at
        least float32.
    """

    num_classes: int
    module: str = "reduced"
    branches: str = ",".join(BRANCHES)
    projection: bool | None = None
    modules: str = ",".join(TABLE_1)
    kernel_5x5: int = 5
    pool4_window: int = 3
    floor_pools: str = ""
    auxiliary_heads: bool = True
    auxiliary_bins: int = 0
    lrn: bool | None = None
    lrn_k: float = 1.0
    lrn_alpha: float = 1e-4
    batch_norm: bool = False
    batch_norm_epsilon: float = 1e-5
    width: float = 1.0
    small_stem: bool = False
    space_to_depth: bool = False
    dropout: float = 0.4
    auxiliary_dropout: float = 0.7
    dtype: str = "float32"

    def check(self, image_size: int) -> None:
        """Raises UserError where the network cannot be built for square images of that size."""
        choose("model.module", self.module, ("reduced", "naive"))
        for field, known in (("branches", BRANCHES), ("modules", tuple(TABLE_1))):
            listed = getattr(self, field)
            if not layers.names(listed):
                raise UserError(
                    f"config.model.{field} is empty: name at least one of {', '.join(known)}"
                )
            layers.check_names(field, listed, known)
        layers.check_names("floor_pools", self.floor_pools, POOLS[1:] if self.small_stem else POOLS)
        if self.auxiliary_heads and not AUXILIARY.keys() & layers.names(self.modules):
            raise UserError(
                f"config.model.modules={self.modules} has neither 4a nor 4d, after which the"
                " auxiliary heads come: set config.model.auxiliary_heads=False"
            )
        if self.kernel_5x5 % 2 == 0:
            raise UserError(
                f"config.model.kernel_5x5 is {self.kernel_5x5}: it must be odd, else the branches'"
                " maps would differ in size"
            )
        if self.pool4_window < 2:
            raise UserError(
                f"config.model.pool4_window is {self.pool4_window}: it must be 2 or more, else its"
                " windows, 2 pixels apart, would leave pixels out"
            )
        if self.small_stem and self.space_to_depth:
            raise UserError(
                "config.model.space_to_depth is for the 7x7/2 convolution, which"
                " config.model.small_stem replaces: set one of them to False"
            )
        layers.check_width(self.width, dict(self._channels()))
        what = "GoogLeNet"
        if self.pool4_window != GoogLeNet.pool4_window:
            what += f" with config.model.pool4_window={self.pool4_window}"
        layers.check_size(image_size, what, lambda s: min(self.map_sizes(s).values()) >= 1)
        if self.auxiliary_heads:
            least = self.auxiliary_bins or AUXILIARY_POOL[0]
            what = "the auxiliary heads"
            if self.auxiliary_bins:
                what += f" with config.model.auxiliary_bins={self.auxiliary_bins}"
            try:
                layers.check_size(
                    image_size,
                    what,
                    lambda s: self.map_sizes(s)["4"] >= least,
                )
            except UserError as error:
                raise UserError(f"{error}, or config.model.auxiliary_heads=False") from None

    def map_sizes(self, image_size: int) -> dict[str, int]:
        """Side of the square feature map, in pixels, of stages 1 to 5 (224: 56, 28, 14, 7)."""
        size = image_size
        if not self.small_stem:
            size = (size - 1) // 2 + 1  # 7x7/2 with 3 pixels of padding
            size = layers.pool_size(size, 3, 2, self._ceil("pool1"))
        sizes = {"1": size}
        for pool, stage in zip(POOLS[1:], STAGES, strict=True):
            size = layers.pool_size(size, self._pool_window(stage), 2, self._ceil(pool))
            sizes[stage] = size
        return sizes

    @nn.compact
    def __call__(self, images_BHWC: jax.Array, train: bool = False) -> layers.Logits:
        """Classifies images.

        Args:
          images_BHWC: normalised RGB images, of any float type.
          train: dropout, batch statistics and auxiliary heads on; needs a `dropout` rng.

        Returns:
          Logits, in the parameters' dtype; auxiliary ones (after 4a, after 4d) in training only.
        """
        unit = layers.Unit(
            self.width,
            jnp.dtype(self.dtype),
            train,
            layers.XAVIER,
            self.batch_norm,
            self.batch_norm_epsilon,
        )
        stem = Stem(unit, self.small_stem, self.space_to_depth, name="conv1")
        x_BHWC = stem(images_BHWC.astype(unit.dtype))
        if not self.small_stem:
            x_BHWC = self._pool(x_BHWC, "pool1", 3)
        x_BHWC = self._normalise(x_BHWC, "pool1/norm1")
        x_BHWC = Conv2(unit, name="conv2")(x_BHWC)
        x_BHWC = self._normalise(x_BHWC, "conv2/norm2")

        form, modules = self._form(), layers.names(self.modules)
        auxiliary = []
        for pool, (stage, inside) in zip(POOLS[1:], STAGES.items(), strict=True):
            x_BHWC = self._pool(x_BHWC, pool, self._pool_window(stage))
            for module in inside:
                if module not in modules:
                    continue
                x_BHWC = Inception(unit, form, TABLE_1[module], name=f"inception_{module}")(x_BHWC)
                if train and self.auxiliary_heads and module in AUXILIARY:
                    head = AuxiliaryHead(
                        unit,
                        self.num_classes,
                        self.auxiliary_bins,
                        self.auxiliary_dropout,
                        name=AUXILIARY[module],
                    )
                    auxiliary.append(head(x_BHWC))

        with jax.named_scope("pool5"):
            features_BF = jnp.mean(x_BHWC, axis=(1, 2))
        features_BF = unit.drop(features_BF, self.dropout)
        logits_BK = Classifier(unit, self.num_classes, name="loss3")(features_BF)
        return layers.Logits(logits_BK, tuple(auxiliary))

    def _normalise(self, x_BHWC, name):
        wanted = not self.batch_norm if self.lrn is None else self.lrn
        if not wanted:
            return x_BHWC
        with jax.named_scope(name):
            return layers.lrn(x_BHWC, k=self.lrn_k, alpha=self.lrn_alpha)

    def _pool(self, x_BHWC, name, window):
        with jax.named_scope(f"{name}/{window}x{window}_s2"):
            return layers.pool(x_BHWC, window, 2, self._ceil(name))

    def _ceil(self, pool):
        return pool not in layers.names(self.floor_pools)

    def _pool_window(self, stage):
        return self.pool4_window if stage == "5" else 3

    def _form(self):
        reduced = self.module == "reduced"
        projection = reduced if self.projection is None else self.projection
        branches = tuple(branch for branch in BRANCHES if branch in layers.names(self.branches))
        return Form(reduced, branches, projection, self.kernel_5x5)

    def _channels(self) -> Iterator[tuple[str, int]]:
        """Published channels of every layer there is, by name."""
        yield "conv1", 64
        for module in layers.names(self.modules):
            for branch in convolutions(self._form(), TABLE_1[module]).values():
                yield from ((f"inception_{module}/{name}", n) for name, n, _ in branch)


def convolutions(form: Form, widths: Widths) -> dict[str, list[tuple[str, int, int]]]:
    """The convolutions of each branch of a module: (name, published channels, window) each."""
    window = form.kernel_5x5
    branches = {
        "1x1": [("1x1", widths.n1x1, 1)],
        "3x3": [("3x3_reduce", widths.n3x3_reduce, 1), ("3x3", widths.n3x3, 3)],
        "5x5": [("5x5_reduce", widths.n5x5_reduce, 1), ("5x5", widths.n5x5, window)],
        "pool": [("pool_proj", widths.pool_proj, 1)] if form.projection else [],
    }
    if not form.reduced:
        branches |= {branch: branches[branch][1:] for branch in ("3x3", "5x5")}
    return {branch: branches[branch] for branch in form.branches}


class Stem(nn.Module):
    """The first convolution."""

    unit: layers.Unit
    small: bool
    of_blocks: bool

    @nn.compact
    def __call__(self, x_BHWC):
        if self.small:
            return self.unit.conv(x_BHWC, "3x3", 64, 3, 1, 1, bias=BIAS)
        compute = layers.conv_of_blocks if self.of_blocks else None
        return self.unit.conv(x_BHWC, "7x7_s2", 64, 7, 2, 3, bias=BIAS, compute=compute)


class Conv2(nn.Module):
    """The second row of Table 1: a reduction and a 3x3 convolution."""

    unit: layers.Unit

    @nn.compact
    def __call__(self, x_BHWC):
        x_BHWC = self.unit.conv(x_BHWC, "3x3_reduce", 64, 1, bias=BIAS)
        return self.unit.conv(x_BHWC, "3x3", 192, 3, padding=1, bias=BIAS)


class Inception(nn.Module):
    """Branches over the same input, their outputs side by side (paper, Figure 2)."""

    unit: layers.Unit
    form: Form
    widths: Widths

    @nn.compact
    def __call__(self, x_BHWC):
        maps = dict.fromkeys(self.form.branches, x_BHWC)
        if "pool" in maps:
            with jax.named_scope("pool"):
                maps["pool"] = layers.max_pool(x_BHWC, 3, 1, ((1, 1), (1, 1)))
        for branch, convs in convolutions(self.form, self.widths).items():
            for name, channels, window in convs:
                maps[branch] = self.unit.conv(
                    maps[branch], name, channels, window, padding=window // 2, bias=BIAS
                )
        with jax.named_scope("output"):
            return jnp.concatenate(list(maps.values()), axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier on an intermediate map, for training only (paper, section 5)."""

    unit: layers.Unit
    num_classes: int
    bins: int
    dropout: float

    @nn.compact
    def __call__(self, x_BHWC):
        window, stride = AUXILIARY_POOL
        with jax.named_scope("ave_pool"):
            if self.bins:
                x_BHWC = layers.bin_pool(x_BHWC, self.bins, jnp.mean)
            else:
                x_BHWC = nn.avg_pool(x_BHWC, (window, window), (stride, stride))
        x_BHWC = self.unit.conv(x_BHWC, "conv", 128, 1, bias=BIAS)
        features_BF = x_BHWC.reshape(x_BHWC.shape[0], -1)
        features_BF = self.unit.hidden(features_BF, "fc", 1024, bias=BIAS)
        features_BF = self.unit.drop(features_BF, self.dropout)
        return self.unit.classify(features_BF, "classifier", self.num_classes)


class Classifier(nn.Module):
    """The main classifier, named as the reference names it: loss3/classifier."""

    unit: layers.Unit
    num_classes: int

    @nn.compact
    def __call__(self, features_BF):
        return self.unit.classify(features_BF, "classifier", self.num_classes)

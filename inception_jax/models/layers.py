"""What the ILSVRC networks share: LRN and Caffe's pooling, which flax lacks, and a layer's form.

Shape suffixes, here and everywhere in the project:
  B batch   H height   W width   C channels   F features   K classes
"""

import bisect
import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from inception_jax.errors import UserError


class Logits(NamedTuple):
    """What a network returns: the main classifier's logits and those of its auxiliary heads."""

    main_BK: jax.Array
    auxiliary: tuple[jax.Array, ...] = ()


# Caffe's "xavier" filler, which the reference GoogLeNet uses for every weight: uniform in
# +-sqrt(3 / fan_in) (BVLC/caffe, filler.hpp; models/bvlc_googlenet/train_val.prototxt).
XAVIER = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Unit(NamedTuple):
    """A layer as one network uses it: with bias and ReLU, or batch norm and ReLU.

    Its methods create flax modules in the caller, named as given. Parameters are at least float32.

    Attributes:
      width: factor on the published number of channels or features.
      dtype: of computation.
      train: whether batch norm takes the batch's own statistics.
      kernel_init: of all weights.
      batch_norm: batch normalisation after every convolution, instead of its bias.
      batch_norm_epsilon: added to the variance.
    """

    width: float
    dtype: jnp.dtype
    train: bool
    kernel_init: Callable
    batch_norm: bool = False
    batch_norm_epsilon: float = 1e-5

    def conv(
        self, x_BHWC, name, channels, window, stride=1, padding=0, groups=1, bias=0.0, compute=None
    ):
        """Convolves and rectifies; `padding` pixels on every side, `bias` to start with.

        compute is a stand-in for jax.lax.conv_general_dilated.
        """
        x_BHWC = nn.Conv(
            self.channels(channels),
            (window, window),
            (stride, stride),
            padding=padding,
            feature_group_count=groups,
            use_bias=not self.batch_norm,
            dtype=self.dtype,
            param_dtype=self.param_dtype(),
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.constant(bias),
            conv_general_dilated=compute,
            name=name,
        )(x_BHWC)
        if self.batch_norm:
            x_BHWC = nn.BatchNorm(
                momentum=0.9,  # short runs need a short memory
                epsilon=self.batch_norm_epsilon,
                dtype=self.dtype,
                param_dtype=self.param_dtype(),
                name=f"{name}_bn",
            )(x_BHWC, use_running_average=not self.train)
        return nn.relu(x_BHWC)

    def hidden(self, x_BF, name, features, bias=0.0):
        """A fully connected layer with bias and ReLU."""
        return nn.relu(self._dense(x_BF, name, self.channels(features), bias))

    def classify(self, x_BF, name, num_classes):
        """The last layer; logits are at least float32."""
        return self._dense(x_BF, name, num_classes).astype(self.param_dtype())

    def drop(self, x, rate):
        """Dropout, in training."""
        return nn.Dropout(rate, deterministic=not self.train)(x)

    def channels(self, published: int) -> int:
        """The number of channels here of a layer that has `published` at width 1."""
        return round(published * self.width)

    def param_dtype(self):
        """float32, or float64 where that is computed in."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def _dense(self, x_BF, name, features, bias=0.0):
        return nn.Dense(
            features,
            dtype=self.dtype,
            param_dtype=self.param_dtype(),
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.constant(bias),
            name=name,
        )(x_BF)


def conv_of_blocks(x_BHWC, kernel_HWIO, strides, padding, **settings) -> jax.Array:
    """A convolution of stride 2 as one of stride 1 over blocks of 2x2 pixels: the same sums.

    Blocks have four times the channels. Of the three of an image, the matrix units of TPUs and GPUs
    can use little, so that this is faster there (space-to-depth; Kumar et al. 2019,
    arXiv:1909.09756, section 3).

    Args:
      x_BHWC: images.
      kernel_HWIO: as for jax.lax.conv_general_dilated, whose stand-in this is; square.
      strides: (2, 2).
      padding: pixels (before, after) each axis; all the same number.
      settings: others of conv_general_dilated.
    """
    ((before, _), _), size = padding, kernel_HWIO.shape[0]
    if tuple(strides) != (2, 2):
        raise ValueError(f"blocks of 2x2 need strides of 2, not {strides}")
    # Windows have to begin and end where blocks do: zeros are added to the kernel.
    first = before % 2
    last = (size + first) % 2
    kernel_HWIO = jnp.pad(kernel_HWIO, ((first, last), (first, last), (0, 0), (0, 0)))
    blocks = kernel_HWIO.shape[0] // 2
    kernel_HWIO = kernel_HWIO.reshape(blocks, 2, blocks, 2, *kernel_HWIO.shape[2:])
    kernel_HWIO = kernel_HWIO.transpose(0, 2, 1, 3, 4, 5).reshape(
        blocks, blocks, -1, kernel_HWIO.shape[-1]
    )
    _, height, width, channels = x_BHWC.shape
    out = [(side + 2 * before - size) // 2 + 1 for side in (height, width)]
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    height, width = (x_BHWC.shape[1] // 2, x_BHWC.shape[2] // 2)
    x_BHWC = x_BHWC.reshape(-1, height, 2, width, 2, channels)
    x_BHWC = x_BHWC.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, 4 * channels)
    left = (before + first) // 2
    around = [
        (left, count + blocks - 1 - left - side)
        for count, side in zip(out, (height, width), strict=True)
    ]
    return jax.lax.conv_general_dilated(x_BHWC, kernel_HWIO, (1, 1), around, **settings)


def keeping_statistics(frozen) -> contextlib.AbstractContextManager:
    """Makes some batch norms do in training what they do in evaluation, while the context lasts.

    Args:
      frozen: a tree like batch_stats, of bools: whose running statistics are taken, and kept.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(frozen)
    norms = {tuple(entry.key for entry in path[:-1]) for path, still in leaves if still}

    def intercept(call, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.BatchNorm) and module.path in norms:
            kwargs = kwargs | {"use_running_average": True}
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def placing(place: Callable) -> contextlib.AbstractContextManager:
    """Hands what goes into fully connected layers and comes out of them to a function.

    Args:
      place: (name of the layer, x_BF, whether it is the output) -> x_BF.
    """

    def intercept(call, args, kwargs, context):
        if not isinstance(context.module, nn.Dense):
            return call(*args, **kwargs)
        name = "/".join(context.module.path)
        (x_BF,) = args
        return place(name, call(place(name, x_BF, False)), True)

    return nn.intercept_methods(intercept)


def check_width(width: float, channels: dict[str, int]) -> None:
    """Raises UserError where `config.model.width` leaves a layer with no channels.

    Args:
      width: factor on all of them.
      channels: of the layers, by name, at width 1.
    """
    name = min(channels, key=channels.get)
    if round(channels[name] * width) < 1:
        raise UserError(
            f"config.model.width={width} leaves {name}, a layer of {channels[name]} channels, with"
            f" none: it must be above {0.5 / channels[name]:g}"
        )


def check_size(image_size: int, what: str, fits: Callable[[int], bool]) -> None:
    """Raises UserError with the smallest size that fits, where `image_size` does not.

    Args:
      image_size: side of the square images, in pixels.
      what: is too large for such images.
      fits: whether images of a size do.
    """
    if not fits(image_size):
        raise UserError(
            f"images of {image_size} pixels are too small for {what}: set config.data.image_size"
            f" to {least_size(fits)} or more"
        )


def least_size(fits: Callable[[int], bool]) -> int:
    """The smallest image size that fits, given that all larger ones do, too."""
    return bisect.bisect_left(range(1 << 62), True, lo=1, key=fits)


def names(listed: str) -> list[str]:
    """What a field like `config.model.modules` lists."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def check_names(field: str, listed: str, known: Sequence[str]) -> None:
    """Raises UserError where `config.model.FIELD` lists a name that is not known, or one twice."""
    listing = names(listed)
    for number, name in enumerate(listing):
        if name not in known:
            raise UserError(
                f"config.model.{field}={listed} has {name!r}; known: {', '.join(known)}"
            )
        if name in listing[:number]:
            raise UserError(f"config.model.{field}={listed} has {name} twice")


def lrn(
    x_BHWC: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> jax.Array:
    """Local response normalisation across channels: x / (k + alpha/size * sum(x^2))^beta.

    The sum runs over the `size` channels around each one. The defaults are GoogLeNet's
    (bvlc_googlenet); alpha is divided by the size, as in Caffe, ONNX and PyTorch, but not in
    TensorFlow or the AlexNet paper, whose alpha is `size` times smaller for the same result.
    Computed in float32 at least (Krizhevsky et al. 2012, section 3.3).

    Args:
      x_BHWC: activations; the last axis is normalised over.
      size: odd number of channels in the window.

    Returns:
      An array of x's shape and dtype.
    """
    wide = x_BHWC.astype(jnp.promote_types(x_BHWC.dtype, jnp.float32))
    half = size // 2
    padded = jnp.pad(jnp.square(wide), ((0, 0),) * (x_BHWC.ndim - 1) + ((half, half),))
    channels = x_BHWC.shape[-1]
    total = functools.reduce(jnp.add, [padded[..., i : i + channels] for i in range(size)])
    return (wide * (k + alpha / size * total) ** -beta).astype(x_BHWC.dtype)


def lrn_within(
    x_BHWC: jax.Array, size: int = 3, alpha: float = 5e-5, beta: float = 0.75
) -> jax.Array:
    """Response normalisation within each channel: x / (1 + alpha/size^2 * sum(x^2))^beta.

    The sum runs over the size x size pixels around each one, zeros beyond the edge (Caffe's
    WITHIN_CHANNEL). The defaults are SPP-net's (ShaoqingRen/SPP_net, Zeiler_conv5.prototxt).

    Returns:
      An array of x's shape and dtype; computed in float32 at least.
    """
    wide = x_BHWC.astype(jnp.promote_types(x_BHWC.dtype, jnp.float32))
    edge = (size // 2, size // 2)
    mean = nn.avg_pool(jnp.square(wide), (size, size), padding=(edge, edge))
    return (wide * (1 + alpha * mean) ** -beta).astype(x_BHWC.dtype)


def bin_pool(x_BHWC: jax.Array, bins: int, reduce: Callable = jnp.max) -> jax.Array:
    """Pools any map into bins x bins cells, which overlap where the map does not divide.

    Cell i of n covers pixels floor(i*a/n) up to ceil((i+1)*a/n) of a side of a (He et al. 2014,
    section 2.3 and appendix A; PyTorch calls it adaptive pooling).

    Args:
      x_BHWC: a map of at least bins x bins pixels.
      reduce: jnp.max or jnp.mean.

    Returns:
      B, bins, bins, C.
    """
    for axis in (1, 2):
        side = x_BHWC.shape[axis]
        edges = [(i * side // bins, -(-(i + 1) * side // bins)) for i in range(bins)]
        cells = [
            reduce(jax.lax.slice_in_dim(x_BHWC, start, stop, axis=axis), axis=axis)
            for start, stop in edges
        ]
        x_BHWC = jnp.stack(cells, axis)
    return x_BHWC


def ceil_pool_size(size: int, window: int, stride: int) -> int:
    """Output size of pooling in Caffe's ceil mode: ceil((size - window) / stride) + 1."""
    return -(-(size - window) // stride) + 1


def pool_size(size: int, window: int, stride: int, ceil: bool) -> int:
    """Output size of `pool`."""
    if ceil:
        return ceil_pool_size(size, window, stride)
    return (size - window) // stride + 1


def pool(x_BHWC: jax.Array, window: int, stride: int, ceil: bool) -> jax.Array:
    """Max pooling without padding; a window that hangs over the edge counts in ceil mode only."""
    if ceil:
        return max_pool_ceil(x_BHWC, window, stride)
    return max_pool(x_BHWC, window, stride, ((0, 0), (0, 0)))


def max_pool_ceil(x_BHWC: jax.Array, window: int = 3, stride: int = 2) -> jax.Array:
    """Max pooling in Caffe's ceil mode: a window that hangs over the right or bottom edge counts.

    Equals SAME on even sizes (112 to 56) and differs from it on odd ones.

    Raises:
      ValueError: the map is too small to hold a window's centre.
    """
    padding = []
    for size in x_BHWC.shape[1:3]:
        out = ceil_pool_size(size, window, stride)
        if out < 1:
            raise ValueError(
                f"a {size}-pixel map is too small for {window}x{window}/{stride} pooling"
            )
        padding.append((0, (out - 1) * stride + window - size))
    return max_pool(x_BHWC, window, stride, tuple(padding))


def max_pool(x_BHWC: jax.Array, window: int, stride: int, padding) -> jax.Array:
    """Max pooling whose gradient goes to the first maximum of each window.

    Values and gradients are those of XLA's reduce-window and select-and-scatter. On CPU the latter
    is slow, so there the position of each maximum is kept instead (benchmarks/max_pool.py measures
    both); on accelerators that form moves more memory.

    Args:
      x_BHWC: activations.
      window, stride: in pixels, the same for both axes.
      padding: ((top, bottom), (left, right)) in pixels; padding never wins.
    """
    return jax.lax.platform_dependent(
        x_BHWC,
        cpu=lambda x: _max_pool_by_position(x, window, stride, padding),
        default=lambda x: _max_pool_xla(x, window, stride, padding),
    )


def _max_pool_xla(x_BHWC, window, stride, padding):
    return nn.max_pool(x_BHWC, (window, window), (stride, stride), padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool_by_position(x_BHWC, window, stride, padding):
    return _max_pool_xla(x_BHWC, window, stride, padding)


def _max_pool_forward(x_BHWC, window, stride, padding):
    padded = jnp.pad(x_BHWC, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    rows, columns = ((size - window) // stride + 1 for size in padded.shape[1:3])
    best, position = None, None
    for number, (i, j) in enumerate(np.ndindex(window, window)):
        here = padded[
            :,
            i : i + (rows - 1) * stride + 1 : stride,
            j : j + (columns - 1) * stride + 1 : stride,
        ]
        if best is None:
            best, position = here, jnp.zeros(here.shape, jnp.int8)
        else:
            wins = (here > best) | jnp.isnan(here)  # NaN propagates, as it does in XLA's max
            best = jnp.where(wins, here, best)
            position = jnp.where(wins, jnp.int8(number), position)
    return best, (position, x_BHWC.shape)


def _max_pool_backward(window, stride, padding, residuals, dy_BHWC):
    """Sums each input pixel's share over the windows that hold it, one stride phase at a time.

    The padded input pixel at stride * q + p is at offset p + stride * m of window q - m.
    """
    position, (batch, height, width, channels) = residuals
    (top, bottom), (left, right) = padding
    reach = (window - 1) // stride
    spans = (top + height + bottom, left + width + right)
    grid = [-(-span // stride) for span in spans]  # pixels per phase
    edges = [
        (reach, size - outputs) for size, outputs in zip(grid, dy_BHWC.shape[1:3], strict=True)
    ]
    dy = jnp.pad(dy_BHWC, ((0, 0), *edges, (0, 0)))
    position = jnp.pad(position, ((0, 0), *edges, (0, 0)), constant_values=-1)

    def phase(p, q):
        total = jnp.zeros((batch, *grid, channels), dy.dtype)
        for i in range(p, window, stride):
            for j in range(q, window, stride):
                a, b = reach - i // stride, reach - j // stride
                window_of = np.s_[:, a : a + grid[0], b : b + grid[1]]
                total += jnp.where(position[window_of] == i * window + j, dy[window_of], 0)
        return total

    phases = [
        jnp.stack([phase(p, q) for q in range(stride)], axis=3) for p in range(stride)
    ]  # each B, rows, columns, stride, C
    dx = jnp.stack(phases, axis=2).reshape(batch, grid[0] * stride, grid[1] * stride, channels)
    return (dx[:, top : top + height, left : left + width],)


_max_pool_by_position.defvjp(_max_pool_forward, _max_pool_backward)

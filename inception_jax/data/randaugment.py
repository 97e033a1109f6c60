"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719): drawn operations in a row, all as strong.

The 14 operations of the paper's section 3.1, with Pillow's arithmetic on uint8 RGB. What magnitudes
mean is from the published code, tensorflow/tpu, models/official/efficientnet/autoaugment.py; so, as
there, posterize and solarize change less at higher magnitudes.

Under vmap every branch of a choice is computed for every image. So an operation is what it needs of
three things done in turn: a blend with another image, a table of new values for each channel, and
one affine resampling.
"""

import enum

import jax
import jax.numpy as jnp

from inception_jax.data import photometric

FILL = 128  # of what comes from outside the image
# Of the side: 100 pixels in the published code; its ResNet-50 sees 224. AutoAugment's table has
# 150 of 331, arXiv:1805.09501, appendix.
TRANSLATION = 100 / 224


class Operation(enum.IntEnum):
    """In the paper's order."""

    IDENTITY = 0
    AUTO_CONTRAST = 1
    EQUALIZE = 2
    ROTATE = 3
    SOLARIZE = 4
    COLOR = 5
    POSTERIZE = 6
    CONTRAST = 7
    BRIGHTNESS = 8
    SHARPNESS = 9
    SHEAR_X = 10
    SHEAR_Y = 11
    TRANSLATE_X = 12
    TRANSLATE_Y = 13


def randaugment(key: jax.Array, image_HWC: jax.Array, layers: int, magnitude: float) -> jax.Array:
    """Applies so many operations, each drawn evenly, with a random sign where it has one.

    Args:
      key: all that is random.
      image_HWC: uint8.
      layers: N in the paper.
      magnitude: M in the paper, 0 to 10.
    """
    for layer in range(layers):
        which_key, sign_key = jax.random.split(jax.random.fold_in(key, layer))
        which = jax.random.randint(which_key, (), 0, len(Operation), jnp.int32)
        sign = jax.random.rademacher(sign_key, (), jnp.float32)
        image_HWC = apply(which, image_HWC, magnitude, sign)
    return image_HWC


def apply(which: jax.Array, image_HWC: jax.Array, magnitude: float, sign: jax.Array) -> jax.Array:
    """Applies one operation.

    Args:
      which: of Operation.
      image_HWC: uint8.
      magnitude: 0 to 10.
      sign: 1 or -1, for turns, shears and translations.
    """
    image_HWC = _blended(which, image_HWC, 0.1 + 1.8 * magnitude / 10)
    table_C256 = _table(which, image_HWC, magnitude)
    image_HWC = jnp.stack([table_C256[c][image_HWC[..., c]] for c in range(3)], axis=-1)
    matrix_23 = _matrix(which, image_HWC.shape[0], sign * magnitude / 10)
    return jnp.where(which == Operation.IDENTITY, image_HWC, affine(image_HWC, matrix_23))


def _blended(which, image_HWC, factor):
    """ImageEnhance.Color or Sharpness, or the image."""
    other_HWC = jnp.where(which == Operation.COLOR, grey(image_HWC)[..., None], smooth(image_HWC))
    of_these = (which == Operation.COLOR) | (which == Operation.SHARPNESS)
    return jnp.where(of_these, blend(other_HWC, image_HWC, factor), image_HWC)


def _table(which, image_HWC, magnitude):
    """What each channel's 256 values become, C256 of uint8."""
    values_256 = jnp.arange(256, dtype=jnp.int32)
    factor = 0.1 + 1.8 * magnitude / 10
    bits = int(magnitude / 10 * 4)
    mean = jnp.floor(jnp.mean(grey(image_HWC), dtype=jnp.float32) + 0.5)
    for_all = {
        Operation.SOLARIZE: jnp.where(
            values_256 < int(magnitude / 10 * 256), values_256, 255 - values_256
        ),
        Operation.POSTERIZE: values_256 & ~(2 ** (8 - bits) - 1),
        Operation.CONTRAST: blend(mean, values_256, factor),
        Operation.BRIGHTNESS: blend(0, values_256, factor),
    }
    by_channel = {Operation.AUTO_CONTRAST: stretch(image_HWC), Operation.EQUALIZE: flat(image_HWC)}
    table_C256 = jnp.broadcast_to(values_256, (3, 256))
    for operation, changed in (for_all | by_channel).items():
        table_C256 = jnp.where(which == operation, changed, table_C256)
    return table_C256.astype(jnp.uint8)


def _matrix(which, side, strength):
    """What affine needs; strength is from -1 to 1."""
    angle = jnp.where(which == Operation.ROTATE, jnp.deg2rad(30 * strength), 0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)

    def only(operation, size):
        return jnp.where(which == operation, size * strength, 0)

    x, y = only(Operation.SHEAR_X, 0.3), only(Operation.SHEAR_Y, 0.3)
    right = only(Operation.TRANSLATE_X, TRANSLATION * side)
    down = only(Operation.TRANSLATE_Y, TRANSLATION * side)
    centre = side / 2  # of turns; shears leave the corner at the top left, as in the published code
    return jnp.array(
        [
            [cos, x - sin, right + centre * (1 - cos + sin)],
            [y + sin, cos, down + centre * (1 - cos - sin)],
        ],
        jnp.float32,
    )


def affine(image_HWC: jax.Array, matrix_23: jax.Array) -> jax.Array:
    """Image.transform(size, AFFINE, matrix, NEAREST, fillcolor=FILL).

    Args:
      image_HWC: of any dtype.
      matrix_23: from a place (x, y, 1) in the result to that in the image it comes from, in pixels,
        whose centres are at halves.
    """
    height, width, _ = image_HWC.shape
    y_H1 = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    x_1W = jnp.arange(width, dtype=jnp.float32)[None] + 0.5
    # no matrix product, which accelerators would round to fewer bits
    columns_HW, rows_HW = (
        jnp.floor(a * x_1W + b * y_H1 + c).astype(jnp.int32) for a, b, c in matrix_23
    )
    inside_HW = (columns_HW >= 0) & (columns_HW < width) & (rows_HW >= 0) & (rows_HW < height)
    moved_HWC = image_HWC[jnp.clip(rows_HW, 0, height - 1), jnp.clip(columns_HW, 0, width - 1)]
    return jnp.where(inside_HW[..., None], moved_HWC, jnp.asarray(FILL, image_HWC.dtype))


def stretch(image_HWC: jax.Array) -> jax.Array:
    """ImageOps.autocontrast's table, C256: each channel from its least to its greatest value."""
    low_C1, high_C1 = (f(image_HWC, (0, 1)).astype(jnp.int32)[:, None] for f in (jnp.min, jnp.max))
    values_256 = jnp.arange(256, dtype=jnp.int32)
    room_C1 = high_C1 - low_C1
    stretched = (values_256 - low_C1) * 255 // jnp.maximum(room_C1, 1)
    return jnp.where(room_C1 > 0, jnp.clip(stretched, 0, 255), values_256)


def flat(image_HWC: jax.Array) -> jax.Array:
    """ImageOps.equalize's table, C256: each channel's values become about as frequent."""
    places = image_HWC + 256 * jnp.arange(3)
    count_C256 = jnp.zeros(3 * 256, jnp.int32).at[places.ravel()].add(1).reshape(3, 256)
    last_C1 = jnp.max(image_HWC, (0, 1)).astype(jnp.int32)[:, None]
    below_C256 = jnp.cumsum(count_C256, axis=1) - count_C256
    step_C1 = jnp.take_along_axis(below_C256, last_C1, axis=1) // 255
    equal = jnp.minimum((below_C256 + step_C1 // 2) // jnp.maximum(step_C1, 1), 255)
    return jnp.where(step_C1 > 0, equal, jnp.arange(256))


def smooth(image_HWC: jax.Array) -> jax.Array:
    """ImageFilter.SMOOTH: 3x3 weights of 1, 5 in the middle, over 13; the edge stays as it is."""
    wide_HWC = image_HWC.astype(jnp.int32)
    height, width, _ = image_HWC.shape
    around = sum(
        wide_HWC[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)
    )
    rounded = (2 * (around + 4 * wide_HWC[1:-1, 1:-1]) + 13) // 26
    return wide_HWC.at[1:-1, 1:-1].set(rounded).astype(image_HWC.dtype)


def grey(image_HWC: jax.Array) -> jax.Array:
    """Image.convert("L"): luma, HW of int32."""
    red, green, blue = (image_HWC[..., c].astype(jnp.int32) for c in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def blend(degenerate: jax.Array | float, image: jax.Array, factor: float) -> jax.Array:
    """Image.blend: what photometric.blend gives, without its fraction, as uint8."""
    degenerate = jnp.asarray(degenerate, jnp.float32)
    return photometric.blend(degenerate, image.astype(jnp.float32), factor).astype(jnp.uint8)

"""What happens to an image on the host, in tf.data: decode, crop, resize; uint8 in and out.

Random choices come from stateless generators keyed by (seed, epoch, example), so they depend on
neither timing nor the number of hosts or restarts.
"""

import math
from collections.abc import Callable

import tensorflow as tf
from ml_collections import ConfigDict


def make_train(config: ConfigDict, seed: int) -> Callable[..., tf.Tensor]:
    """Makes f(encoded, epoch, example, size=image_size) -> uint8 (size, size, 3): a random patch.

    config.crop says which; configs/googlenet.py lists the kinds and their papers. Whatever the
    size, the patch is that which would be cut for config.image_size.

    Args:
      config: `config.data`.
      seed: of the run.
    """
    cut = _random_area if config.crop == "area" else _random_place

    def augment(encoded, epoch, example, size=config.image_size):
        image = decode(encoded)
        key = tf.stack([tf.constant(seed, tf.int64), tf.constant(0, tf.int64)])
        for number in (epoch, example):
            key = tf.random.experimental.stateless_fold_in(key, tf.cast(number, tf.int64))
        uniform = tf.unstack(tf.random.stateless_uniform((4,), key))
        return _resize(cut(config, image, *uniform), (size, size))

    return augment


def make_eval(config: ConfigDict, size: int | None = None) -> Callable[..., tf.Tensor]:
    """Makes f(encoded) -> uint8 (size, size, 3): the central crop.

    The shorter side becomes config.eval_resize pixels first, or as much more or less as the size is
    above or below config.image_size, so that every size shows the same part of the image.

    Args:
      config: `config.data`.
      size: config.image_size if None.
    """
    size = size or config.image_size
    shorter = round(config.eval_resize * size / config.image_size)

    def central_crop(encoded):
        return tf.ensure_shape(_centre(_scale(decode(encoded), shorter), size), (size, size, 3))

    return central_crop


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, BMP or the first frame of a GIF to uint8 RGB of shape (H, W, 3)."""
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        # the default transform is quicker, and off by several grey levels
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, 3))


def _random_area(config, image, share, aspect, top, left):
    """A share of the area drawn from crop_area, evenly, an aspect from crop_aspect, in logarithm.

    Where it does not fit, the sides are cut to the image's.
    """
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    low, high = config.crop_area
    area = (low + (high - low) * share) * size[0] * size[1]
    low, high = (math.log(a) for a in config.crop_aspect)
    ratio = tf.exp(low + (high - low) * aspect)
    sides = tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)])  # height, width
    sides = tf.clip_by_value(tf.round(sides), 1.0, size)
    corner = _index(tf.stack([top, left]), size - sides + 1)
    sides = tf.cast(sides, tf.int32)
    return tf.slice(image, tf.concat([corner, [0]], 0), tf.concat([sides, [3]], 0))


def _random_place(config, image, scale, which, top, left):
    """image_size x image_size pixels of the image or of its central square, once it is scaled."""
    low, high = config.train_resize
    shorter = low + _index(scale, high - low + 1.0)
    image = _scale(image, shorter)
    if config.crop.startswith("square"):
        image = _centre(image, shorter)
    room = tf.shape(image)[:2] - config.image_size
    if config.crop.endswith("corners"):
        places = tf.stack([room * (0, 0), room * (0, 1), room * (1, 0), room, room // 2])
        corner = places[_index(which, 5.0)]
    else:
        corner = _index(tf.stack([top, left]), tf.cast(room, tf.float32) + 1)
    sides = (config.image_size, config.image_size, 3)
    return tf.slice(image, tf.concat([corner, [0]], 0), sides)


def _index(uniform, count):
    """One of range(count), from a number in [0, 1); both may be vectors of float32."""
    # uniform numbers are below 1, but their product may round up
    return tf.cast(tf.minimum(tf.floor(uniform * count), count - 1), tf.int32)


def _scale(image, shorter):
    """Resizes so that the shorter side has so many pixels."""
    size = tf.shape(image)[:2]
    sides = tf.cast(size, tf.float64) * (shorter / tf.reduce_min(size))
    return _resize(image, tf.maximum(tf.cast(tf.round(sides), tf.int32), shorter))


def _centre(image, size):
    """The central square of so many pixels."""
    top, left = tf.unstack((tf.shape(image)[:2] - size) // 2)
    return image[top : top + size, left : left + size]


def _resize(image, size):
    """Bilinear, antialiased where it shrinks; rounds to the nearest uint8."""
    resized = tf.image.resize(image, size, method="bilinear", antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)

"""What happens to an image on the host, in tf.data: decode, crop, resize; uint8 in and out.

Random choices come from stateless generators keyed by (seed, epoch, example), so they depend on
neither timing nor the number of hosts or restarts.
"""

import math
from collections.abc import Callable

import tensorflow as tf
from ml_collections import ConfigDict


def make_train(config: ConfigDict, seed: int) -> Callable[..., tf.Tensor]:
    """Makes f(encoded, epoch, example) -> uint8 (image_size, image_size, 3): a random patch.

    The patch has a share of the image's area drawn from config.crop_area, evenly, and an aspect
    ratio drawn from config.crop_aspect, evenly in its logarithm; where it does not fit, the sides
    are cut to the image's (paper, section 6).

    Args:
      config: `config.data`.
      seed: of the run.
    """
    low_aspect, high_aspect = (math.log(a) for a in config.crop_aspect)

    def augment(encoded, epoch, example):
        image = decode(encoded)
        key = tf.stack([tf.constant(seed, tf.int64), tf.constant(0, tf.int64)])
        for number in (epoch, example):
            key = tf.random.experimental.stateless_fold_in(key, tf.cast(number, tf.int64))
        share, aspect, top, left = tf.unstack(tf.random.stateless_uniform((4,), key))
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        low, high = config.crop_area
        area = (low + (high - low) * share) * size[0] * size[1]
        ratio = tf.exp(low_aspect + (high_aspect - low_aspect) * aspect)
        sides = tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)])  # height, width
        sides = tf.clip_by_value(tf.round(sides), 1.0, size)
        corner = tf.floor(tf.stack([top, left]) * (size - sides + 1))
        # uniform numbers are below 1, but their product may round up
        corner = tf.cast(tf.minimum(corner, size - sides), tf.int32)
        sides = tf.cast(sides, tf.int32)
        patch = tf.slice(image, tf.concat([corner, [0]], 0), tf.concat([sides, [3]], 0))
        return _resize(patch, (config.image_size, config.image_size))

    return augment


def make_eval(config: ConfigDict) -> Callable[..., tf.Tensor]:
    """Makes f(encoded) -> uint8 (image_size, image_size, 3): the central crop.

    The shorter side becomes config.eval_resize pixels first.

    Args:
      config: `config.data`.
    """

    def central_crop(encoded):
        image = decode(encoded)
        size = tf.shape(image)[:2]
        scale = config.eval_resize / tf.reduce_min(size)
        sides = tf.cast(tf.round(tf.cast(size, tf.float64) * scale), tf.int32)
        image = _resize(image, tf.maximum(sides, config.eval_resize))
        top, left = tf.unstack((tf.shape(image)[:2] - config.image_size) // 2)
        image = image[top : top + config.image_size, left : left + config.image_size]
        return tf.ensure_shape(image, (config.image_size, config.image_size, 3))

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


def _resize(image, size):
    """Bilinear, antialiased where it shrinks; rounds to the nearest uint8."""
    resized = tf.image.resize(image, size, method="bilinear", antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)

"""What happens to an image on the host, in tf.data: a box of it becomes uint8 of the right size.

Every kind of crop is a box in the image's own pixels. Of a JPEG no more is decoded than the box
needs, at a half, a quarter or an eighth of its size where that is still large enough. Random
choices come from stateless generators keyed by (seed, epoch, example), so they depend on neither
timing nor the number of hosts or restarts.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import tensorflow as tf
from ml_collections import ConfigDict

RESAMPLING = {  # among these the paper chooses, section 6; area alone is free of aliasing
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
    "cubic": cv2.INTER_CUBIC,
}
cv2.setNumThreads(1)  # tf.data works at several images at once
# the default transform is no quicker, and off by several grey levels
JPEG = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
SCALES = (1, 2, 4, 8)  # of 1, by which libjpeg can divide an image's sides in decoding it


class Box(NamedTuple):
    """A part of an image, in its pixels; both are (height, width) of float64."""

    corner: tf.Tensor  # the upper left one
    extent: tf.Tensor


def make_train(config: ConfigDict, seed: int) -> Callable[..., tf.Tensor]:
    """Makes f(encoded, epoch, example, size=image_size) -> uint8 (size, size, 3): a random patch.

    config.crop says which; configs/googlenet.py lists the kinds and their papers. Whatever the
    size, the patch is that which would be cut for config.image_size.

    Args:
      config: `config.data`.
      seed: of the run.
    """
    box, place = make_box(config), config.crop != "area"
    names = list(RESAMPLING) if config.interpolation == "random" else [config.interpolation]

    def augment(encoded, epoch, example, size=config.image_size):
        numbers = draw(seed, epoch, example)
        if config.interpolation == "antialiased":
            resize = _antialiased
        else:
            resize = functools.partial(_by_opencv, names, numbers[4])
        first = config.image_size if place else size
        patch = _sample(encoded, lambda sides: box(sides, numbers), first, resize, place)
        if first is size:
            return patch
        return _rounded(tf.image.resize(patch, (size, size), antialias=True))

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

    def box(sides):
        scaled = _scaled(sides, shorter)
        return _window(sides, scaled, (scaled - size) // 2, size)

    def central_crop(encoded):
        return _sample(encoded, box, size, _antialiased, True)

    return central_crop


def draw(seed: int, epoch: tf.Tensor, example: tf.Tensor) -> tf.Tensor:
    """Five numbers in [0, 1) that decide about an example: four of its box, one of resizing it."""
    key = tf.stack([tf.constant(seed, tf.int64), tf.constant(0, tf.int64)])
    for number in (epoch, example):
        key = tf.random.experimental.stateless_fold_in(key, tf.cast(number, tf.int64))
    return tf.random.stateless_uniform((5,), key)


def make_box(config: ConfigDict) -> Callable[[tf.Tensor, tf.Tensor], Box]:
    """Makes box(sides, numbers): the part of an image of (height, width) that `draw` decides on.

    Args:
      config: `config.data`.
    """
    return functools.partial(_random_area if config.crop == "area" else _random_place, config)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, BMP or the first frame of a GIF to uint8 RGB of shape (H, W, 3)."""
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, **JPEG),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, 3))


def _random_area(config, sides, numbers):
    """A share of the area drawn from crop_area, evenly, an aspect from crop_aspect, in logarithm.

    Where it does not fit, the sides are cut to the image's.
    """
    share, aspect, top, left = tf.unstack(numbers[:4])
    sides = tf.cast(sides, tf.float32)
    low, high = config.crop_area
    area = (low + (high - low) * share) * sides[0] * sides[1]
    low, high = (math.log(a) for a in config.crop_aspect)
    ratio = tf.exp(low + (high - low) * aspect)
    extent = tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)])  # height, width
    extent = tf.clip_by_value(tf.round(extent), 1.0, sides)
    corner = _index(tf.stack([top, left]), sides - extent + 1)
    return Box(tf.cast(corner, tf.float64), tf.cast(extent, tf.float64))


def _random_place(config, sides, numbers):
    """image_size x image_size pixels of the image or of its central square, once it is scaled."""
    scale, which, top, left = tf.unstack(numbers[:4])
    low, high = config.train_resize
    shorter = low + _index(scale, high - low + 1.0)
    square = tf.stack([shorter, shorter])
    scaled = square if config.crop == "warped" else _scaled(sides, shorter)
    within = square if config.crop.startswith("square") else scaled
    room = within - config.image_size
    if config.crop.endswith("corners"):
        places = tf.stack([room * (0, 0), room * (0, 1), room * (1, 0), room, room // 2])
        corner = places[_index(which, 5.0)]
    else:
        corner = _index(tf.stack([top, left]), tf.cast(room, tf.float32) + 1)
    return _window(sides, scaled, (scaled - within) // 2 + corner, config.image_size)


def _index(uniform, count):
    """One of range(count), from a number in [0, 1); both may be vectors of float32."""
    # uniform numbers are below 1, but their product may round up
    return tf.cast(tf.minimum(tf.floor(uniform * count), count - 1), tf.int32)


def _scaled(sides, shorter):
    """The sides of an image once the shorter has so many pixels."""
    scaled = tf.cast(sides, tf.float64) * (shorter / tf.reduce_min(sides))
    return tf.maximum(tf.cast(tf.round(scaled), tf.int32), shorter)


def _window(sides, scaled, corner, size):
    """The box of size x size pixels from a corner on, once an image has the scaled sides."""
    back = tf.cast(sides, tf.float64) / tf.cast(scaled, tf.float64)
    return Box(tf.cast(corner, tf.float64) * back, size * back)


def _sample(encoded, find_box, size, resize, beyond):
    """Decodes what a box needs, and resizes it to (size, size, 3).

    Args:
      encoded: JPEG or PNG.
      find_box: (height, width) -> Box.
      size: in pixels.
      resize: (pixels, Box, size) -> uint8.
      beyond: whether pixels around the box take part where resizing averages several.
    """

    def from_jpeg():
        sides = tf.io.extract_jpeg_shape(encoded)[:2]
        box = find_box(sides)
        fitting = tf.reduce_min(box.extent) / tf.cast(size, tf.float64)
        which = sum(tf.cast(fitting >= scale, tf.int32) for scale in SCALES[1:])
        scale = tf.constant(SCALES)[which]
        start, extent, box = _cover(box, (sides + scale - 1) // scale, scale)
        window = tf.concat([start, extent], 0)
        pixels = tf.switch_case(
            which,
            [
                functools.partial(tf.io.decode_and_crop_jpeg, encoded, window, ratio=ratio, **JPEG)
                for ratio in SCALES
            ],
        )
        return resize(pixels, box, size)

    def from_other():
        pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        pixels = tf.ensure_shape(pixels, (None, None, 3))
        sides = tf.shape(pixels)[:2]
        start, extent, box = _cover(find_box(sides), sides, 1)
        (top, left), (height, width) = tf.unstack(start), tf.unstack(extent)
        return resize(pixels[top : top + height, left : left + width], box, size)

    def _cover(box, sides, scale):
        """The whole pixels that a box needs of an image scaled down to these sides."""
        box = Box(*(side / tf.cast(scale, tf.float64) for side in box))
        margin = 0.0
        if beyond:  # as far as the triangle reaches
            margin = tf.maximum(tf.math.ceil(box.extent / tf.cast(size, tf.float64)), 1.0)
        start = tf.maximum(tf.floor(box.corner) - margin, 0.0)
        end = tf.cast(tf.math.ceil(box.corner + box.extent) + margin, tf.int32)
        extent = tf.minimum(end, sides) - tf.cast(start, tf.int32)
        return tf.cast(start, tf.int32), extent, Box(box.corner - start, box.extent)

    patch = tf.cond(tf.io.is_jpeg(encoded), from_jpeg, from_other)
    fixed = size if isinstance(size, int) else None
    return tf.ensure_shape(patch, (fixed, fixed, 3))


def _antialiased(pixels, box, size):
    """Bilinear, with a triangle as wide as the scale where it shrinks."""
    scale = tf.cast(size, tf.float32) / tf.cast(box.extent, tf.float32)
    shift = tf.cast(-box.corner * (tf.cast(size, tf.float64) / box.extent), tf.float32)
    return _rounded(
        tf.raw_ops.ScaleAndTranslate(
            images=pixels[None],
            size=(size, size),
            scale=scale,
            translation=shift,
            kernel_type="triangle",
            antialias=True,
        )[0]
    )


def _by_opencv(names, uniform, pixels, box, size):
    """By one of the ways of these names; a box's fractions of pixels count as whole ones."""
    del box

    def resize(pixels, uniform, size):
        name = names[int(uniform * len(names))]
        return cv2.resize(pixels, (size, size), interpolation=RESAMPLING[name])

    return tf.numpy_function(resize, [pixels, uniform, size], tf.uint8, stateful=False)


def _rounded(pixels):
    return tf.saturate_cast(tf.round(pixels), tf.uint8)

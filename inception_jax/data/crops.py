"""Which part of each image is seen: boxes in its own pixels, and what has to be decoded for them.

Of a JPEG no more is decoded than the box needs, at a half, a quarter or an eighth of its size where
that is still large enough. All is arithmetic over the rows of a batch, in NumPy, from the sizes in
the images' headers and random numbers keyed by (seed, epoch, example), which depend on neither
timing nor the number of hosts or restarts.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from inception_jax.data import philox

SCALES = (1, 2, 4, 8)  # by which libjpeg can divide an image's sides in decoding it
WAYS = ("bilinear", "area", "nearest", "cubic")  # to resize, among which the paper's runs chose
AVERAGING = ("area", "antialiased")  # ways by which every pixel counts as much as any other


class Box(NamedTuple):
    """A part of each image, in its pixels; both are (height, width), float64 (B, 2)."""

    corner: np.ndarray  # the upper left one
    extent: np.ndarray


class Crop(NamedTuple):
    """What to decode of an image and what to take of that."""

    ratio: int  # by which libjpeg divides the sides
    window: np.ndarray  # int32 (4,): top, left, height, width in the image scaled down
    corner: np.ndarray  # float64 (2,), of the box in the window, in its pixels
    extent: np.ndarray  # float64 (2,)
    way: str  # to resize it


def make_train(config: ConfigDict) -> Callable[..., list[Crop]]:
    """Makes f(numbers, sides, jpeg, size): a random patch of each image.

    config.crop says which; configs/googlenet.py lists the kinds and their papers. Whatever the
    size, the patch is that which would be cut for config.image_size. `numbers` are those of draw,
    `sides` int (B, 2), height and width; `jpeg` bool (B,), whether an image is one.

    Args:
      config: `config.data`.
    """
    box = _random_area if config.crop == "area" else _random_place
    ways = np.array(WAYS if config.interpolation == "random" else [config.interpolation])

    def train(numbers, sides, jpeg, size):
        size = size if config.crop == "area" else config.image_size
        way = ways[_index(numbers[:, 4], np.float32(len(ways)))]
        margin = config.crop != "area" and config.interpolation == "antialiased"
        return _cover(box(config, sides, numbers), sides, jpeg, size, way, margin)

    return train


def make_eval(config: ConfigDict, size: int) -> Callable[..., list[Crop]]:
    """Makes f(sides, jpeg): the centre of each image.

    The shorter side becomes config.eval_resize pixels first, or as much more or less as the size is
    above or below config.image_size, so that every size shows the same part of the image.

    Args:
      config: `config.data`.
      size: in pixels.
    """
    shorter = round(config.eval_resize * size / config.image_size)

    def evaluate(sides, jpeg):
        scaled = _scaled(sides, np.full(len(sides), shorter))
        box = _window(sides, scaled, (scaled - size) // 2, size)
        return _cover(box, sides, jpeg, size, np.full(len(sides), "antialiased"), True)

    return evaluate


def draw(seed: int, epoch: np.ndarray, example: np.ndarray) -> np.ndarray:
    """Five numbers in [0, 1) for each example: four decide about its box, one about resizing it."""
    seeds = np.tile(np.array([seed, 0], np.int64), (len(example), 1))
    return philox.uniform(philox.fold_in(philox.fold_in(seeds, epoch), example), 5)


def _random_area(config, sides, numbers):
    """A share of the area drawn from crop_area, evenly, an aspect from crop_aspect, in logarithm.

    Areas too large for every aspect are not drawn, nor aspects with which the area does not fit.
    """
    sides = sides.astype(np.float32)
    height, width = sides.T
    narrow, wide = (np.float32(aspect) for aspect in config.crop_aspect)
    most = np.minimum(height, width / narrow) * np.minimum(width, height * wide)
    low, high = (np.minimum(np.float32(a) * height * width, most) for a in config.crop_area)
    area = low + (high - low) * numbers[:, 0]
    low, high = (
        np.log(np.maximum(narrow, area / height**2)),
        np.log(np.minimum(wide, width**2 / area)),
    )
    ratio = np.exp(low + (high - low) * numbers[:, 1])
    extent = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], 1)  # height, width
    extent = np.clip(np.round(extent), 1.0, sides)
    return Box(_index(numbers[:, 2:4], sides - extent + 1).astype(float), extent.astype(float))


def _random_place(config, sides, numbers):
    """image_size x image_size pixels of the image or of its central square, once it is scaled."""
    low, high = config.train_resize
    shorter = low + _index(numbers[:, 0], np.float32(high - low + 1))
    square = np.stack([shorter, shorter], 1)
    scaled = square if config.crop == "warped" else _scaled(sides, shorter)
    within = square if config.crop.startswith("square") else scaled
    room = within - config.image_size
    if config.crop.endswith("corners"):
        places = np.stack([room * (0, 0), room * (0, 1), room * (1, 0), room, room // 2], 1)
        corner = places[np.arange(len(room)), _index(numbers[:, 1], np.float32(5))]
    else:
        corner = _index(numbers[:, 2:4], room.astype(np.float32) + 1)
    return _window(sides, scaled, (scaled - within) // 2 + corner, config.image_size)


def _index(uniform, count):
    """One of range(count) each, from numbers in [0, 1); both of float32."""
    # uniform numbers are below 1, but their product may round up
    return np.minimum(np.floor(uniform * count), count - 1).astype(np.int32)


def _scaled(sides, shorter):
    """The sides of images once the shorter has so many pixels."""
    scaled = np.round(sides * (shorter / sides.min(1))[:, None]).astype(np.int32)
    return np.maximum(scaled, shorter[:, None])


def _window(sides, scaled, corner, size):
    """The box of size x size pixels from a corner on, once an image has the scaled sides."""
    back = sides / scaled
    return Box(corner * back, size * back)


def _cover(box, sides, jpeg, size, way, margin):
    """What a box needs of an image: whole pixels, and those around it if they take part as well."""
    fitting = box.extent.min(1) / size
    # libjpeg averages, which would change what the other ways show
    scalable = jpeg & np.isin(way, AVERAGING)
    scale = np.sum([fitting >= s for s in SCALES[1:]], 0, np.int32) * scalable
    by = np.array(SCALES)[scale][:, None]
    corner, extent = box.corner / by, box.extent / by
    exact = (way == "antialiased")[:, None]  # the others resize whole pixels: the nearest
    # as far as the triangle of the antialiased resizing reaches
    reach = np.maximum(np.ceil(extent / size), 1.0) if margin else 0.0
    start = np.where(exact, np.floor(corner) - reach, np.round(corner))
    end = np.where(exact, np.ceil(corner + extent) + reach, np.round(corner + extent))
    start = np.clip(start, 0, -(-sides // by) - 1).astype(np.int32)
    end = np.clip(end, start + 1, -(-sides // by)).astype(np.int32)
    window = np.concatenate([start, end - start], 1, dtype=np.int32)
    return list(map(Crop, by[:, 0].tolist(), window, corner - start, extent, way.tolist()))

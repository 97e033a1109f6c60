"""From an order of examples to batches of uint8 images, read, decoded and resized in threads.

A thread takes a few images at a time, all the way from a file into their rows of the batch. Only
reading them and saying what to cut needs Python's lock; decoders and OpenCV work without it. What
an image shows depends on the seed, its epoch and itself alone, and so does whether it can be read.
"""

import collections
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict

from inception_jax.data import augment, crops, order, repair
from inception_jax.data.order import Rows
from inception_jax.data.repair import Mended, Unreadable, listed
from inception_jax.errors import DataError

Batch = dict[str, np.ndarray]
THREADS = 2 * (os.cpu_count() or 1)  # half wait for TensorFlow's, which decode
FAR_THREADS = 64  # most wait for a network
NONE = -1  # in place of an example: the row shows none


def training(
    source: Mended,
    rows: Callable[[int], Rows],
    local: slice,
    steps: range,
    config: ConfigDict,
    seed: int,
) -> Iterator[Batch]:
    """Yields this host's rows of each step's batch: image, label, epoch, example, due.

    Images have config.image_size pixels a side, or what order.size says of config.train_sizes.
    `example` is the one that `due` names or, where that is skipped, the next that can be read.

    Args:
      source: the training split.
      rows: from order.training.
      local: the rows of each global batch to read here.
      steps: which steps; starting at any of them costs nothing.
      config: `config.data`.
      seed: of the run.

    Raises:
      DataError: an example cannot be read or decoded and is not to be skipped, or none can.
    """
    cut, resize = crops.make_train(config), augment.make_train(config)
    sizes = config.train_sizes or (config.image_size,)

    def begin(step):
        batch = rows(step)
        here = Rows(*(column[local] for column in batch))
        images = _images(len(here.example), order.size(batch, sizes))
        numbers = crops.draw(seed, here.epoch, here.example)
        batch = {"image": images, "epoch": here.epoch, "due": here.example}
        return batch, here.example.copy(), functools.partial(boxes, batch, numbers)

    def boxes(batch, numbers, these, example, sides, jpeg):
        numbers = numbers[these]
        if (example != batch["due"][these]).any():
            numbers = crops.draw(seed, batch["epoch"][these], example)
        return cut(numbers, sides, jpeg, batch["image"].shape[1])

    def following(example):
        return (example + 1) % len(source)

    for batch, example in _batches(source, begin, following, resize, steps, config):
        yield batch | {"example": example}


def evaluation(
    source: Mended,
    rows: Callable[[int], Rows],
    local: slice,
    steps: range,
    config: ConfigDict,
    size: int | None = None,
) -> Iterator[Batch]:
    """Yields this host's rows of each step's batch: image, label, valid.

    What is skipped is not valid.

    Args:
      source: the split to evaluate.
      rows, local, steps: as in training; rows from order.evaluation.
      config: `config.data`.
      size: of images, in pixels a side; config.image_size if None.

    Raises:
      DataError: an example cannot be read or decoded and is not to be skipped, or none can.
    """
    size = size or config.image_size
    cut = crops.make_eval(config, size)

    def begin(step):
        here = Rows(*(column[local] for column in rows(step)))
        example = np.where(here.valid, here.example, NONE)
        return {"image": _images(len(example), size)}, example, boxes

    def boxes(these, example, sides, jpeg):
        return cut(sides, jpeg)

    def following(example):
        return NONE

    resize = augment.antialiased
    for batch, example in _batches(source, begin, following, resize, steps, config):
        yield batch | {"valid": example != NONE}


def _batches(source, begin, following, resize, steps, config):
    """Yields batches in order, and the examples in their rows, while the next are in the making.

    Args:
      begin: step -> a batch without labels, its images yet to be filled in; the examples; and
        f(rows, examples, sides, whether they are JPEGs) -> crops.
      following: what takes the place of an example that cannot be read.
      resize: (pixels, crop, patch).
    """

    def fill(batch, example, boxes, rows):
        while encoded := read(batch, example, rows):
            rows, images = list(encoded), list(encoded.values())
            sides = np.array([repair.sides(image) for image in images], np.int32)
            jpeg = np.array([repair.is_jpeg(image) for image in images])
            cuts = boxes(rows, example[rows], sides, jpeg)
            decoded, damaged = augment.decode_group(images, cuts), []
            for row, crop, pixels in zip(rows, cuts, decoded, strict=True):
                if isinstance(pixels, Exception):
                    source.fail(int(example[row]), pixels)
                    skip(example, row)
                    damaged.append(row)
                else:
                    resize(pixels, crop, batch["image"][row])
            rows = damaged

    def read(batch, example, rows):
        encoded = {}
        for row in rows:
            while row not in encoded and example[row] != NONE:
                try:
                    encoded[row], batch["label"][row] = source.read(int(example[row]))
                except Unreadable:
                    skip(example, row)
            if row not in encoded:
                batch["image"][row], batch["label"][row] = 0, 0
        return encoded

    def skip(example, row):
        _let_skip(source, int(example[row]), config)
        example[row] = following(example[row])

    threads = FAR_THREADS if "://" in config.dir else THREADS
    pool = ThreadPoolExecutor(threads)
    making = collections.deque()
    try:
        for step in steps:
            batch, example, boxes = begin(step)
            batch["label"] = np.empty(len(example), np.int32)
            rows = range(len(example))
            groups = [rows[start : start + augment.GROUP] for start in rows[:: augment.GROUP]]
            filling = [pool.submit(fill, batch, example, boxes, group) for group in groups]
            making.append((batch, example, filling))
            if len(making) > 1 + threads // len(groups):  # so that no thread is ever idle
                yield _filled(*making.popleft())
        while making:
            yield _filled(*making.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _filled(batch, example, filling):
    for group in filling:
        group.result()
    return batch, example


def _images(count, size):
    return np.empty((count, size, size, 3), np.uint8)


def _let_skip(source, example, config):
    """Does nothing.

    Raises:
      DataError: unreadable examples are not to be skipped, or there is no other left.
    """
    if config.unreadable == "error":
        raise DataError(
            f"{source.name(example)} cannot be read: {source.faults[example]}; put a whole image in"
            " its place and start again with the same line, or leave it out with"
            " --config.data.unreadable=skip"
        )
    if len(source.faults) == len(source):
        told = [source.told(index) for index in sorted(source.faults)]
        raise DataError(f"none of {len(told)} images can be read: {listed(told)}")

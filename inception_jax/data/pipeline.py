"""tf.data: from an order of examples to batches of uint8 images, read and decoded in parallel.

Its threads run Python functions, each for a few images at a time. What they call lets go of
Python's lock, and an image that cannot be decoded is an exception like any other.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from inception_jax.data import augment, crops, order, repair
from inception_jax.data.order import Rows
from inception_jax.data.repair import Mended, Unreadable, listed
from inception_jax.errors import UserError

Batch = dict[str, np.ndarray]
GROUP = 16  # images that a thread takes at a time
THREADS = os.cpu_count() or 1  # with more, one that holds Python's lock would have to wait its turn
FAR_THREADS = 64  # most wait for a network
TRAINING = {"image": np.uint8} | dict.fromkeys(("label", "epoch", "example", "due"), np.int32)
EVALUATION = {"image": np.uint8, "label": np.int32, "valid": np.bool_}


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
      UserError: an example cannot be read or decoded and is not to be skipped, or none can.
    """
    cut, fill = crops.make_train(config), augment.make_train(config)
    sizes = config.train_sizes or (config.image_size,)

    def numbers(here):
        return crops.draw(seed, here.epoch, here.example)

    def load(here, numbers, size):
        images = np.empty((len(here.example), size, size, 3), np.uint8)
        label, example = np.empty_like(here.example), here.example.copy()
        missing = np.arange(len(example))
        while len(missing):
            found = [_first_readable(source, int(i), config) for i in example[missing]]
            example[missing], encoded, label[missing] = zip(*found, strict=True)
            if (example != here.example).any():
                numbers = crops.draw(seed, here.epoch, example)
            cuts = cut(numbers[missing], *_headers(encoded), size)
            made = zip(missing, encoded, cuts, strict=True)
            damaged = [
                row
                for row, data, crop in made
                if not _fill(source, int(example[row]), config, fill, data, crop, images[row])
            ]
            missing = np.array(damaged, int)
        return images, label, here.epoch, example, here.example

    yield from _batches(numbers, load, rows, local, steps, sizes, TRAINING, config)


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
      UserError: an example cannot be read or decoded and is not to be skipped, or none can.
    """
    size = size or config.image_size
    cut = crops.make_eval(config, size)

    def load(here, _, size):
        images = np.zeros((len(here.example), size, size, 3), np.uint8)
        label, valid = np.zeros_like(here.example), here.valid.copy()
        for row in np.flatnonzero(valid):
            example = int(here.example[row])
            try:
                encoded, label[row] = source.read(example)
            except Unreadable:
                valid[row] = _skip(source, example, config)
                continue
            [crop] = cut(*_headers([encoded]))
            image = images[row]
            valid[row] = _fill(source, example, config, augment.evaluate, encoded, crop, image)
        return images, label, valid

    def numbers(here):  # nothing is random
        return here.example

    yield from _batches(numbers, load, rows, local, steps, (size,), EVALUATION, config)


def _batches(numbers, load, rows, local, steps, sizes, kinds, config):
    """Yields batches of the columns that load(rows, their numbers, size) makes of a few rows."""
    count = local.stop - local.start
    group = math.gcd(count, GROUP)
    groups = count // group
    threads = FAR_THREADS if "://" in config.dir else THREADS
    errors = {}  # by when they are due

    @functools.lru_cache(maxsize=threads)
    def of_step(step):
        batch = rows(step)
        here = Rows(*(column[local] for column in batch))
        return here, numbers(here), order.size(batch, sizes)

    def load_group(number):
        step, part = divmod(int(number), groups)
        try:
            here, drawn, size = of_step(step)
            these = slice(part * group, (part + 1) * group)
            return load(Rows(*(column[these] for column in here)), drawn[these], size)
        except Exception as error:
            errors[number] = error
            raise

    def columns(number):
        made = tf.numpy_function(load_group, [number], [*kinds.values()], stateful=False)
        fixed = sizes[0] if len(sizes) == 1 else None
        for column, name in zip(made, kinds, strict=True):
            column.set_shape((group, fixed, fixed, 3) if name == "image" else (group,))
        return dict(zip(kinds, made, strict=True))

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    dataset = (
        tf.data.Dataset.range(steps.start * groups, steps.stop * groups)
        .map(columns, num_parallel_calls=threads)
        .batch(groups, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )
    try:
        for batch in dataset.as_numpy_iterator():
            yield {name: column.reshape(count, *column.shape[2:]) for name, column in batch.items()}
    except tf.errors.OpError:
        raise errors[min(errors)] from None


def _first_readable(source, example, config):
    """The example, or the next one that can be read: its index, the encoded image and the label."""
    while True:
        try:
            return example, *source.read(example)
        except Unreadable:
            _skip(source, example, config)
            example = (example + 1) % len(source)


def _fill(source, example, config, fill, encoded, crop, patch):
    """Fills in a patch; returns whether the image could be decoded."""
    try:
        fill(encoded, crop, patch)
    except Exception as error:  # whatever the decoders raise
        source.fail(example, error)
        return _skip(source, example, config)
    return True


def _skip(source, example, config):
    """Returns False.

    Raises:
      UserError: unreadable examples are not to be skipped, or there is no other left.
    """
    if config.unreadable == "error":
        raise UserError(
            f"{source.name(example)} cannot be read: {source.faults[example]}; put a whole image in"
            " its place and start again with the same line, or leave it out with"
            " --config.data.unreadable=skip"
        )
    if len(source.faults) == len(source):
        told = [source.told(index) for index in sorted(source.faults)]
        raise UserError(f"none of {len(told)} images can be read: {listed(told)}")
    return False


def _headers(encoded):
    """Height and width of each image, and whether it is a JPEG."""
    sides = np.array([repair.sides(image) for image in encoded], np.int32)
    return sides, np.array([image.startswith(b"\xff\xd8") for image in encoded])

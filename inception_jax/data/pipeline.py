"""tf.data: from an order of examples to batches of uint8 images, read and decoded in parallel."""

import functools
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image

from inception_jax.data import augment, crops, order, repair
from inception_jax.data.crops import Crop
from inception_jax.data.order import Rows
from inception_jax.data.repair import Mended, Unreadable, listed
from inception_jax.errors import UserError

Batch = dict[str, np.ndarray]
GROUP = 16  # images that a thread takes at a time
THREADS = os.cpu_count() or 1  # with more, one that holds Python's lock would have to wait its turn
FAR_THREADS = 64  # most wait for a network
JPEG = b"\xff\xd8"  # as such a file begins
TRAINING = {"image": np.uint8} | dict.fromkeys(("label", "epoch", "example", "due"), np.int32)
EVALUATION = {"image": np.uint8, "label": np.int32, "valid": np.bool_}


def _dot(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, kind)
    return buffer.getvalue()


BLANK = _dot("PNG")  # in rows that do not count
DOT, WHOLE_DOT = _dot("JPEG"), np.array([0, 0, 1, 1], np.int32)  # in place of what is unusual


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
    cut = crops.make_train(config)

    def numbers(here):
        return crops.draw(seed, here.epoch, here.example)

    def prepare(here, numbers, size):
        found = [_first_readable(source, due, config) for due in here.example.tolist()]
        example, encoded, label = zip(*found, strict=True)
        example = np.array(example, np.int32)
        if (example != here.example).any():
            numbers = crops.draw(seed, here.epoch, example)
        cuts = cut(numbers, *_headers(encoded), size)
        return _Group(encoded, cuts, example, (label, here.epoch, example, here.example))

    fill, sizes = augment.make_train(config), config.train_sizes or (config.image_size,)
    stages = _Stages(source, rows, local, sizes, config, numbers, prepare, fill)
    yield from _batches(stages, steps, TRAINING)


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

    def numbers(here):  # nothing is random
        return here.example

    def prepare(here, _, size):
        encoded, label = [BLANK] * len(here.example), np.zeros_like(here.example)
        valid = here.valid.copy()
        for row in np.flatnonzero(valid):
            try:
                encoded[row], label[row] = source.read(int(here.example[row]))
            except Unreadable:
                valid[row] = _skip(source, int(here.example[row]), config)
        return _Group(encoded, cut(*_headers(encoded)), here.example, (label, valid))

    fill = augment.antialiased
    stages = _Stages(source, rows, local, (size,), config, numbers, prepare, fill)
    yield from _batches(stages, steps, EVALUATION)


class _Group(NamedTuple):
    """A few images on their way."""

    encoded: Sequence[bytes]
    crops: list[Crop]
    example: np.ndarray
    columns: tuple  # of the batch, besides the images


class _Stages(NamedTuple):
    """How examples become columns of a batch."""

    source: Mended
    rows: Callable[[int], Rows]
    local: slice
    sizes: Sequence[int]
    config: ConfigDict
    numbers: Callable  # Rows -> an array, to be split like these
    prepare: Callable  # (Rows, numbers, size) -> _Group
    fill: Callable  # (pixels, Crop, patch)


def _batches(stages, steps, kinds):
    """Yields batches; begins anew after those in which images turned out to be damaged."""
    step = steps.start
    while step < steps.stop:
        errors = {}  # by when they are due
        batches = _dataset(stages, range(step, steps.stop), kinds, errors)
        try:
            for batch in batches.as_numpy_iterator():
                yield {
                    name: column.reshape(-1, *column.shape[2:]) for name, column in batch.items()
                }
                step += 1
        except tf.errors.OpError:
            # popped, as a reference to itself would keep it, and with it TensorFlow's threads,
            # for the end of Python, which aborts where such a thread asks for its lock
            error = errors.pop(min(errors)) if errors else None
            # names the first that is due, where threads may have met a later one before
            found = _find_damaged(stages, step)
            if error:
                raise error from None
            if not found:
                raise


def _dataset(stages, steps, kinds, errors):
    """Groups of images, in three steps: read in Python, decoded by TensorFlow, resized in Python.

    TensorFlow decodes in its own threads, but only what is usual: windows of JPEGs at their own
    scale. To choose there what to do would take as long as resizing; the rest is decoded in Python.
    """
    source, rows, local, sizes, config, numbers, prepare, fill = stages
    count = local.stop - local.start
    group = math.gcd(count, GROUP)
    groups = count // group
    threads = FAR_THREADS if "://" in config.dir else THREADS
    waiting = {}  # what is known of a group while its windows are decoded

    @functools.lru_cache(maxsize=2 * threads)
    def of_step(step):
        batch = rows(step)
        here = Rows(*(column[local] for column in batch))
        return here, numbers(here), order.size(batch, sizes)

    def read(number):
        step, part = divmod(int(number), groups)
        here, drawn, size = of_step(step)
        these = slice(part * group, (part + 1) * group)
        here, drawn = Rows(*(column[these] for column in here)), drawn[these]
        while True:
            found = prepare(here, drawn, size)
            decoded = {
                row: _decode(source, int(found.example[row]), encoded, crop)
                for row, (encoded, crop) in enumerate(zip(found.encoded, found.crops, strict=True))
                if crop.ratio != 1 or not encoded.startswith(JPEG)
            }
            damaged = [found.example[row] for row, pixels in decoded.items() if pixels is None]
            if not damaged:
                break
            _skip(source, int(damaged[0]), config)
        waiting[number] = found, decoded, size
        usual = [row not in decoded for row in range(group)]
        encoded = [e if plain else DOT for e, plain in zip(found.encoded, usual, strict=True)]
        windows = [crop.window for crop in found.crops]
        return np.array(encoded, object), np.where(np.c_[usual], windows, WHOLE_DOT)

    def resize(number, *windows):
        found, decoded, size = waiting.pop(number)
        images = np.empty((group, size, size, 3), np.uint8)
        for row, (window, crop) in enumerate(zip(windows, found.crops, strict=True)):
            fill(decoded.get(row, window), crop, images[row])
        columns = zip(found.columns, list(kinds.values())[1:], strict=True)
        return images, *(np.asarray(column, kind) for column, kind in columns)

    def told(function):
        def call(number, *arguments):
            try:
                return function(int(number), *arguments)
            except Exception as error:
                errors[int(number)] = error
                raise

        return call

    def columns(number):
        encoded, windows = tf.numpy_function(
            told(read), [number], (tf.string, tf.int32), stateful=False
        )
        encoded.set_shape((group,))
        windows.set_shape((group, 4))
        pixels = [
            tf.io.decode_and_crop_jpeg(encoded[row], windows[row], **augment.JPEG)
            for row in range(group)
        ]
        made = tf.numpy_function(told(resize), [number, *pixels], [*kinds.values()], stateful=False)
        fixed = sizes[0] if len(sizes) == 1 else None
        for column, name in zip(made, kinds, strict=True):
            column.set_shape((group, fixed, fixed, 3) if name == "image" else (group,))
        return dict(zip(kinds, made, strict=True))

    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    return (
        tf.data.Dataset.range(steps.start * groups, steps.stop * groups)
        .map(columns, num_parallel_calls=threads)
        .batch(groups, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )


def _decode(source, example, encoded, crop):
    """The pixels, or None if the image is damaged."""
    try:
        return augment.decode(encoded, crop)
    except Exception as error:  # whatever the decoders raise
        source.fail(example, error)
        return None


def _find_damaged(stages, step):
    """Decodes the images of a batch in full; returns whether any was found to be damaged."""
    source, config = stages.source, stages.config
    before = len(source.faults)
    batch = stages.rows(step)
    for due in batch.example[stages.local][batch.valid[stages.local]].tolist():
        example = due
        while True:
            example, encoded, _ = _first_readable(source, example, config)
            if _decode(source, example, encoded, None) is not None:
                break
            _skip(source, example, config)
    return len(source.faults) > before


def _first_readable(source, example, config):
    """The example, or the next one that can be read: its index, the encoded image and the label."""
    while True:
        try:
            return example, *source.read(example)
        except Unreadable:
            _skip(source, example, config)
            example = (example + 1) % len(source)


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
    return sides, np.array([image.startswith(JPEG) for image in encoded])

"""tf.data: from an order of examples to batches of uint8 images, read and decoded in parallel."""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from inception_jax.data import augment, order
from inception_jax.data.order import Rows
from inception_jax.data.source import Source
from inception_jax.errors import UserError

Batch = dict[str, np.ndarray]


def training(
    source: Source,
    rows: Callable[[int], Rows],
    local: slice,
    steps: range,
    config: ConfigDict,
    seed: int,
) -> Iterator[Batch]:
    """Yields this host's rows of each step's batch: image, label, epoch, example.

    Images have config.image_size pixels a side, or what order.size says of config.train_sizes.

    Args:
      source: the training split.
      rows: from order.training.
      local: the rows of each global batch to read here.
      steps: which steps; starting at any of them costs nothing.
      config: `config.data`.
      seed: of the run.

    Raises:
      UserError: an example cannot be read or decoded.
    """
    train = augment.make_train(config, seed)
    sizes = config.train_sizes or (config.image_size,)
    for batch in _batches(source, rows, local, steps, train, sizes):
        del batch["valid"]
        yield batch


def evaluation(
    source: Source,
    rows: Callable[[int], Rows],
    local: slice,
    steps: range,
    config: ConfigDict,
    size: int | None = None,
) -> Iterator[Batch]:
    """Yields this host's rows of each step's batch: image, label, valid.

    Args:
      source: the split to evaluate.
      rows, local, steps: as in training; rows from order.evaluation.
      config: `config.data`.
      size: of images, in pixels a side; config.image_size if None.

    Raises:
      UserError: an example cannot be read or decoded.
    """
    size = size or config.image_size
    central_crop = augment.make_eval(config, size)

    def make_image(encoded, *_):
        return central_crop(encoded)

    for batch in _batches(source, rows, local, steps, make_image, (size,)):
        yield {name: batch[name] for name in ("image", "label", "valid")}


def _batches(source, rows, local, steps, make_image, sizes: Sequence[int]):
    def read(step):
        batch = rows(int(step))
        here = Rows(*(column[local] for column in batch))
        encoded, labels = zip(*(source.read(int(example)) for example in here.example), strict=True)
        size = np.full(len(labels), order.size(batch, sizes), np.int32)
        return np.array(encoded, object), np.array(labels, np.int32), *here, size

    def tensors(step):
        kinds = (tf.string, tf.int32, tf.int32, tf.int32, tf.bool, tf.int32)
        columns = tf.numpy_function(read, [step], kinds, stateful=False)
        for column in columns:
            column.set_shape((local.stop - local.start,))
        return tuple(columns)

    def process(encoded, label, epoch, example, valid, size):
        # a size that is known beforehand saves a resize to the same size
        image = make_image(encoded, epoch, example, size if len(sizes) > 1 else sizes[0])
        return {
            "image": image,
            "label": label,
            "epoch": epoch,
            "example": example,
            "valid": valid,
        }

    dataset = (
        tf.data.Dataset.range(steps.start, steps.stop)
        .map(tensors, num_parallel_calls=2)
        .unbatch()
        .map(process, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(local.stop - local.start, drop_remainder=True)
        .prefetch(2)
    )
    options = tf.data.Options()
    options.deterministic = True
    step = steps.start
    try:
        for batch in dataset.with_options(options).as_numpy_iterator():
            yield batch
            step += 1
    except tf.errors.OpError:
        _find_unreadable(source, rows(step).example[local])
        raise


def _find_unreadable(source, examples):
    """Raises UserError for the first example that cannot be read or decoded when tried again."""
    for example in map(int, examples):
        try:
            augment.decode(source.read(example)[0])
        except Exception as error:  # whatever a source or its libraries raise
            # less the names of nodes and operations that TensorFlow puts around it
            reason = " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).split())
            raise UserError(
                f"{source.name(example)} cannot be read: {reason.rstrip('.')}; put a whole image in"
                " its place and start again with the same line"
            ) from error

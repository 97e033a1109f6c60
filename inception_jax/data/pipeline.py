"""tf.data: from an order of examples to batches of uint8 images, read and decoded in parallel."""

import io
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image

from inception_jax.data import augment, order
from inception_jax.data.order import Rows
from inception_jax.data.repair import Mended, Unreadable, listed
from inception_jax.errors import UserError

Batch = dict[str, np.ndarray]


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
    train = augment.make_train(config, seed)
    sizes = config.train_sizes or (config.image_size,)

    def read(example, valid):
        for skipped in range(len(source)):
            instead = (example + skipped) % len(source)
            try:
                return instead, *source.read(instead), valid
            except Unreadable:
                if config.unreadable == "error":
                    raise
        raise Unreadable("nor can any other")

    for batch in _batches(source, rows, local, steps, config, train, sizes, read):
        del batch["valid"]
        yield batch


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
      UserError: an example cannot be read or decoded, and is not to be skipped.
    """
    size = size or config.image_size
    central_crop = augment.make_eval(config, size)

    def make_image(encoded, *_):
        return central_crop(encoded)

    def read(example, valid):
        try:
            if valid:
                return example, *source.read(example), True
        except Unreadable:
            if config.unreadable == "error":
                raise
        return example, BLANK, 0, False

    for batch in _batches(source, rows, local, steps, config, make_image, (size,), read):
        yield {name: batch[name] for name in ("image", "label", "valid")}
    _check_any(source)


def _batches(source, rows, local, steps, config, make_image, sizes: Sequence[int], read):
    """Yields batches; begins anew after those in which images turned out to be damaged."""
    step = steps.start
    while step < steps.stop:
        batches = _dataset(rows, local, range(step, steps.stop), make_image, sizes, read)
        try:
            for batch in batches.as_numpy_iterator():
                yield batch
                step += 1
        except tf.errors.OpError:
            found = _find_unreadable(source, rows(step).example[local], config)
            _check_any(source)
            if not found:
                raise


def _dataset(rows, local, steps, make_image, sizes, read):
    def read_batch(step):
        batch = rows(int(step))
        due = batch.example[local]
        found = [read(*row) for row in zip(due.tolist(), batch.valid[local].tolist(), strict=True)]
        example, encoded, label, valid = zip(*found, strict=True)
        return (
            np.array(encoded, object),
            np.array(label, np.int32),
            batch.epoch[local],
            np.array(example, np.int32),
            due,
            np.array(valid, bool),
            np.full(len(due), order.size(batch, sizes), np.int32),
        )

    def tensors(step):
        kinds = (tf.string, tf.int32, tf.int32, tf.int32, tf.int32, tf.bool, tf.int32)
        columns = tf.numpy_function(read_batch, [step], kinds, stateful=False)
        for column in columns:
            column.set_shape((local.stop - local.start,))
        return tuple(columns)

    def process(encoded, label, epoch, example, due, valid, size):
        # a size that is known beforehand saves a resize to the same size
        image = make_image(encoded, epoch, example, size if len(sizes) > 1 else sizes[0])
        return {
            "image": image,
            "label": label,
            "epoch": epoch,
            "example": example,
            "due": due,
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
    return dataset.with_options(options)


def _find_unreadable(source, examples, config):
    """Finds what cannot be read or decoded when tried again; returns whether anything was new.

    Raises:
      UserError: for the first that is found, if it is not to be skipped.
    """
    before = len(source.faults)
    for due in examples.tolist():
        example = due
        while not _check(source, example):
            if config.unreadable == "error":
                raise UserError(
                    f"{source.name(example)} cannot be read: {source.faults[example]}; put a whole"
                    " image in its place and start again with the same line, or leave it out with"
                    " --config.data.unreadable=skip"
                )
            if len(source.faults) == len(source):
                break
            example = (example + 1) % len(source)  # which has taken its place
    return len(source.faults) > before


def _check_any(source):
    if len(source.faults) == len(source):
        told = [source.told(index) for index in sorted(source.faults)]
        raise UserError(f"none of {len(told)} images can be read: {listed(told)}")


def _check(source, example):
    """Whether it can be read and decoded; remembers why not."""
    if example not in source.faults:
        try:
            augment.decode(source.read(example)[0])
        except UserError:  # no fault of the image
            raise
        except Exception as error:  # whatever a source or its libraries raise
            # less the names of nodes and operations that TensorFlow puts around it
            reason = " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).split())
            source.faults[example] = reason.rstrip(".")
    return example not in source.faults


def _blank():
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()


BLANK = _blank()  # in rows that do not count

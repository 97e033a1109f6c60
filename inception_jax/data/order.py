"""Which example when: a pure function of (seed, position), so a resume skips nothing by reading it.

Position p of the training sequence, counted in images from 0, is place p mod N of epoch p div N,
and each epoch is a seeded permutation of the N examples. Batches run on across the ends of epochs,
so every example comes once an epoch and none is dropped. Step s of batch size B takes positions
s*B to (s+1)*B; hosts take slices of that, so their number changes nothing. Where the size of images
changes with the epoch, a batch that runs across an end has that of the epoch it begins in.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Examples of one batch, in order; all of shape (B,)."""

    epoch: np.ndarray  # int32
    example: np.ndarray  # int32, index into the source
    valid: np.ndarray  # bool, False where a row only fills up the batch


def permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(num_examples), the same in every process and library version.

    NumPy promises the bits of its bit generators for ever, but not how Generator.permutation uses
    them (NEP 19): hence the ranks of raw Philox numbers.
    """
    bits = np.random.Philox(key=[seed, epoch]).random_raw(num_examples)
    return np.argsort(bits, kind="stable").astype(np.int32)


def training(num_examples: int, batch_size: int, seed: int) -> Callable[[int], Rows]:
    """Returns rows(step), the global batch of that step, for steps from 0 without end."""
    permute = functools.lru_cache(maxsize=4)(lambda epoch: permutation(num_examples, seed, epoch))

    def rows(step: int) -> Rows:
        positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
        epochs, places = np.divmod(positions, num_examples)
        example = np.empty(batch_size, np.int32)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            example[here] = permute(int(epoch))[places[here]]
        return Rows(epochs.astype(np.int32), example, np.ones(batch_size, bool))

    return rows


def size(rows: Rows, sizes: Sequence[int]) -> int:
    """Returns the size of a batch's images: `sizes` in turn, one an epoch.

    Args:
      rows: the whole global batch, so that all hosts agree.
      sizes: in pixels.
    """
    return sizes[rows.epoch[0] % len(sizes)]


def evaluation(num_examples: int, batch_size: int) -> Callable[[int], Rows]:
    """Returns rows(step) over every example once; the last batch is filled up with example 0."""

    def rows(step: int) -> Rows:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        valid = positions < num_examples
        example = np.where(valid, positions, 0).astype(np.int32)
        return Rows(np.zeros(batch_size, np.int32), example, valid)

    return rows

"""Random numbers of many examples at once are bit for bit those that TensorFlow draws for one."""

import numpy as np
import pytest
import tensorflow as tf

from inception_jax.data import philox

INT64 = np.iinfo(np.int64)
ENDS = [0, 1, -1, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**53 + 1, INT64.max, INT64.min]
RNG = np.random.default_rng(0)
SEEDS = np.concatenate(
    [
        [(a, b) for a in ENDS for b in (0, -1, 5, INT64.max, INT64.min)],
        RNG.integers(INT64.min, INT64.max, (60, 2), endpoint=True),
        RNG.integers(-50, 50, (30, 2)),
    ]
)


@pytest.mark.parametrize("count", range(1, 10))
def test_numbers_are_those_of_tensorflow_for_any_seed(count):
    ours = philox.uniform(SEEDS, count)
    assert (ours.dtype, ours.shape) == (np.float32, (len(SEEDS), count))
    for seed, row in zip(SEEDS, ours, strict=True):
        theirs = tf.random.stateless_uniform((count,), seed, alg="philox").numpy()
        assert row.tobytes() == theirs.tobytes(), seed


def test_seeds_folded_with_a_number_are_those_of_tensorflow():
    data = np.resize(np.array(ENDS, np.int64), len(SEEDS))
    ours = philox.fold_in(SEEDS, data)
    assert ours.dtype == np.int64
    for seed, number, row in zip(SEEDS, data, ours, strict=True):
        folded = tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
        assert row.tolist() == folded.numpy().tolist(), (seed, number)


def test_an_int32_is_folded_like_the_same_int64():
    data = np.array([0, 1, -1, 7, 2**31 - 1, -(2**31)])
    ours = philox.fold_in(SEEDS[:6], data.astype(np.int32))
    assert (ours == philox.fold_in(SEEDS[:6], data)).all()


@pytest.mark.parametrize("which", [[3], [9, 2, 2, 40], range(len(SEEDS))[::-1]])
def test_a_row_depends_on_no_other_row(which):
    which = list(which)
    assert (philox.uniform(SEEDS[which], 7) == philox.uniform(SEEDS, 7)[which]).all()
    data = np.arange(len(SEEDS))
    folded = philox.fold_in(SEEDS, data)
    assert (philox.fold_in(SEEDS[which], data[which]) == folded[which]).all()


def test_seeds_are_left_as_they_were():
    seeds = SEEDS.copy()
    philox.uniform(seeds, 9)
    philox.fold_in(seeds, np.arange(len(seeds)))
    assert (seeds == SEEDS).all()

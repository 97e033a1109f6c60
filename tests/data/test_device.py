"""Mirroring and normalisation on the device, against plain NumPy."""

import functools

import jax
import numpy as np
import pytest

from configs import digits
from inception_jax.data.device import make_preprocess

MEAN, STD = (123.0, 117.0, 104.0), (58.5, 57.0, 1.0)
SIDES = np.array([[[[0, 0, 0], [255, 255, 255]]]], np.uint8)  # dark left, bright right


@functools.cache
def preprocessor(seed=0, mirror=True, mean=(0.0,) * 3, std=(1.0,) * 3):
    config = digits.get_config().data
    config.mirror, config.mean, config.std = mirror, mean, std
    return jax.jit(make_preprocess(config, seed), static_argnames="train")


def grid(epochs, examples):
    """A row of the same image for every pair."""
    epoch, example = np.mgrid[:epochs, :examples].reshape(2, -1).astype(np.int32)
    return {"image": SIDES.repeat(len(epoch), 0), "epoch": epoch, "example": example}


def mirrored(batch, seed=0, train=True, mirror=True):
    """Which rows of a grid were mirrored."""
    images = np.asarray(preprocessor(seed, mirror)(batch, train=train))
    flipped = images[:, 0, 0, 0] == 255
    np.testing.assert_array_equal(
        images, np.where(flipped[:, None, None, None], 255 - SIDES, SIDES)
    )
    return flipped


@pytest.mark.parametrize("train", [True, False])
def test_every_value_of_every_channel_is_normalised(train):
    images = np.arange(256, dtype=np.uint8).reshape(2, 16, 8, 1).repeat(3, axis=3)
    batch = {"image": images, "epoch": np.zeros(2, np.int32), "example": np.arange(2)}
    ours = preprocessor(mirror=False, mean=MEAN, std=STD)(batch, train=train)
    assert ours.dtype == np.float32
    exact = (images.astype(np.float64) - MEAN) / STD
    np.testing.assert_allclose(ours, exact, rtol=2.5e-7)  # two roundings of float32


def test_a_mirrored_image_is_turned_left_to_right_and_nothing_else():
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 6, 3), np.uint8)
    batch = grid(1, 64) | {"image": image.repeat(64, 0)}
    ours = np.asarray(preprocessor()(batch, train=True)).astype(np.uint8)
    flipped = mirrored(grid(1, 64))
    assert 0 < flipped.sum() < 64
    np.testing.assert_array_equal(ours[flipped], image[:, :, ::-1].repeat(flipped.sum(), 0))
    np.testing.assert_array_equal(ours[~flipped], image.repeat((~flipped).sum(), 0))


def test_half_of_the_images_are_mirrored_in_every_epoch_and_each_in_half_of_the_epochs():
    flipped = mirrored(grid(64, 64)).reshape(64, 64)
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / 64
    for axis in (0, 1):  # 4.5 standard deviations, since there are 128 of them
        assert np.abs(flipped.mean(axis) - 0.5).max() < 4.5 * 0.5 / 8
    assert (flipped != flipped.T).any()


def test_the_seed_changes_which_are_mirrored():
    batch = grid(32, 32)
    differing = (mirrored(batch, seed=0) != mirrored(batch, seed=1)).mean()
    assert abs(differing - 0.5) < 4 * 0.5 / 32


def test_an_image_is_mirrored_or_not_wherever_in_a_batch_it_stands():
    batch = grid(8, 8)
    flipped = mirrored(batch)
    order = np.random.default_rng(0).permutation(64)
    shuffled = {name: values[order] for name, values in batch.items()}
    np.testing.assert_array_equal(mirrored(shuffled), flipped[order])
    for size in (1, 16):
        parts = [
            mirrored({name: values[i : i + size] for name, values in batch.items()})
            for i in range(0, 64, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), flipped)


def test_evaluation_never_mirrors():
    assert not mirrored({"image": SIDES.repeat(100, 0)}, train=False).any()


def test_nothing_is_mirrored_where_the_config_says_so():
    assert not mirrored(grid(10, 10), mirror=False).any()

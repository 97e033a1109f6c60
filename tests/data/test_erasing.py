"""Random erasing: the paper's rectangles, full of even noise, and nothing else."""

import functools

import jax
import numpy as np
from sampling import assert_even

from inception_jax.data import erasing

SIDE, COUNT = 16, 1024


@functools.cache
def erased(probability=1.0):
    """What so many keys make of an image of -1, which no noise is."""
    keys = jax.random.split(jax.random.key(1), COUNT)
    image = np.full((SIDE, SIDE, 3), -1, np.float32)
    return np.asarray(_erase(keys, image, probability))


_erase = jax.jit(jax.vmap(erasing.erase, (0, None, None)))


def test_a_rectangle_of_every_image_is_filled():
    inside = (erased() >= 0).all(-1)
    np.testing.assert_array_equal(inside, (erased() >= 0).any(-1))
    rows, columns = inside.any(2), inside.any(1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None])
    for places in (rows, columns):  # without gaps
        assert ((np.diff(places.astype(int), axis=1) == 1).sum(1) + places[:, 0] == 1).all()
    share = inside.mean((1, 2))
    assert 0.01 < share.min() < 0.05 and 0.35 < share.max() < 0.45


def test_noise_is_every_whole_number_from_0_to_255_as_often_and_of_every_channel_its_own():
    noise = erased()[(erased() >= 0).all(-1)]
    frequency = np.bincount(noise.astype(int).ravel(), minlength=256) / noise.size
    assert (noise == noise.astype(int)).all() and len(frequency) == 256
    assert np.abs(frequency - 1 / 256).max() < 5 * np.sqrt(1 / 256 / noise.size)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 5 / np.sqrt(len(noise))
    first = erased()[:, :, :, 0].reshape(COUNT, -1)
    both = (first[0] >= 0) & (first[1] >= 0)
    assert (first[0] != first[1])[both].mean() > 0.9  # of every image its own


def test_so_many_images_are_erased_as_the_probability_says():
    share = (erased(0.25) >= 0).any((1, 2, 3)).mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / COUNT)
    some = (erased(0.25) >= 0).any((1, 2, 3))
    np.testing.assert_array_equal(erased(0.25)[some], erased()[some])


def test_area_aspect_and_place_are_even_over_what_fits():
    """On a large image, where whole pixels hardly matter; the paper's s_l, s_h and r_1."""
    side, count = 20_000, 4096
    uniform = np.random.default_rng(0).random((count, 4), np.float32)
    draw = jax.jit(jax.vmap(lambda row: erasing.rectangle(row, side)))
    top, left, height, width = (np.asarray(x, float) for x in draw(uniform))
    assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) > 0
    assert (top + height).max() <= side and (left + width).max() <= side
    area = height * width / side**2
    assert_even(area, 0.02 - 1e-4, 0.4 + 1e-4)
    low, high = np.maximum(0.3, area), np.minimum(1 / 0.3, 1 / area)
    assert_even((height / width - low) / (high - low), -2e-3, 1 + 2e-3)
    assert height.max() > 0.99 * side and width.max() > 0.99 * side
    for start, length in ((top, height), (left, width)):
        assert_even((start / np.maximum(side - length, 1))[length < 0.95 * side], 0, 1)
    draws = np.stack([area, height / width, top / (side - height + 1), left / (side - width + 1)])
    ranks = draws.argsort(1).argsort(1)
    assert np.abs(np.corrcoef(ranks)[2:, 2:] - np.eye(2)).max() < 4 / np.sqrt(count)


def test_the_smallest_rectangles_of_tiny_images_have_a_pixel():
    corners = np.array(list(np.ndindex(2, 2, 2, 2)), np.float32) * np.float32(0.99999994)
    for side in (1, 2, 5):
        for row in corners:
            top, left, height, width = map(int, erasing.rectangle(row, side))
            assert min(top, left) >= 0 and min(height, width) >= 1
            assert top + height <= side and left + width <= side

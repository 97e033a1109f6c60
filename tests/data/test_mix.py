"""Mixup and CutMix: shares by their distributions, partners, and labels that follow the pixels."""

import functools

import jax
import numpy as np

from inception_jax.data import mix

SIDE, COUNT = 32, 4096


@functools.cache
def drawn(mixup, cutmix):
    """Of so many keys, how much of each pixel is its own, BHW, and the share."""
    keys = jax.random.split(jax.random.key(2), COUNT)
    each = jax.jit(jax.vmap(lambda key: mix.draw(key, SIDE, mixup, cutmix)))
    own_BHW, share_B = each(keys)
    assert own_BHW.dtype == share_B.dtype == np.float32
    return np.asarray(own_BHW), np.asarray(share_B)


def is_cut(own_BHW):
    """Which rows are CutMix's: of pixels that are all or nothing."""
    return ((own_BHW == 0) | (own_BHW == 1)).all((1, 2))


def assert_beta(share_B, alpha):
    """By mean and variance."""
    share_B = share_B.astype(float)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share_B.mean() - 0.5) < 4 * np.sqrt(variance / len(share_B))
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))  # central moment
    assert abs(((share_B - 0.5) ** 2).mean() - variance) < 4 * np.sqrt(
        (fourth - variance**2) / len(share_B)
    )


def test_mixups_share_is_of_the_beta_distribution_and_the_same_for_every_pixel():
    own_BHW, share_B = drawn(0.2, 0.0)
    np.testing.assert_array_equal(own_BHW, np.broadcast_to(share_B[:, None, None], own_BHW.shape))
    assert_beta(share_B, 0.2)


def test_cutmixs_share_is_that_of_the_pixels_that_are_left_and_the_rest_a_box():
    own_BHW, share_B = drawn(0.0, 1.0)
    assert is_cut(own_BHW).all()
    kept_B = own_BHW.astype(int).sum((1, 2))
    np.testing.assert_array_equal(share_B, np.float32(kept_B / SIDE**2))
    others_BHW = own_BHW == 0
    rows, columns = others_BHW.any(2), others_BHW.any(1)
    np.testing.assert_array_equal(others_BHW, rows[:, :, None] & columns[:, None])
    for places in (rows, columns):
        assert ((np.diff(places.astype(int), axis=1) == 1).sum(1) + places[:, 0] <= 1).all()
    assert share_B.min() < 0.2 and share_B.max() == 1


def boxes(alpha):
    """Of shares of the distribution, half the sides of the published code's boxes, N1."""
    share = np.random.default_rng(0).beta(alpha, alpha, 100_000)
    return (SIDE * np.sqrt(1 - share)).astype(int)[:, None] // 2


def assert_pasted(pasted_B, alpha):
    """By mean and mean square of what other images cover, over all boxes and their centres."""
    half, centre = boxes(alpha), np.arange(SIDE)
    side = np.minimum(centre + half, SIDE) - np.maximum(centre - half, 0)
    for power in (1, 2):
        expected = ((side**power).mean(1) ** 2).mean() / SIDE ** (2 * power)
        values = pasted_B.astype(float) ** power
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(len(values))


def test_cutmixs_boxes_are_as_large_and_where_the_published_code_has_them():
    own_BHW, share_B = drawn(0.0, 1.0)
    assert_pasted(1 - share_B, 1.0)
    centre, half = np.arange(SIDE), boxes(1.0)[:4096]
    chance = (np.abs(np.arange(SIDE)[:, None, None] - centre + 0.5) < half).mean(-1)
    expected = np.einsum("ys,xs->yx", chance, chance) / chance.shape[-1]  # more in the middle
    assert np.abs(1 - own_BHW.mean(0) - expected).max() < 5 * 0.5 * np.sqrt(2 / COUNT)


def test_with_both_each_image_takes_either_evenly_and_by_its_own_alpha():
    """Told apart by shares of 4.0 that are never 0 or 1, but in boxes without a pixel."""
    own_BHW, share_B = drawn(0.2, 4.0)
    np.testing.assert_allclose(own_BHW.mean((1, 2)), share_B, atol=1e-6)
    even_B = own_BHW.min((1, 2)) == own_BHW.max((1, 2))
    assert abs(even_B.mean() - 0.5) < 4 * 0.5 / np.sqrt(COUNT)
    assert is_cut(own_BHW)[~even_B].all()
    assert_beta(share_B[even_B], 0.2)
    assert_pasted(1 - share_B[~even_B], 4.0)


def test_each_image_and_label_is_mixed_with_the_one_before():
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.uniform(0, 255, (24, 8, 8, 3)).astype(np.float32),
        "label": np.arange(24, dtype=np.int32),
    }
    keys_B = jax.random.split(jax.random.key(5), 24)
    mixed = jax.jit(functools.partial(mix.mix, mixup=0.4, cutmix=1.0))(keys_B, batch)
    own_BHW, share_B = jax.jit(jax.vmap(lambda key: mix.draw(key, 8, 0.4, 1.0)))(keys_B)
    assert 4 < is_cut(np.asarray(own_BHW)).sum() < 20
    np.testing.assert_array_equal(mixed["label"], np.arange(24))
    np.testing.assert_array_equal(mixed["other_label"], [23, *range(23)])
    np.testing.assert_allclose(mixed["share"], share_B, rtol=1e-6)
    own_BHW1 = np.asarray(own_BHW, float)[..., None]
    others = np.concatenate([batch["image"][-1:], batch["image"][:-1]])
    by_hand = own_BHW1 * batch["image"] + (1 - own_BHW1) * others
    np.testing.assert_allclose(mixed["image"], by_hand, atol=1e-4)

"""Mirroring, lighting, normalisation and the order of all that happens on the device."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from inception_jax.data import erasing, mix, photometric, randaugment
from inception_jax.data.device import make_augment, make_distort, make_mix, make_preprocess
from inception_jax.data.photometric import lighting
from inception_jax.rng import Stream, key

MEAN, STD = (123.0, 117.0, 104.0), (58.5, 57.0, 1.0)
SIDES = np.array([[[[0, 0, 0], [255, 255, 255]]]], np.uint8)  # dark left, bright right


@functools.cache
def preprocessor(seed=0, mirror=True, mean=(0.0,) * 3, std=(1.0,) * 3, noise=0.0):
    config = digits.get_config().data
    config.lighting = noise
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


# facebook/fb.resnet.torch, datasets/imagenet.lua, times 255: what each component adds to R, G and B
# at an alpha of 1.
ADDED = (
    255
    * np.diag([0.2175, 0.0188, 0.0045])
    @ np.array([[-0.5675, -0.5808, -0.5836], [0.7192, -0.0045, -0.6948], [0.4009, -0.8140, 0.4203]])
)


def lit(batch, seed=0, train=True, **options):
    """What lighting added to each image of a batch, R, G and B; the same for all of its pixels."""
    options = {"mirror": False, "noise": 0.1} | options
    images = np.asarray(preprocessor(seed, **options)(batch, train=train), np.float64)
    added = images - batch["image"]
    assert np.ptp(added, axis=(1, 2)).max() < 1e-4  # float32 near 255
    return added[:, 0, 0]


def test_lighting_adds_the_principal_colours_by_their_eigenvalues():
    alpha = np.random.default_rng(0).normal(0, 0.1, (50, 3)).astype(np.float32)
    exact = [sum(a * row for a, row in zip(alphas, ADDED, strict=True)) for alphas in alpha]
    np.testing.assert_allclose(jax.vmap(lighting)(alpha), exact, rtol=1e-5, atol=1e-5)


def test_lighting_is_normal_with_the_deviation_given():
    """Dark images, so that next to nothing is lost to rounding."""
    batch = grid(64, 64)
    batch["image"] = np.zeros_like(batch["image"])
    for noise in (0.1, 0.3):
        alpha = np.linalg.solve(ADDED.T, lit(batch, noise=noise).T).T / noise
        count = len(alpha)
        assert np.abs(alpha.mean(0)).max() < 4 / math.sqrt(count)
        spread = np.cov(alpha.T)
        assert np.abs(spread - np.eye(3)).max() < 4 * math.sqrt(2 / count)
        for values in np.sort(alpha, axis=0).T:  # Kolmogorov and Smirnov's test at 1 %
            below = [0.5 + 0.5 * math.erf(value / math.sqrt(2)) for value in values]
            steps = np.arange(count + 1) / count
            distance = max(np.abs(below - steps[1:]).max(), np.abs(below - steps[:-1]).max())
            assert distance < 1.63 / math.sqrt(count)


def test_lighting_depends_on_seed_epoch_and_example_only():
    batch = grid(8, 8)
    added = lit(batch)
    assert len({tuple(row) for row in added.round(6)}) == 64
    order = np.random.default_rng(0).permutation(64)
    shuffled = {name: values[order] for name, values in batch.items()}
    np.testing.assert_array_equal(lit(shuffled), added[order])
    part = {name: values[5:9] for name, values in batch.items()}
    np.testing.assert_array_equal(lit(part), added[5:9])
    assert (lit(batch, seed=1) != added).any(1).all()


def test_lighting_is_not_clipped_and_is_normalised_with_the_image():
    batch = grid(8, 8)
    added = lit(batch)[:, None, None]
    assert (batch["image"] + added).min() < -5 and (batch["image"] + added).max() > 260
    ours = preprocessor(mirror=False, mean=MEAN, std=STD, noise=0.1)(batch, train=True)
    exact = (batch["image"] + added - MEAN) / STD
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-4)


def test_lighting_leaves_mirroring_as_it_is():
    batch = grid(8, 8)
    images = np.asarray(preprocessor(noise=0.1)(batch, train=True)) - lit(batch)[:, None, None]
    np.testing.assert_array_equal(images[:, 0, 0, 0] > 128, mirrored(batch))


def test_evaluation_has_no_lighting_nor_has_training_unless_the_config_says_so():
    batch = grid(5, 5)
    assert not lit(batch, train=False).any()
    assert not lit(batch, noise=0.0).any()


# Everything at once.
ALL = {
    "mirror": True,
    "randaugment_layers": 2,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 0.1,
    "lighting": 0.1,
    "erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "mean": MEAN,
    "std": STD,
}


def configured(**fields):
    config = digits.get_config().data
    config.update(fields)
    return config


# quicker to compile
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@jit
def distort_all(seed, batch):
    return make_distort(configured(**ALL), seed)(batch)


def noisy(epochs=3, examples=8, side=16):
    batch = grid(epochs, examples)
    count = epochs * examples
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    label = np.arange(count, dtype=np.int32) % 10
    return batch | {"image": image.repeat(count, 0), "label": label}


def test_all_distortions_depend_on_seed_epoch_and_example_only():
    batch = noisy()
    distorted = np.asarray(distort_all(0, batch))
    assert len({image.tobytes() for image in distorted}) == 24
    order = np.random.default_rng(0).permutation(24)
    shuffled = {name: values[order] for name, values in batch.items()}
    np.testing.assert_array_equal(distort_all(0, shuffled), distorted[order])
    others = np.asarray(distort_all(1, batch))
    assert (others != distorted).any((1, 2, 3)).all()


def test_the_order_is_mirror_randaugment_colours_lighting_erasing_mixing_normalisation():
    """By the functions of the other files, which have tests of their own; each with its own key."""
    batch, seed = noisy(), 3

    def by_hand(image, epoch, example):
        def of(stream):
            return key(seed, stream, epoch, example)

        flip = jax.random.bernoulli(of(Stream.AUGMENTATION))
        image = jnp.where(flip, image[:, ::-1], image)
        image = randaugment.randaugment(of(Stream.RANDAUGMENT), image, 2, 9.0)
        colours = {name: ALL[name] for name in photometric.OPERATIONS}
        image = photometric.distort(of(Stream.PHOTOMETRIC), image.astype(jnp.float32), colours)
        image += lighting(0.1 * jax.random.normal(of(Stream.LIGHTING), (3,), jnp.float32))
        return erasing.erase(of(Stream.ERASING), image, 0.5), of(Stream.MIX)

    def all_of(batch):
        images, keys = jax.vmap(by_hand)(batch["image"], batch["epoch"], batch["example"])
        return mix.mix(keys, batch | {"image": images}, 0.2, 1.0)

    config = configured(**ALL)
    expected = jit(all_of)(batch)
    mixed, shown = jit(lambda b: (make_mix(config, seed)(b), make_augment(config, seed)(b)))(batch)
    assert mixed.keys() == expected.keys() == {*batch, "other_label", "share"}
    for name, values in expected.items():
        np.testing.assert_allclose(mixed[name], values, atol=1e-3, err_msg=name)
    np.testing.assert_array_equal(shown, mixed["image"])
    ours = make_preprocess(config, seed)(mixed, train=True)
    np.testing.assert_allclose(
        ours, (np.asarray(mixed["image"]) - MEAN) / STD, rtol=1e-5, atol=1e-5
    )


def test_without_mixing_what_is_shown_is_what_the_network_sees_before_normalisation():
    config = configured(**ALL | {"mixup": 0.0, "cutmix": 0.0, "randaugment_layers": 0})
    assert make_mix(config, 0) is None
    network_sees = make_preprocess(config, 0)
    shown, ours = jit(lambda b: (make_augment(config, 0)(b), network_sees(b, train=True)))(noisy())
    assert shown.dtype == ours.dtype == np.float32
    np.testing.assert_allclose(ours, (np.asarray(shown) - MEAN) / STD, rtol=1e-5, atol=1e-3)


def test_evaluation_has_none_of_it():
    batch = noisy()
    ours = make_preprocess(configured(**ALL), 0)({"image": batch["image"]}, train=False)
    np.testing.assert_allclose(ours, (batch["image"] - np.array(MEAN)) / STD, rtol=2.5e-7)


def test_what_is_drawn_stays_what_it_was():
    """Else a run that is resumed after an upgrade would go on with other images."""
    assert [stream.value for stream in Stream] == list(range(8))
    flipped = mirrored(grid(1, 16)).astype(int)
    assert "".join(map(str, flipped)) == "1001101010101101"
    np.testing.assert_allclose(lit(grid(1, 1))[0], [-5.038694, -5.235110, -5.324324], rtol=1e-4)

"""RandAugment on the device, against Pillow: the same values, but for what is said here."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from inception_jax.data import randaugment
from inception_jax.data.randaugment import Operation, apply

SIDE = 37
MAGNITUDE = 9.0  # the paper's for ImageNet


def images():
    """Noise, dull noise, few colours, a ramp and one colour, uint8 BHWC."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (SIDE, SIDE, 3))
    dull = rng.integers([[[90, 20, 128]]], [[[140, 25, 250]]], (SIDE, SIDE, 3))
    few = rng.choice([3, 77, 78, 240], (SIDE, SIDE, 3))
    ramp = np.linspace(0, 255, SIDE)[:, None, None] * [[[1.0, 0.5, 0.25]]]
    one = np.full((SIDE, SIDE, 3), 200)
    return np.stack([noise, dull, few, np.broadcast_to(ramp, noise.shape), one]).astype(np.uint8)


@functools.cache
def compiled(magnitude):
    return jax.jit(
        jax.vmap(
            lambda which, image, sign: apply(which, image, magnitude, sign), in_axes=(None, 0, None)
        )
    )


def ours(operation, magnitude=MAGNITUDE, sign=1.0):
    return np.asarray(compiled(magnitude)(np.int32(operation), images(), np.float32(sign)))


def pillows(function):
    return np.stack([np.asarray(function(Image.fromarray(image))) for image in images()])


def equal_but_for_ties(got, want, share=0.002):
    """Pillow's float32 and XLA's, which may fuse a product and a sum, differ by the last digit."""
    assert got.dtype == np.uint8
    difference = np.abs(got.astype(int) - want)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= share


@pytest.mark.parametrize(
    ("operation", "function"),
    [
        (Operation.IDENTITY, lambda image: image),
        (Operation.EQUALIZE, ImageOps.equalize),
        (Operation.SOLARIZE, lambda image: ImageOps.solarize(image, int(0.9 * 256))),
        (Operation.POSTERIZE, lambda image: ImageOps.posterize(image, int(0.9 * 4))),
    ],
)
def test_tables_are_pillows(operation, function):
    np.testing.assert_array_equal(ours(operation), pillows(function))


def test_autocontrast_is_pillows_or_exact_where_that_loses_a_level_by_rounding():
    got, want = ours(Operation.AUTO_CONTRAST), pillows(ImageOps.autocontrast)
    for image, values, theirs in zip(images(), got, want, strict=True):
        low, high = (f(image, axis=(0, 1)).astype(int) for f in (np.min, np.max))
        numerator, room = (image - low) * 255, np.maximum(high - low, 1)
        lost = values != theirs
        assert (numerator % room == 0)[lost].all()
        np.testing.assert_array_equal(values[lost], theirs[lost] + 1)
        if ((low == 0) & (high == 255)).all():
            assert not lost.any()
    assert (got[1].min(), got[1].max()) == (0, 255)
    np.testing.assert_array_equal(got[4], images()[4])


@pytest.mark.parametrize(
    ("operation", "enhancer"),
    [
        (Operation.COLOR, ImageEnhance.Color),
        (Operation.CONTRAST, ImageEnhance.Contrast),
        (Operation.BRIGHTNESS, ImageEnhance.Brightness),
        (Operation.SHARPNESS, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows_by_the_published_factor(operation, enhancer):
    for magnitude in (MAGNITUDE, 2.0):
        factor = 0.1 + 1.8 * magnitude / 10
        want = pillows(lambda image, factor=factor: enhancer(image).enhance(factor))
        equal_but_for_ties(ours(operation, magnitude), want)


def test_smoothing_and_grey_are_pillows():
    for image in jnp.asarray(images()):
        picture = Image.fromarray(np.asarray(image))
        smoothed = np.asarray(picture.filter(ImageFilter.SMOOTH))
        np.testing.assert_array_equal(randaugment.smooth(image), smoothed)
        np.testing.assert_array_equal(randaugment.grey(image), np.asarray(picture.convert("L")))


def transform(matrix):
    def moved(image):
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.NEAREST,
            fillcolor=(128,) * 3,
        )

    return moved


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("operation", "matrix"),
    [
        (Operation.SHEAR_X, lambda s: (1, 0.3 * s, 0, 0, 1, 0)),
        (Operation.SHEAR_Y, lambda s: (1, 0, 0, 0.3 * s, 1, 0)),
        (Operation.TRANSLATE_X, lambda s: (1, 0, SIDE * 100 / 224 * s, 0, 1, 0)),
        (Operation.TRANSLATE_Y, lambda s: (1, 0, 0, 0, 1, SIDE * 100 / 224 * s)),
    ],
)
def test_shears_and_translations_are_pillows(operation, matrix, sign):
    """All but what lies between two pixels, where Pillow computes in 65536ths of one."""
    want = pillows(transform(matrix(sign * 0.9)))
    got = ours(operation, sign=sign)
    assert (got != want).any(-1).mean() < 0.005
    assert (got == 128).all(-1).mean() > 0.1


@pytest.mark.parametrize("sign", [1, -1])
def test_turns_are_pillows_about_the_centre(sign):
    """Image.rotate turns against the clock, as a positive sign does here."""
    want = pillows(lambda image: image.rotate(27 * sign, fillcolor=(128,) * 3))
    assert (ours(Operation.ROTATE, sign=sign) != want).any(-1).mean() < 0.005


TINY = images()[0, :17, :17]  # more than 255 pixels, or equalize would do nothing
PAIRS = [(operation, sign) for operation in Operation for sign in (1, -1)]


@functools.cache
def drawn(layers, count=2**12):
    """What so many keys make of a tiny image, whose results tell operations apart."""

    def draw(key):
        return randaugment.randaugment(key, jnp.asarray(TINY), layers, MAGNITUDE)

    made = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), count))
    return collections.Counter(image.tobytes() for image in np.asarray(made))


@functools.cache
def results():
    """What every operation and sign makes of the tiny image, and every second one of that."""
    each = jax.vmap(lambda pair, image: apply(pair[0], image, MAGNITUDE, pair[1].astype("float32")))
    all_of = jax.jit(jax.vmap(each, in_axes=(None, 0)))
    pairs = np.array(PAIRS, np.int32)
    first = np.asarray(all_of(pairs, TINY[None, None].repeat(28, 1)))[0]
    second = np.asarray(all_of(pairs, first[:, None].repeat(28, 1)))
    return first, second


def test_every_operation_and_sign_is_as_frequent():
    first = dict(zip(PAIRS, (image.tobytes() for image in results()[0]), strict=True))
    signed = [name for name in Operation if first[name, 1] != first[name, -1]]
    assert [name.name for name in signed] == [
        *("ROTATE", "SHEAR_X", "SHEAR_Y", "TRANSLATE_X", "TRANSLATE_Y")
    ]
    outcomes = drawn(1)
    assert outcomes.keys() == set(first.values()) and len(outcomes) == 14 + 5
    for (operation, _), image in first.items():
        chance = 1 / 28 if operation in signed else 1 / 14
        deviation = np.sqrt(chance * (1 - chance) / outcomes.total())
        assert abs(outcomes[image] / outcomes.total() - chance) < 4 * deviation, operation


def test_layers_are_drawn_apart():
    """Pearson's chi-squared test of all pairs of operations and signs, at four deviations."""
    pairs = collections.Counter(image.tobytes() for row in results()[1] for image in row)
    outcomes = drawn(2)
    assert outcomes.keys() <= pairs.keys()
    expected = {image: outcomes.total() * ways / 28**2 for image, ways in pairs.items()}
    statistic = sum((outcomes[image] - count) ** 2 / count for image, count in expected.items())
    freedom = len(expected) - 1
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)

"""Distortions of colours, against NumPy, Pillow and the standard library's colorsys."""

import colorsys
import functools
import itertools
from collections import Counter

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sampling import assert_even

from inception_jax.data import photometric

OFF = dict.fromkeys(photometric.OPERATIONS, 0.0)
NOISE = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)


def grey(images):
    return images @ [0.299, 0.587, 0.114]


def turned(images, turn):
    """By the standard library, a pixel at a time."""

    def pixel(red, green, blue):
        h, s, v = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb((h + turn) % 1, s, v)

    flat = [pixel(*rgb) for rgb in images.reshape(-1, 3).tolist()]
    return np.array(flat).reshape(images.shape)


BY_HAND = {  # on float64 HWC
    "brightness": lambda image, f: np.clip(f * image, 0, 255),
    "contrast": lambda image, f: np.clip(f * image + (1 - f) * grey(image).mean(), 0, 255),
    "saturation": lambda image, f: np.clip(f * image + (1 - f) * grey(image)[..., None], 0, 255),
    "hue": turned,
}
PILLOWS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@functools.cache
def operation(name):
    return jax.jit(photometric.OPERATIONS[name])


@pytest.mark.parametrize("factor", [0.0, 0.37, 1.0, 1.63, 2.0])
@pytest.mark.parametrize("name", PILLOWS)
def test_factors_are_those_of_pillow(name, factor):
    """To float32 of what they say; to what Pillow rounds, its result and the grey or its mean."""
    ours = np.asarray(operation(name)(NOISE.astype(np.float32), np.float32(factor)))
    np.testing.assert_allclose(ours, BY_HAND[name](NOISE.astype(float), factor), atol=2e-4)
    theirs = np.asarray(PILLOWS[name](Image.fromarray(NOISE)).enhance(factor), float)
    assert np.abs(ours - theirs).max() < 1.001 + 0.5 * abs(1 - factor)


@pytest.mark.parametrize("turn", [-0.5, -0.21, 0.0, 0.1, 1 / 3, 0.5])
def test_hue_is_turned_as_by_the_standard_library(turn):
    image = np.concatenate([NOISE.reshape(-1, 3), NOISE.reshape(-1, 3)[:50, :1].repeat(3, 1)])
    pure = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]]
    image = np.concatenate([image, pure, [[0, 0, 0]]])[None]
    ours = operation("hue")(image.astype(np.float32), np.float32(turn))
    np.testing.assert_allclose(ours, turned(image.astype(float), turn), atol=1e-3)
    if turn == 1 / 3:  # red to green to blue to red
        np.testing.assert_allclose(ours[0, -7:-4], np.roll(pure[:3], -1, 0), atol=1e-3)


@functools.cache
def distort(count, **ranges):
    """distort(image) -> what so many keys make of it."""
    keys = jax.random.split(jax.random.key(0), count)
    each = jax.vmap(lambda key, image: photometric.distort(key, image, OFF | ranges), (0, None))
    return functools.partial(jax.jit(each), keys)


PROBE = np.array([[[70, 90, 110], [50, 60, 100]]], np.float32)  # nothing of it is clipped


def amounts(name, count, x):
    """The factors or turns of so many keys, from what they made of two pixels."""
    images = np.asarray(distort(count, **{name: x})(PROBE), float)
    if name == "brightness":
        return images[:, 0, 0, 0] / 70
    if name == "contrast":
        return (images[:, 0, 0, 0] - images[:, 0, 1, 0]) / 20
    if name == "saturation":
        return (images[:, 0, 0, 2] - images[:, 0, 0, 0]) / 40
    hues = [colorsys.rgb_to_hsv(*rgb)[0] for rgb in images[:, 0, 0].tolist()]
    return (np.array(hues) - colorsys.rgb_to_hsv(*PROBE[0, 0].tolist())[0] + 0.5) % 1 - 0.5


@pytest.mark.parametrize("name", photometric.OPERATIONS)
def test_amounts_are_drawn_evenly_from_the_range(name):
    middle = 0.0 if name == "hue" else 1.0
    x = 0.2 if name == "hue" else 0.5
    assert_even(amounts(name, 4096, x), middle - x, middle + x)


def test_all_operations_are_done_in_an_order_drawn_evenly():
    """By hand in all 24 orders, which differ where values are clipped or hue is turned.

    Where several orders give the same, they share the case: then each still expects a 24th.
    """
    ranges = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.3}
    image, count = NOISE[:3, :3].astype(np.float32), 240
    drawn = {name: amounts(name, count, x) for name, x in ranges.items()}
    orders, shares = list(itertools.permutations(ranges)), Counter()
    ambiguous = 0
    for number, ours in enumerate(np.asarray(distort(count, **ranges)(image))):
        by_hand = {(): image.astype(float)}  # of each beginning of an order
        for length in range(1, 5):
            for order in itertools.permutations(ranges, length):
                last = BY_HAND[order[-1]]
                by_hand[order] = last(by_hand[order[:-1]], drawn[order[-1]][number])
        alike = [order for order in orders if np.abs(by_hand[order] - ours).max() < 0.05]
        assert alike
        ambiguous += len(alike) > 1
        shares.update(dict.fromkeys(alike, 1 / len(alike)))
    assert ambiguous < 0.7 * count
    deviation = np.sqrt(count * (1 / 24) * (23 / 24))
    for order in orders:
        assert abs(shares[order] - count / 24) < 4 * deviation, order


def test_what_is_off_is_left_out_and_changes_no_other_amount():
    both = np.asarray(distort(64, brightness=0.2, saturation=0.3)(PROBE), float)
    f, g = amounts("brightness", 64, 0.2), amounts("saturation", 64, 0.3)
    grey_B1W1 = grey(PROBE)[None, ..., None]
    expected = f[:, None, None, None] * (
        g[:, None, None, None] * PROBE + (1 - g[:, None, None, None]) * grey_B1W1
    )
    np.testing.assert_allclose(both, expected, rtol=1e-5)
    assert abs(np.corrcoef(f, g)[0, 1]) < 4 / 8

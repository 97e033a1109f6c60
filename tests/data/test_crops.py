"""Decoding no more than a patch needs, and resizing it, lose nothing of what it shows."""

import functools
import io

import numpy as np
import pytest
from PIL import Image
from sampling import assert_even
from sklearn.datasets import load_sample_images

from configs import googlenet
from inception_jax.data import augment, crops, repair

RNG = np.random.default_rng(0)


@functools.cache
def photographs():
    """Two of 427 x 640 pixels."""
    return load_sample_images().images


def jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **{"quality": 92} | options)
    return buffer.getvalue()


def settings(**others):
    config = googlenet.get_config().data
    config.update(others)
    return config


# Windows.

COLOURED = photographs()[0][60:151, 200:317]  # of odd sides, roofs against the sky
KINDS = {
    "4:2:0": (jpeg(COLOURED, subsampling=2), (1, 1)),
    "4:2:2": (jpeg(COLOURED, subsampling=1), (0, 1)),
    "4:4:4": (jpeg(COLOURED, subsampling=0), (0, 0)),
    "grey": (jpeg(COLOURED[..., 0]), (0, 0)),
    "progressive 4:2:0": (jpeg(COLOURED, subsampling=2, progressive=True), (1, 1)),
    "progressive 4:4:4": (jpeg(COLOURED, subsampling=0, progressive=True), (0, 0)),
    "4:2:0 with restarts": (jpeg(COLOURED, subsampling=2, restart_marker_blocks=2), (1, 1)),
}
# At a cut the decoder has no neighbour to interpolate colours with. Measured: 14 of 255.
MOST_AT_A_CUT = 20


def windows():
    """Top, left, height and width: at every border, of a single pixel, and anywhere."""
    height, width = COLOURED.shape[:2]
    for top in (0, 1, 15, 16, height - 17):
        for left in (0, 1, 15, 16, width - 17):
            for high in (1, 16, height - top):
                for wide in (1, 17, width - left):
                    yield top, left, high, wide
    for _ in range(100):
        top, left = RNG.integers(0, (height, width))
        yield top, left, *RNG.integers(1, (height - top + 1, width - left + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_decodes_to_the_pixels_of_the_whole_image(kind):
    """But for the outermost of a cut, whose colours may be a little off where they are coarser."""
    data, coarse = KINDS[kind]
    whole = augment.decode(data).astype(int)
    assert whole.shape == COLOURED.shape
    for window in windows():
        top, left, height, width = window
        cut = augment.decode(data, crops.Crop(1, np.array(window, np.int32), None, None, ""))
        assert cut.shape == (height, width, 3)
        off = np.abs(cut - whole[top : top + height, left : left + width]).max(2)
        inside = [
            slice(by * (start > 0), size - by * (start + size < side))
            for by, start, size, side in zip(
                coarse, (top, left), (height, width), whole.shape, strict=False
            )
        ]
        assert not off[*inside].any(), window
        assert off.max() <= MOST_AT_A_CUT * any(coarse)


# A half, a quarter, an eighth of the size, where a patch is larger than needed by as much.

SIZE = 64
# dB between patches of images decoded smaller and in full. Measured: 34.6 (grass and roofs) to
# 44.8; of a box that is off by one pixel of the smaller image at most 29.2.
BAR = 33


def patch(data, corner, extent, is_jpeg=True, way="antialiased"):
    """What comes out for a box, by decoding as much of the image as the box needs."""
    box = crops.Box(np.array([corner], float), np.array([extent], float))
    sides, margin = np.array([repair.sides(data)]), way == "antialiased"
    [crop] = crops._cover(box, sides, np.array([is_jpeg]), SIZE, np.array([way]), margin)
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    fill = augment.make_train(settings(image_size=SIZE, interpolation=way))
    fill(augment.decode(data, crop), crop, image)
    return crop.ratio, image


def decibels(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
@pytest.mark.parametrize("which", range(2))
@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_a_patch_of_an_image_decoded_smaller_is_that_of_the_whole(ratio, which, subsampling):
    sides = np.array([SIZE * ratio * 15 // 8 + 7, SIZE * ratio * 5 // 2 + 13])
    photograph = Image.fromarray(photographs()[which]).resize(sides[::-1], Image.Resampling.BICUBIC)
    data = jpeg(np.asarray(photograph), subsampling=subsampling)
    buffer = io.BytesIO()
    Image.fromarray(augment.decode(data)).save(buffer, "PNG", compress_level=1)
    extent = np.array([SIZE * ratio + 3, SIZE * ratio + ratio // 2])
    for corner in ((0, 0), (ratio + 1, 2 * ratio + 1), sides - extent):
        full = patch(buffer.getvalue(), corner, extent, is_jpeg=False)
        smaller = patch(data, corner, extent)
        assert (smaller[0], full[0]) == (ratio, 1)
        found = decibels(smaller[1], full[1])
        assert found > BAR
        # the bar would catch a box that is off by a pixel of the smaller image, and the distance
        # one that is off by half of it
        inwards = np.where(corner + extent + ratio > sides, -1, 1)
        for axis in ((0, 1), (1, 0)):
            off = patch(data, corner + inwards * axis * ratio, extent)[1]
            assert decibels(off, full[1]) < BAR - 3
            off = patch(data, corner + inwards * axis * ratio / 2, extent)[1]
            assert decibels(off, full[1]) < found - 2


@pytest.mark.parametrize("way", crops.WAYS)
def test_only_what_averages_is_made_of_images_decoded_smaller(way):
    """Averages of pixels are other pixels than the nearest ones, or those between two."""
    data, extent = jpeg(photographs()[0]), (4 * SIZE, 5 * SIZE)
    ratio, found = patch(data, (100, 201), extent, way=way)
    corner = (100, 200 if way == "area" else 201)  # the nearest pixel of the smaller image
    _, full = patch(data, corner, extent, is_jpeg=False, way=way)
    if way == "area":
        assert ratio == 4
        assert decibels(found, full) > BAR
    else:
        assert ratio == 1
        assert (found == full).all()


def test_a_window_is_its_box_to_the_nearest_pixel():
    """OpenCV resizes the whole window."""
    count = 500
    examples = np.arange(count, dtype=np.int32)
    numbers = crops.draw(0, examples, examples)
    shapes = RNG.integers(40, 3000, (count, 2))
    config = settings(image_size=SIZE, interpolation="area")
    boxes = crops._random_area(config, shapes, numbers)
    cuts = crops.make_train(config)(numbers, shapes, np.ones(count, bool), SIZE)
    assert {cut.ratio for cut in cuts} == {1, 2, 4, 8}
    for cut, corner, extent in zip(cuts, *boxes, strict=True):
        start, end = cut.window[:2] * cut.ratio, (cut.window[:2] + cut.window[2:]) * cut.ratio
        assert (np.abs(start - corner) <= cut.ratio / 2).all()
        assert (np.abs(end - corner - extent) <= cut.ratio / 2).all()
        assert np.allclose(cut.corner * cut.ratio, corner - start)
        assert np.allclose(cut.extent * cut.ratio, extent)
        # the smallest that is large enough
        assert extent.min() >= SIZE * cut.ratio or cut.ratio == 1
        assert extent.min() < SIZE * cut.ratio * 2 or cut.ratio == 8


# Ways of resizing.


def fill(name, pixels, height, width):
    patch = np.empty((height, width, 3), np.uint8)
    whole = np.array(pixels.shape[:2], float)
    crop = crops.Crop(1, np.array([0, 0, *pixels.shape[:2]]), np.zeros(2), whole, name)
    augment.make_train(settings(interpolation=name))(pixels, crop, patch)
    return patch


def weights(name, length, old):
    """How much each of the old pixels counts in each of the new ones, in float64."""
    scale = old / length
    new = np.zeros((length, old))
    for i in range(length):
        if name == "nearest":
            new[i, int(i * scale)] = 1
        elif name == "area":  # what each pixel has in common with [i, i + 1) * scale
            edges = np.clip(np.arange(old + 1), i * scale, (i + 1) * scale)
            new[i] = np.diff(edges) / scale
        else:
            centre = (i + 0.5) * scale - 0.5
            for at in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                inside = min(max(at, 0), old - 1)  # the border goes on
                new[i, inside] += KERNELS[name](abs(centre - at))
    np.testing.assert_allclose(new.sum(1), 1)
    return new


def cubic(x, a=-0.75):
    """Keys 1981, (4), with OpenCV's parameter."""
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


KERNELS = {"bilinear": lambda x: max(1 - x, 0), "cubic": cubic}
SHRINKING = [((48, 60), (24, 20)), ((48, 60), (17, 23)), ((31, 44), (30, 44))]
ENLARGING = [((11, 7), (24, 21)), ((20, 33), (24, 40))]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (name, *sides)
        for name in crops.WAYS
        for sides in SHRINKING + (ENLARGING if name != "area" else [])  # OpenCV's own mixture
    ],
)
def test_each_way_of_resizing_is_its_formula(name, old, new):
    pixels = RNG.integers(0, 256, (*old, 3), np.uint8)
    rows, columns = (weights(name, *sides) for sides in zip(new, old, strict=True))
    exact = np.einsum("ij,jkc,lk->ilc", rows, pixels.astype(float), columns)
    off = np.abs(fill(name, pixels, *new) - np.clip(exact, 0, 255))
    # half a grey level by rounding; OpenCV's weights have 11 bits
    assert off.max() <= {"nearest": 0, "area": 0.51}.get(name, 1.0)


COUNT = 2400


@functools.cache
def drawn():
    """Which way each of many examples was resized in, and the other numbers drawn for it."""
    pixels = RNG.integers(0, 256, (12, 12, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    whole = settings(image_size=8, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    ways = np.stack([fill(name, pixels, 8, 8) for name in crops.WAYS])
    epoch, example = np.divmod(np.arange(COUNT, dtype=np.int32), COUNT // 8)
    numbers = crops.draw(0, epoch, example)
    sides = np.tile(repair.sides(data.getvalue()), (COUNT, 1))
    cuts = crops.make_train(whole)(numbers, sides, np.zeros(COUNT, bool), 8)
    found = np.empty((COUNT, 8, 8, 3), np.uint8)
    for cut, image in zip(cuts, found, strict=True):
        augment.make_train(whole)(augment.decode(data.getvalue(), cut), cut, image)
    same = (found[:, None] == ways).all((2, 3, 4))
    assert (same.sum(1) == 1).all()
    return same.argmax(1), numbers


def test_each_way_of_resizing_comes_as_often_as_any_other():
    counts = np.bincount(drawn()[0], minlength=4)
    assert np.abs(counts / COUNT - 1 / 4).max() < 4 * np.sqrt(1 / 4 * 3 / 4 / COUNT)


@pytest.mark.parametrize("name", crops.WAYS)
def test_the_way_of_resizing_has_nothing_to_do_with_the_place_the_area_or_the_aspect(name):
    way, numbers = drawn()
    for other in numbers[way == crops.WAYS.index(name), :4].T:
        assert_even(other, 0, 1)

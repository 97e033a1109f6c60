"""Decoding, random patches and central crops on the host, against Pillow and plain NumPy.

Most tests draw patches of an image whose pixels say where they are. Enlarged, its corners stay what
they were, so the box that was cut can be read off the result.
"""

import functools
import io
import math

import numpy as np
import pytest
from PIL import Image
from sampling import assert_even

from configs import digits
from inception_jax.data import augment, crops, repair

COUNT = 2000  # draws; a share of p is then known to 4 * sqrt(p (1 - p) / COUNT), 0.045 at most
RNG = np.random.default_rng(0)


def noise(height, width):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def places(height, width):
    """Red is the column, green the row, both below 256."""
    row, column = np.mgrid[:height, :width]
    return np.stack([column, row, np.zeros_like(row)], -1).astype(np.uint8)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def settings(image_size, eval_resize=None, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), **others):
    config = digits.get_config().data
    config.update(others)
    config.image_size, config.eval_resize = image_size, eval_resize or image_size
    config.crop_area, config.crop_aspect = area, aspect
    return config


def draw(image, config, which, seed=0):
    """Patches for (epoch, example) rows, or (epoch, example, size) of the same size."""
    data = image if isinstance(image, bytes) else encode(image)
    epoch, example, *size = np.array(which, np.int32).T
    size = int(size[0][0]) if size else config.image_size
    sides = np.tile(repair.sides(data), (len(which), 1))
    jpeg = np.full(len(which), data[:2] == b"\xff\xd8")
    cut = crops.make_train(config)(crops.draw(seed, epoch, example), sides, jpeg, size)
    patches = np.empty((len(which), size, size, 3), np.uint8)
    for crop, patch in zip(cut, patches, strict=True):
        augment.make_train(config)(augment.decode(data, crop), crop, patch)
    return patches


def evaluate(image, config, size=None):
    data, size = encode(image), size or config.image_size
    [cut] = crops.make_eval(config, size)(np.array([repair.sides(data)]), np.array([False]))
    patch = np.empty((size, size, 3), np.uint8)
    augment.antialiased(augment.decode(data, cut), cut, patch)
    return patch


def boxes(patches):
    """(top, left, height, width) of patches of places()."""
    patches = patches.astype(int)
    left, top = patches[:, 0, 0, 0], patches[:, 0, 0, 1]
    return top, left, patches[:, -1, -1, 1] - top + 1, patches[:, -1, -1, 0] - left + 1


GRID = [(epoch, example) for epoch in range(20) for example in range(COUNT // 20)]


@functools.cache
def drawn():
    """Boxes from an image of 120 x 125, with shares and aspects that never meet its sides."""
    config = settings(128, area=(0.1, 0.45), aspect=(0.8, 2.0))
    return boxes(draw(places(120, 125), config, GRID))


def assert_uniform(values):
    """Kolmogorov and Smirnov's test at 1 %, for numbers in [0, 1]."""
    values = np.sort(values)
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(values - steps[1:]).max(), np.abs(values - steps[:-1]).max())
    assert distance < 1.63 / np.sqrt(len(values))


def test_patches_have_evenly_distributed_areas():
    _, _, height, width = drawn()
    assert_uniform((height * width / (120 * 125) - 0.1) / 0.35)


def test_patches_have_aspects_evenly_distributed_in_the_logarithm():
    _, _, height, width = drawn()
    assert_uniform(np.log(width / height / 0.8) / np.log(2.0 / 0.8))


@pytest.mark.parametrize(
    ("shape", "most"),  # of the area
    [
        ((333, 500), 444 / 500),
        ((375, 500), 1),
        ((500, 375), 1),
        ((256, 256), 1),
        ((400, 192), 0.64),
    ],
)
def test_patches_of_photographs_are_what_the_paper_says(shape, most):
    """8 to 100 % of the area, evenly, aspects of 3:4 to 4:3: as far as that fits at all."""
    config = settings(224, interpolation="area")
    examples = np.arange(20_000, dtype=np.int32)
    numbers = crops.draw(0, examples, examples)
    corner, extent = crops._random_area(config, np.tile(shape, (len(examples), 1)), numbers)
    height, width = extent.T
    assert corner.min() == 0
    assert (corner + extent).max(0).tolist() == list(shape) or most < 1
    assert (corner + extent <= shape).all()
    area = height * width / math.prod(shape)
    assert area.min() > 0.079  # sides are whole pixels
    assert area.max() < most + 0.001
    assert_even(np.clip(area, 0.08, most), 0.08, most)
    aspect = width / height
    assert 3 / 4 - 0.015 < aspect.min() < 3 / 4 + 0.015
    assert 4 / 3 - 0.015 < aspect.max() < 4 / 3 + 0.015
    # whatever the area, evenly in the logarithm among those with which it fits
    least = np.maximum(3 / 4, area * shape[1] / shape[0])
    greatest = np.minimum(4 / 3, shape[1] / shape[0] / area)
    room = np.log(greatest / least)
    wide = room > 0.3  # where a pixel more or less does not matter
    place = np.log(aspect / least)[wide] / room[wide]
    assert_even(np.clip(place, 0, 1), 0, 1)


def test_patches_come_from_everywhere_and_never_from_outside():
    top, left, height, width = drawn()
    assert min(top.min(), left.min(), height.min(), width.min()) >= 0
    assert (top + height).max() <= 120
    assert (left + width).max() <= 125
    assert_uniform((top + 0.5) / (120 - height + 1))
    assert_uniform((left + 0.5) / (125 - width + 1))


def test_area_aspect_and_corner_are_drawn_independently():
    top, left, height, width = drawn()
    numbers = [height * width, width / height, top / (120 - height), left / (125 - width)]
    correlations = np.corrcoef(numbers) - np.eye(4)
    assert np.abs(correlations).max() < 4 / np.sqrt(COUNT)


def test_a_patch_reaches_every_corner_of_the_image_equally_often():
    config = settings(8, area=(9 / 16, 9 / 16), aspect=(1.0, 1.0))
    top, left, height, width = boxes(draw(places(4, 4), config, GRID))
    assert (height == 3).all()
    assert (width == 3).all()
    counts = np.bincount(2 * top + left, minlength=4)
    assert len(counts) == 4
    assert np.abs(counts / COUNT - 1 / 4).max() < 4 * np.sqrt(1 / 4 * 3 / 4 / COUNT)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((4, 200), (4, 8)), ((200, 4), (4, 4)), ((1, 250), (1, 2)), ((250, 1), (1, 1))],
)
def test_patches_of_long_images_are_the_largest_whose_aspect_is_allowed(shape, patch):
    config = settings(32, area=(0.5, 1.0), aspect=(1.0, 2.0))
    top, left, height, width = boxes(draw(places(*shape), config, GRID[:200]))
    assert set(zip(height, width, strict=True)) == {patch}
    assert {top.min(), left.min()} == {0}
    assert len({*top, *left}) > 90  # of 173 or more places
    assert (top + height).max() <= shape[0]
    assert (left + width).max() <= shape[1]


def test_an_image_of_one_pixel_becomes_its_colour():
    patches = draw(np.array([[[10, 20, 30]]], np.uint8), settings(16), GRID[:20])
    assert (patches == (10, 20, 30)).all()
    assert patches.shape == (20, 16, 16, 3)


def test_what_happens_to_an_example_depends_on_seed_epoch_and_example_only():
    image, config = noise(40, 50), settings(16)
    forwards = draw(image, config, GRID[:200])
    backwards = draw(image, config, GRID[:200][::-1])[::-1]
    assert (forwards == backwards).all()
    [alone] = draw(image, config, GRID[123:124])
    assert (alone == forwards[123]).all()


def test_seed_epoch_and_example_each_change_the_patch():
    image, config = noise(160, 170), settings(16, area=(0.08, 0.9))
    which = [(epoch, example) for epoch in range(6) for example in range(6)]
    seen = {patch.tobytes() for seed in range(3) for patch in draw(image, config, which, seed)}
    assert len(seen) == 3 * len(which)


def test_a_patch_that_is_the_whole_image_at_its_own_size_is_unchanged():
    image = noise(32, 32)
    config = settings(32, area=(1.0, 1.0), aspect=(1.0, 1.0))
    assert (draw(image, config, [(3, 4)])[0] == image).all()


def resize(image, size):
    """Bilinear with a triangle as wide as the scale where it shrinks, in float64."""
    for axis, length in enumerate(size):
        old = image.shape[axis]
        scale = max(old / length, 1.0)
        centres = (np.arange(length) + 0.5) * old / length - 0.5
        weights = 1 - np.abs(np.arange(old) - centres[:, None]) / scale
        weights = np.maximum(weights, 0)
        weights /= weights.sum(1, keepdims=True)
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


def assert_rounded(image, exact):
    assert image.dtype == np.uint8
    assert np.abs(image - exact).max() < 0.5 + 1e-3  # of 255: float32 against float64


def test_a_patch_is_resized_without_aliasing():
    image = noise(60, 60)
    config = settings(17, area=(1.0, 1.0), aspect=(1.0, 1.0))
    assert_rounded(draw(image, config, [(0, 0)])[0], resize(image, (17, 17)))


def test_a_patch_of_random_area_is_resized_to_any_size_at_once():
    image = noise(60, 60)
    config = settings(17, area=(1.0, 1.0), aspect=(1.0, 1.0))
    for size in (11, 60, 73):
        patch = draw(image, config, [(0, 0, size)])[0]
        assert_rounded(patch, resize(image, (size, size)))


def assert_evenly(values, among):
    """Each of `among` comes as often as the others, and nothing else does."""
    seen, counts = np.unique(values, return_counts=True, axis=0)
    assert seen.tolist() == sorted(among)
    p = 1 / len(among)  # 4.5 standard deviations, since there are many of them
    assert np.abs(counts / len(values) - p).max() < 4.5 * np.sqrt(p * (1 - p) / len(values))


# Of an image of 30 x 37 pixels and its central square, from column 3 on, 24 x 24 are cut.
ROWS = range(7)
PLACES = {
    "image": [[top, left] for top in ROWS for left in range(14)],
    "square": [[top, left] for top in ROWS for left in range(3, 10)],
    "image_corners": [[0, 0], [0, 13], [6, 0], [6, 13], [3, 6]],
    "square_corners": [[0, 3], [0, 9], [6, 3], [6, 9], [3, 6]],
}


def place_settings(crop, **others):
    return settings(24, crop=crop, train_resize=(30, 30), **others)


@pytest.mark.parametrize("crop", PLACES)
@pytest.mark.parametrize("portrait", [False, True])
def test_patches_come_evenly_from_the_places_that_the_paper_names(crop, portrait):
    shape = (37, 30) if portrait else (30, 37)
    image = places(*shape)
    patches = draw(image, place_settings(crop), GRID)
    top, left, _, _ = boxes(patches)
    for row, column, patch in zip(top, left, patches, strict=True):
        assert (patch == image[row : row + 24, column : column + 24]).all()
    found = np.stack([left, top] if portrait else [top, left], 1)
    assert_evenly(found, PLACES[crop])


# 40 x 47 pixels become as many as 30 x 35 to 34 x 40; 47 * 32 / 40 is 37.6
RESIZED = {30: 35, 31: 36, 32: 38, 33: 39, 34: 40}


def test_every_scale_of_the_range_comes_as_often_as_any_other_with_every_corner():
    image = noise(40, 47)
    config = settings(24, crop="image_corners", train_resize=(30, 34))
    patches = draw(image, config, GRID)
    found = np.full((COUNT, 2), -1)
    for height, width in RESIZED.items():
        exact = resize(image, (height, width))
        ends = [(0, 0), (0, width - 24), (height - 24, 0), (height - 24, width - 24)]
        for number, (top, left) in enumerate([*ends, ((height - 24) // 2, (width - 24) // 2)]):
            cut = exact[top : top + 24, left : left + 24]
            found[np.abs(patches - cut).max((1, 2, 3)) < 0.5 + 1e-3] = height, number
    assert_evenly(found, [[height, number] for height in RESIZED for number in range(5)])


def test_patches_come_evenly_from_everywhere_in_an_image_warped_to_a_square():
    image = noise(40, 53)
    patches = draw(image, settings(24, crop="warped", train_resize=(32, 32)), GRID)
    exact, found = resize(image, (32, 32)), np.full((COUNT, 2), -1)
    everywhere = [(top, left) for top in range(9) for left in range(9)]
    for top, left in everywhere:
        cut = exact[top : top + 24, left : left + 24]
        found[np.abs(patches - cut).max((1, 2, 3)) < 0.5 + 1e-3] = top, left
    assert_evenly(found, [list(place) for place in everywhere])


@pytest.mark.parametrize("crop", PLACES)
def test_at_another_size_the_same_patch_is_resized(crop):
    image = noise(30, 37)
    config = place_settings(crop, train_sizes=(24, 15, 31))
    which = GRID[:40]
    top, left, _, _ = boxes(draw(places(30, 37), config, which))
    for size in (15, 24, 31):
        patches = draw(image, config, [(*pair, size) for pair in which])
        for row, column, patch in zip(top, left, patches, strict=True):
            assert_rounded(patch, resize(image[row : row + 24, column : column + 24], (size, size)))


@pytest.mark.parametrize("crop", PLACES)
def test_places_and_scales_depend_on_seed_epoch_and_example_only(crop):
    image, config = noise(40, 50), settings(24, crop=crop, train_resize=(24, 250))
    which = [(epoch, example) for epoch in range(5) for example in range(5)]
    forwards = draw(image, config, which)
    assert (draw(image, config, which[::-1])[::-1] == forwards).all()
    seen = {patch.tobytes() for seed in range(2) for patch in draw(image, config, which, seed)}
    assert len(seen) > 45  # of 50: seldom two agree in scale and corner


@pytest.mark.parametrize(
    ("shape", "resized", "corner"),
    [
        ((90, 60), (48, 32), (12, 4)),  # portrait
        ((60, 93), (32, 50), (4, 13)),  # landscape; 49.6
        ((64, 64), (32, 32), (4, 4)),
        ((32, 32), (32, 32), (4, 4)),
        ((33, 35), (32, 34), (4, 5)),  # 33.9
        ((11, 16), (32, 47), (4, 11)),  # smaller than the crop; 46.5 would be a tie, it is 46.54
        ((1, 1), (32, 32), (4, 4)),
        ((1, 5), (32, 160), (4, 68)),
    ],
)
def test_evaluation_sees_the_centre_of_the_resized_image(shape, resized, corner):
    image = noise(*shape)
    crop = evaluate(image, settings(24, eval_resize=32))
    top, left = corner
    exact = resize(image, resized)[top : top + 24, left : left + 24]
    assert exact.shape == (24, 24, 3)
    assert_rounded(crop, exact)
    pillow = Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR)
    pillow = np.asarray(pillow)[top : top + 24, left : left + 24].astype(int)
    assert np.abs(crop - pillow).max() <= 1  # Pillow rounds after each axis


@pytest.mark.parametrize(
    ("size", "resized", "corner"),  # 24 of 32; an image of 60 x 90
    [(24, (32, 48), (4, 12)), (48, (64, 96), (8, 24)), (20, (27, 40), (3, 10))],  # 26.67, 40.5
)
def test_another_size_sees_the_same_part_of_the_image(size, resized, corner):
    image = noise(60, 90)
    crop = evaluate(image, settings(24, eval_resize=32), size)
    top, left = corner
    exact = resize(image, resized)[top : top + size, left : left + size]
    assert exact.shape == (size, size, 3)
    assert_rounded(crop, exact)


def test_an_image_of_the_right_size_is_evaluated_unchanged():
    image = noise(32, 32)
    assert (evaluate(image, settings(32)) == image).all()


PICTURE = noise(20, 30)
GREY = PICTURE[..., :1].repeat(3, axis=2)
BLOCKS = np.kron(noise(3, 4), np.ones((8, 8, 1), np.uint8))  # JPEG's own, so almost free of loss
GREY_BLOCKS = BLOCKS[..., :1].repeat(3, axis=2)
ALPHA = Image.fromarray(noise(20, 30)[..., 0])


FILES = {  # data, pixels, how far off they may be
    "PNG": (encode(PICTURE), PICTURE, 0),
    "grey PNG": (encode(PICTURE[..., 0]), GREY, 0),
    "RGBA": (encode(Image.merge("RGBA", [*Image.fromarray(PICTURE).split(), ALPHA])), PICTURE, 0),
    "grey with alpha": (
        encode(Image.merge("LA", [*Image.fromarray(PICTURE).split()[:1], ALPHA])),
        GREY,
        0,
    ),
    "16 bit": (encode(PICTURE[..., 0].astype(np.uint16) * 257), GREY, 0),
    "palette": (encode(Image.fromarray(GREY).quantize(256)), GREY, 0),
    "JPEG": (encode(BLOCKS, "JPEG", quality=95, subsampling=0), BLOCKS, 1),
    "grey JPEG": (encode(BLOCKS[..., 0], "JPEG", quality=95), GREY_BLOCKS, 1),
    "CMYK": (encode(Image.fromarray(BLOCKS).convert("CMYK"), "JPEG", quality=95), BLOCKS, 1),
}


@pytest.mark.parametrize(("data", "expected", "difference"), FILES.values(), ids=FILES)
def test_every_kind_of_jpeg_and_png_decodes_to_rgb(data, expected, difference):
    image = augment.decode(data)
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= difference

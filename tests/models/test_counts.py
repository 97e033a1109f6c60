"""Parameters and maps of every network at full size, against published numbers."""

import math

import pytest
from reference import TORCHVISION, build, shapes, sides

from configs import imagenet
from inception_jax import models

VGG = {11: 132_863_336, 13: 133_047_848, 16: 138_357_544, 19: 143_667_240}  # torchvision, Caffe

# He et al. 2014, Table 1, Overfeat-7, and 50 bins before the first fully connected layer.
OVERFEAT_7 = (
    (7 * 7 * 3 + 1) * 96
    + (5 * 5 * 96 + 1) * 256
    + (3 * 3 * 256 + 1) * 512
    + 4 * (3 * 3 * 512 + 1) * 512
    + (50 * 512 + 1) * 4096
    + (4096 + 1) * 4096
    + (4096 + 1) * 1000
)
# Figure 2a: 1x1, 3x3 and 5x5 straight on the input, which the pooling passes on as it is.
NAIVE_CHANNELS, NAIVE = 192, (7 * 7 * 3 + 1) * 64 + (64 + 1) * 64 + (3 * 3 * 64 + 1) * 192
for one, three, five in (
    *((64, 128, 32), (128, 192, 96)),
    *((192, 208, 48), (160, 224, 64), (128, 256, 64), (112, 288, 64), (256, 320, 128)),
    *((256, 320, 128), (384, 384, 128)),
):
    NAIVE += NAIVE_CHANNELS * (one + 9 * three + 25 * five) + one + three + five
    NAIVE_CHANNELS += one + three + five
NAIVE += (NAIVE_CHANNELS + 1) * 1000

NO_HEADS = {"auxiliary_heads": False}
COUNTS = [  # name, fields, image size, parameters in training
    *((f"vgg{depth}", {}, 224, count) for depth, count in VGG.items()),
    ("alexnet", {}, 227, 60_965_224),  # BVLC/caffe, bvlc_alexnet
    ("alexnet", {"variant": "grouped", "lrn": False}, 227, 60_965_224),
    ("alexnet", {"variant": "ungrouped"}, 227, 62_378_344),
    ("alexnet", {"variant": "single_tower"}, 224, 61_100_840),  # torchvision
    ("zfnet", {}, 224, 62_357_608),
    ("zfnet512", {}, 224, 87_250_536),  # ONNX Model Zoo
    ("sppnet", {}, 224, 77_037_672),
    ("sppnet", {}, 180, 77_037_672),  # the pyramid makes as many features of any map
    ("sppnet", {"base": "zf5"}, 224, 77_037_672),
    ("sppnet", {"base": "overfeat7"}, 224, OVERFEAT_7),
    ("sppnet", {"pyramid": (1, 2, 3)}, 224, 77_037_672 - 36 * 256 * 4096),
    ("googlenet", {}, 224, 13_378_280),
    ("googlenet", NO_HEADS, 224, 6_998_552),
    ("googlenet", TORCHVISION, 224, 13_004_888),  # torchvision
    ("googlenet", TORCHVISION | NO_HEADS, 224, 6_624_904),
    ("googlenet", NO_HEADS | {"module": "naive"}, 224, NAIVE),
    # 512 and 528 channels to 16 cells of 128 in both, 5x5 windows or bins
    ("googlenet", {"auxiliary_bins": 4}, 224, 13_378_280),
    ("googlenet", {"auxiliary_bins": 4}, 288, 13_378_280),
    ("googlenet", {"auxiliary_bins": 2}, 224, 13_378_280 - 2 * 12 * 128 * 1024),
    # without 4d its head goes, too: 528 channels in
    (
        "googlenet",
        {"modules": "3a,3b,4a,4b,4c,4e,5a,5b"},
        224,
        13_378_280
        - (512 * (112 + 144 + 32 + 64) + 9 * 144 * 288 + 25 * 32 * 64)
        - (112 + 144 + 288 + 32 + 64 + 64)
        - (528 - 512) * (256 + 160 + 32 + 128)  # 4e sees 4c's channels
        - ((528 + 1) * 128 + (2048 + 1) * 1024 + (1024 + 1) * 1000),
    ),
]


@pytest.mark.parametrize("name, fields, size, expected", COUNTS)
def test_parameters_are_as_many_as_published(name, fields, size, expected):
    every = shapes(build(name, 1000, **fields), size)
    assert expected == sum(math.prod(s) for k, s in every.items() if k.startswith("params/"))


def test_every_network_is_counted():
    assert {name for name, *_ in COUNTS} == set(models.NAMES)


def rest(first, last, side):
    return {f"conv{number}": (side, side) for number in range(first, last + 1)}


ALEXNET = {"conv2": (27, 27), **rest(3, 5, 13), "fc6": 6 * 6 * 256}
MAPS = [  # name, fields, image size, maps before and after each convolution, features of fc6
    ("alexnet", {}, 227, ALEXNET | {"conv1": (227, 55)}),
    ("alexnet", {"variant": "ungrouped"}, 227, ALEXNET | {"conv1": (227, 55)}),
    ("alexnet", {"variant": "single_tower"}, 224, ALEXNET | {"conv1": (224, 55)}),
    (
        "zfnet",
        {},
        224,
        {"conv1": (224, 110), "conv2": (55, 26), **rest(3, 5, 13), "fc6": 6 * 6 * 256},
    ),
    (
        "zfnet512",
        {},
        224,
        {"conv1": (224, 109), "conv2": (54, 25), **rest(3, 5, 12), "fc6": 6 * 6 * 512},
    ),
    # as in the ONNX Model Zoo
    (
        "alexnet",
        {"floor_pools": "pool1,pool2"},
        224,
        {"conv1": (224, 54), "conv2": (26, 26), **rest(3, 5, 12), "fc6": 6 * 6 * 256},
    ),
    (
        "sppnet",
        {},
        224,
        {"conv1": (224, 110), "conv2": (55, 26), **rest(3, 5, 13), "fc6": 50 * 256},
    ),
    (
        "sppnet",
        {},
        180,
        {"conv1": (180, 88), "conv2": (44, 20), **rest(3, 5, 10), "fc6": 50 * 256},
    ),
    (
        "sppnet",
        {"base": "overfeat7"},
        224,
        {"conv1": (224, 109), "conv2": (36, 36), **rest(3, 7, 18), "fc6": 50 * 512},
    ),
]


@pytest.mark.parametrize("name, fields, size, expected", MAPS)
def test_maps_are_as_large_as_published(name, fields, size, expected):
    """Else public weights of fc6 do not fit, or see other pixels than they were trained on."""
    assert sides(build(name, 1000, **fields), size) == expected


def test_torchvisions_recipe_has_torchvisions_network():
    """Its parameters, counted above, are no others'."""
    fields = {name: value for name, value in imagenet.torchvision().model.items() if value}
    named = {"name": "googlenet", "dtype": "float32", "width": 1.0, "dropout": 0.2}
    assert fields == named | TORCHVISION

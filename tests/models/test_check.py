"""What a network cannot be built with is one line, whose advice is true."""

import math
import re

import pytest
from reference import build, shapes, sides

from inception_jax.errors import UserError

NO_HEADS = {"auxiliary_heads": False}


def message(name, size, **fields):
    with pytest.raises(UserError) as caught:
        build(name, **fields).check(size)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400, text  # it is to be read
    return text


@pytest.mark.parametrize(
    "name, fields, parts",
    [
        ("googlenet", {"module": "naiv"}, ["module is 'naiv': did you mean naive?"]),
        ("alexnet", {"variant": "ungruped"}, ["variant is 'ungruped': did you mean ungrouped?"]),
        ("alexnet", {"variant": "x"}, ["known: grouped, ungrouped, single_tower"]),
        ("sppnet", {"base": "zf-5"}, ["base is 'zf-5': did you mean zf5?"]),
        ("googlenet", {"branches": ""}, ["branches is empty", "1x1, 3x3, 5x5, pool"]),
        ("googlenet", {"branches": " ,"}, ["branches is empty"]),
        ("googlenet", {"branches": "1x1,7x7"}, ["branches=1x1,7x7 has '7x7'", "known: 1x1, 3x3"]),
        ("googlenet", {"branches": "pool,1x1, pool"}, ["has pool twice"]),
        ("googlenet", {"modules": ""}, ["modules is empty", "3a, 3b, 4a"]),
        ("googlenet", {"modules": "3a,3c"}, ["modules=3a,3c has '3c'", "known: 3a, 3b, 4a"]),
        ("googlenet", {"modules": "4a,5a,4a"}, ["has 4a twice"]),
        (
            "googlenet",
            {"floor_pools": "pool1,pool5"},
            ["has 'pool5'; known: pool1, pool2, pool3, "],
        ),
        (
            "googlenet",
            {"space_to_depth": True, "small_stem": True},
            ["config.model.space_to_depth is for the 7x7/2 convolution"],
        ),
        ("googlenet", {"floor_pools": "pool1", "small_stem": True}, ["has 'pool1'; known: pool2"]),
        ("alexnet", {"floor_pools": "pool1,pool3"}, ["has 'pool3'; known: pool1, pool2, pool5"]),
        ("vgg11", {"floor_pools": "pool4,pool4"}, ["has pool4 twice"]),
        ("googlenet", {"kernel_5x5": 4}, ["kernel_5x5 is 4: it must be odd"]),
        ("googlenet", {"pool4_window": 1}, ["pool4_window is 1: it must be 2 or more"]),
        ("sppnet", {"pyramid": ()}, ["pyramid is empty"]),
        ("sppnet", {"pyramid": (1, 2.5)}, ["pyramid is (1, 2.5)", "whole numbers"]),
        ("sppnet", {"pyramid": (1, 0)}, ["pyramid is (1, 0)", "above 0"]),
    ],
)
def test_a_choice_that_there_is_not_is_told(name, fields, parts):
    text = message(name, 224, **fields)
    assert text.startswith(f"config.model.{next(iter(fields))}")
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("vgg16", "variant", "grouped"),
        ("vgg16", "lrn", False),
        ("alexnet", "batch_norm", True),
        ("zfnet", "pyramid", (1,)),
        ("sppnet", "module", "naive"),
        ("googlenet", "base", "zf5"),
    ],
)
def test_a_field_that_another_network_has_is_told_not_passed_over(name, field, value):
    """A sweep over it would compare a network with itself."""
    text = message(name, 224, **{field: value})
    assert f"config.model.{field} is {value!r}, but {name} has no such field" in text
    assert "dropout" in text and f"{field}," not in text.partition("it has")[2]


def test_heads_need_a_module_to_come_after():
    for modules in ("3a,5a", "4b,4c,4e"):
        text = message("googlenet", 224, modules=modules)
        assert f"modules={modules} has neither 4a nor 4d" in text
        assert "config.model.auxiliary_heads=False" in text
        build("googlenet", modules=modules, **NO_HEADS).check(224)
    for modules in ("3a,4a", "4d"):
        model = build("googlenet", modules=modules)
        model.check(224)
        heads = {name.split("/")[1] for name in shapes(model, 224)} & {"loss1", "loss2"}
        assert heads == {"loss1" if "4a" in modules else "loss2"}


@pytest.mark.parametrize(
    "name, fields, layer, channels",
    [
        ("vgg16", {}, "conv1_1", 64),
        ("alexnet", {}, "conv1", 96),
        ("alexnet", {"variant": "single_tower"}, "conv1", 64),
        ("zfnet", {}, "conv1", 96),
        ("sppnet", {}, "conv1", 96),
        ("googlenet", {}, "inception_3a/5x5_reduce", 16),
        ("googlenet", {"module": "naive"}, "inception_3a/5x5", 32),
        ("googlenet", {"branches": "1x1,3x3", "modules": "4a,4d"}, "conv1", 64),
        ("googlenet", {"modules": "4b,4c", **NO_HEADS}, "inception_4b/5x5_reduce", 24),
    ],
)
def test_a_width_that_leaves_a_layer_empty_names_it(name, fields, layer, channels):
    least = 0.5 / channels
    text = message(name, 227, width=least * 0.99, **fields)
    assert f"leaves {layer}, a layer of {channels} channels, with none" in text
    assert f"above {least:g}" in text
    ungrouped = fields or ({"variant": "ungrouped"} if name == "alexnet" else {})
    model = build(name, width=least * 1.01, **ungrouped)
    model.check(227)
    assert all(math.prod(shape) > 0 for shape in shapes(model, 227).values())


def test_a_width_whose_channels_do_not_split_is_told():
    text = message("alexnet", 227, width=0.07)  # 7 of 96
    assert (
        "width=0.07 makes the number of channels 7, which conv2 cannot split into 2 groups" in text
    )
    with pytest.raises((AssertionError, ValueError)):  # flax asserts
        shapes(build("alexnet", width=0.07), 227)
    build("alexnet", width=0.0625).check(227)  # 6, 16, 24
    build("alexnet", width=0.07, variant="ungrouped").check(227)


@pytest.mark.parametrize(
    "name, fields, size, last_map, bins",
    [
        ("alexnet", {}, 20, "", 0),
        ("alexnet", {"variant": "single_tower"}, 20, "", 0),
        ("zfnet", {}, 50, "", 0),
        ("zfnet512", {}, 50, "", 0),
        ("zfnet", {"floor_pools": "pool1,pool2,pool5"}, 50, "", 0),
        (
            "googlenet",
            NO_HEADS | {"floor_pools": "pool1,pool2,pool3,pool4"},
            31,
            "inception_5b/1x1",
            1,
        ),
        ("vgg11", {}, 31, "", 0),
        ("vgg19", {"batch_norm": True}, 1, "", 0),
        ("sppnet", {"pyramid": (1,)}, 7, "conv5", 1),
        ("sppnet", {}, 60, "conv5", 6),
        ("sppnet", {"pyramid": (14, 1)}, 224, "conv5", 14),
        ("sppnet", {"base": "overfeat7"}, 20, "conv7", 6),
        ("sppnet", {"base": "overfeat7", "pyramid": (1, 19)}, 224, "conv7", 19),
        ("googlenet", NO_HEADS | {"pool4_window": 6}, 31, "", 0),
        ("googlenet", {"auxiliary_bins": 15}, 224, "inception_4a/1x1", 15),
        ("googlenet", {"auxiliary_bins": 3, "modules": "4d"}, 31, "inception_4d/1x1", 3),
    ],
)
def test_the_smallest_image_is_named_and_true(name, fields, size, last_map, bins):
    """It builds there; with a pixel less the check says so, and the network lacks pixels."""
    text = message(name, size, width=0.125, **fields)
    least = int(re.search(r"config\.data\.image_size to (\d+) or more", text)[1])
    assert least > size
    model = build(name, width=0.125, **fields)
    model.check(least)
    assert all_there(model, least, last_map, bins)
    assert f"to {least} or more" in message(name, least - 1, width=0.125, **fields)
    assert not all_there(model, least - 1, last_map, bins)


def all_there(model, size, last_map, bins):
    """Whether it can be built, fc6 sees anything, and the map has a pixel for each bin."""
    try:
        every = shapes(model, size).values()
    except (ValueError, ZeroDivisionError):
        return False
    return all(min(s) > 0 for s in every) and (not bins or sides(model, size)[last_map][1] >= bins)


def test_more_bins_than_any_image_has_pixels_for_are_told_too():
    for text in (
        message("sppnet", 224, pyramid=(700,)),
        message("googlenet", 224, auxiliary_bins=700),
    ):
        assert re.search(r"image_size to 11\d\d\d or more", text)  # 16 pixels for one of the map

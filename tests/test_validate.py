"""Which values a config may hold: each rule on both sides of its boundary."""

from fractions import Fraction

import pytest
from conftest import ROOT

from configs import digits, googlenet, imagenet
from inception_jax import config as config_lib
from inception_jax import models, optim, validate
from inception_jax.errors import UserError

TINY = 1e-9
NUMBERS = (int, float, tuple)
PATTERNS = [(("a|b", 0), (".*", 1.5)), ((".*", TINY),), ()]
NO_PATTERNS = [
    *((("(", 1.0),), ((".*", -TINY),), ((".*", float("nan")),), ((".*", "1"),), ((1.0, ".*"),)),
    *((".*", 1.0), (".*",), ((".*", 1.0, 1.0),), ((".*", True),), ((".*", 10**400),)),
]
# For every field with a rule: values that just pass, values that just fail.
RULES = {
    "seed": ([0, 2**32 - 1], [-1, 2**64]),
    "batch_size": ([1], [0, -1]),
    "accumulation": ([1], [0, -1]),
    "epochs": ([8.001], [0.0, -1.0, float("nan"), float("inf")]),
    "log_every_steps": ([1], [0, -1]),
    "compile_cache": (["", "~/cache"], ["gs://bucket/cache"]),
    "profile": (
        ["", "1:2", "20:25"],
        ["5", "0:5", "5:5", "6:5", "-1:5", "1:5:2", "a:5", ":5", "5:", " 1:2", "1:" + "9" * 5000],
    ),
    "model.name": (["googlenet", "vgg16", "sppnet"], ["", "GoogLeNet", "googlenet2", "vgg"]),
    "model.width": ([TINY], [0.0, -0.5, float("nan")]),
    "model.dropout": ([0.0, 1 - TINY], [-TINY, 1.0, float("nan")]),
    "model.auxiliary_dropout": ([0.0, 1 - TINY, None], [-TINY, 1.0]),
    "model.auxiliary_bins": ([0, 4, None], [-1]),
    "model.batch_norm_epsilon": ([TINY, None], [0.0, -TINY]),
    "model.lrn_k": ([TINY, None], [0.0, -TINY, float("nan")]),
    "model.lrn_alpha": ([0.0, None], [-TINY]),
    "model.kernel_5x5": ([1, None], [0, -1]),
    "model.pool4_window": ([1, None], [0, -1]),
    "model.pyramid": ([(1,), (6, 3, 2, 1), None], [(0,), (1, -2), (1, "2")]),
    "model.dtype": (["float32", "bfloat16", "float64"], ["float16", "int8", "", "float"]),
    "loss.auxiliary_weight": ([0.0], [-TINY]),
    "loss.label_smoothing": ([0.0, 1 - TINY], [-TINY, 1.0]),
    "optim.name": (["sgd", "rmsprop", "lars", "adamw", "lamb"], ["", "adam"]),
    "optim.decay_factors": (PATTERNS, NO_PATTERNS),
    "optim.rate_factors": (PATTERNS, NO_PATTERNS),
    "optim.freeze": ([(), ("a|b", ".*")], [("(",), (5,), (".*", None)]),
    "optim.clip_norm": ([0.0], [-TINY, float("inf")]),
    "optim.max_filter_rms": ([0.0], [-TINY, float("inf")]),
    "optim.skip_nonfinite": ([0, 1], [-1]),
    "optim.betas": ([(0.0, 1 - TINY)], [(-TINY, 0.9), (0.9, 1.0), (0.9,)]),
    "optim.epsilon": ([TINY], [0.0, -TINY]),
    "optim.trust_coefficient": ([TINY], [0.0, -TINY]),
    "average.name": (["none", "exponential", "plain"], ["", "polyak"]),
    "cluster.start_timeout": ([TINY, 300.0], [0.0, -1.0]),
    "cluster.dead_timeout": ([TINY, 300.0], [0.0, -1.0]),
    "average.decay": ([TINY, 1 - TINY], [0.0, -TINY, 1.0]),
    "average.start_epochs": ([0.0], [-TINY]),
    "optim.momentum": ([0.0, 1 - TINY], [-TINY, 1.0]),
    "optim.momentum_form": (["optax", "caffe"], ["", "torch"]),
    "optim.weight_decay": ([0.0], [-TINY]),
    "schedule.name": (["step", "poly", "cosine"], ["", "linear"]),
    "schedule.rate": ([0.0], [-TINY, float("nan")]),
    "schedule.factor": ([TINY], [0.0, -0.5]),
    "schedule.every_epochs": ([TINY, 59.999], [0.0, -1.0, 60.0]),  # of 60 epochs
    "schedule.power": ([0.0], [-TINY]),
    "schedule.warmup_epochs": ([0.0, 51.999], [-TINY, 60.001]),  # of 60 epochs
    "data.image_size": ([1, 256], [0, -1, 257]),  # eval_resize is 256
    "data.eval_resize": ([224], [223, 0]),  # image_size is 224
    "data.crop_area": (
        [(TINY, TINY), (1.0, 1.0)],
        [(0.0, 1.0), (0.5, 0.499), (0.5, 1.001), (1.0,)],
    ),
    "data.crop_aspect": ([(TINY, TINY), (2.0, 3.0)], [(0.0, 1.0), (1.001, 1.0), (1.0, 2.0, 3.0)]),
    "data.crop": (
        ["area", "image", "square", "warped", "image_corners", "square_corners"],
        ["", "center", "corners"],
    ),
    "data.train_resize": (
        [(1, 1), (256, 512)],
        [(0, 1), (257, 256), (256,), (256, 256, 256), (256.5, 300), ("x", 300)],
    ),
    "data.train_sizes": ([(), (1,), (224, 180, 224)], [(0,), (224, -1), (180.0,), ("x",)]),
    "data.lighting": ([0.0, 0.1], [-TINY, float("nan")]),
    "data.interpolation": (
        ["random", "antialiased", "bilinear", "area", "nearest", "cubic"],
        ["", "bicubic"],
    ),
    **{
        f"data.{name}": ([0.0, most], [-TINY, most + TINY, float("nan")])
        for name, most in (
            *(("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)),
            *(("erasing", 1), ("randaugment_magnitude", 10)),
        )
    },
    "data.randaugment_layers": ([0, 3], [-1]),
    "data.mixup": ([0.0, 2.0], [-TINY, float("inf")]),
    "data.cutmix": ([0.0, 2.0], [-TINY, float("inf")]),
    "data.unreadable": (["error", "skip"], ["", "ignore"]),
    "data.cache_resize": ([0], [-1, 256]),  # nothing is kept
    "eval.sizes": ([(), (1,), (223, 225)], [(0,), (180, -1), (180.0,), (180, 180), (224,)]),
    "data.mean": ([(-1.0, 0.0, 999.0)], [(0.0, 0.0), (0.0,) * 4, (0.0, 0.0, "x"), ()]),
    "data.std": ([(TINY,) * 3], [(0.0, 1.0, 1.0), (1.0, 1.0, -1.0), (1.0, 1.0), (1.0,) * 4]),
    "eval.batch_size": ([1], [0, -1]),
    "eval.every_steps": ([1], [0, -1]),
    "checkpoint.every_steps": ([1], [0, -1]),
    "checkpoint.keep": ([1], [0, -1]),
    "mesh.data": ([-1, 1, 8], [0, -2]),
    "mesh.model": ([1, 4], [0, -1, -2]),  # -1 beside a data of -1
    "mesh.slices": ([-1, 2], [0, -2]),
}


def changed(field, value):
    config = googlenet.get_config()
    config.update_from_flattened_dict({field: value})
    return config


def message(config):
    with pytest.raises(UserError) as caught:
        validate.check(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cases(which):
    return [(field, value) for field, values in RULES.items() for value in values[which]]


@pytest.mark.parametrize(("field", "value"), cases(0))
def test_values_up_to_a_boundary_are_accepted(field, value):
    validate.check(changed(field, value))


@pytest.mark.parametrize(("field", "value"), cases(1))
def test_values_past_a_boundary_are_refused_by_name_and_value(field, value):
    text = message(changed(field, value))
    assert f"config.{field}" in text
    if field.endswith("factors"):
        value = value[0][0]
    elif field == "optim.freeze":
        value = value[-1]
    assert str(value) in text


def test_every_number_of_a_config_has_a_rule():
    """So that a new field gets one."""
    fields = config_lib.flatten(googlenet.get_config())
    numbers = {name for name, value in fields if type(value) in NUMBERS}
    numbers |= {f"model.{n}" for n, kind in googlenet.MODEL_FIELDS.items() if kind in NUMBERS}
    assert numbers - RULES.keys() == set()


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("model.name", "googlnet", "googlenet"),
        ("model.dtype", "bfloat", "bfloat16"),
        ("schedule.name", "cosin", "cosine"),
        ("optim.momentum_form", "optx", "optax"),
        ("optim.name", "rmspop", "rmsprop"),
        ("average.name", "exponental", "exponential"),
        ("data.crop", "sqare", "square"),
    ],
)
def test_an_unknown_name_tells_the_nearest_and_all_others(field, value, nearest):
    text = message(changed(field, value))
    assert f"did you mean {nearest}?" in text
    assert all(known in text for known in RULES[field][0])


@pytest.mark.parametrize("crop", ["image", "square", "image_corners", "square_corners"])
def test_a_patch_that_would_not_fit_is_told_with_both_fields(crop):
    config = changed("data.crop", crop)
    config.data.train_resize = (224, 300)
    validate.check(config)
    config.data.train_resize = (223, 300)
    text = message(config)
    assert "config.data.train_resize=(223, 300)" in text
    assert "config.data.image_size=224" in text
    config.data.crop = "area"
    validate.check(config)


def test_a_recipe_that_starts_from_weights_asks_for_them():
    config = googlenet.get_config()
    config.init_from = None
    text = message(config)
    assert text.startswith("config.init_from is None")
    assert "--config.init_from=DIR" in text
    config.init_from = "weights/vgg16"
    validate.check(config)


@pytest.mark.parametrize("field", ["seed", "data.mean", "checkpoint.keep"])
def test_a_missing_field_is_named(field):
    config = googlenet.get_config()
    group, _, name = field.rpartition(".")
    with config.unlocked():
        del (config[group] if group else config)[name]
    assert f"lacks config.{field}" in message(config)


def test_a_field_that_nothing_reads_is_named():
    config = googlenet.get_config()
    with config.unlocked():
        config.model.depth = 3
    text = message(config)
    assert "config.model.depth" in text
    assert "remove" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", None), ("seed", "one"), ("schedule.rate", "fast"), ("data.mean", 5.0)],
)
def test_a_value_of_a_wrong_type_is_named(field, value):
    """A recipe can hold one where it sets None, or is not built on the defaults."""
    config = googlenet.get_config()
    group, _, name = field.rpartition(".")
    with config.unlocked(), config.ignore_type():
        (config[group] if group else config)[name] = value
    assert f"config.{field}" in message(config)


RECIPES = [str(p) for p in (ROOT / "configs").glob("*.py") if "get_config" in p.read_text()]
RECIPES += [f"{ROOT}/configs/imagenet.py:{name}" for name in imagenet.RECIPES]
RECIPES += [f"{ROOT}/configs/digits.py:{name}" for name in digits.IMAGE_SIZES]


@pytest.mark.parametrize("source", RECIPES)
def test_every_recipe_of_the_repository_is_valid(source):
    config = config_lib.load(source)
    if config.init_from is None:  # to be given
        config.init_from = "weights/googlenet"
    validate.check(config)
    network = models.build(config.model, num_classes=10)
    for size in (config.data.image_size, *config.data.train_sizes, *config.eval.sizes):
        network.check(size)


def test_every_network_has_a_recipe_on_imagenet_and_one_on_digits():
    """So that a new one gets them."""
    names = {imagenet.get_config(name).model.name for name in imagenet.RECIPES}
    assert names == models.NAMES.keys() == digits.IMAGE_SIZES.keys()


def test_a_rate_that_never_falls_may_have_stairs_of_any_length():
    config = googlenet.get_config()
    config.epochs, config.schedule.warmup_epochs = 30.0, 22.0  # 8 epochs are left
    assert "set config.schedule.factor=1 for a constant rate" in message(config)
    config.schedule.factor = 1.0
    validate.check(config)


def test_schedules_that_pass_are_those_that_can_be_made():
    config = googlenet.get_config().schedule
    middle = {"step": 0.01 * 0.96**5, "poly": 0.01 * 0.5**0.5, "cosine": 0.005}
    assert set(validate.SCHEDULES) == middle.keys()
    for config.name in validate.SCHEDULES:
        schedule = optim.make_schedule(config, Fraction(10), 800)  # stairs of 80 steps
        assert float(schedule(0)) == pytest.approx(0.01, rel=1e-6)
        assert float(schedule(400)) == pytest.approx(middle[config.name], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"cache": "gs://bucket/kept"}, "cache is gs://bucket/kept: it must be ram, or a folder"),
        ({"cache": "RAM"}, "cache is RAM: it must be ram"),
        ({"cache": "ram", "cache_resize": 223}, "cache_resize=223 is below the 224 pixels"),
        (
            {"cache": "ram", "cache_resize": 250, "crop": "image"},
            "cache_resize=250 is below the 256 pixels",
        ),
    ],
)
def test_what_cannot_be_kept_is_told(changes, part):
    config = googlenet.get_config()
    config.data.update(changes)
    with pytest.raises(UserError, match=part):
        validate.check(config)
    config.data.cache, config.data.cache_resize = "ram", 256
    validate.check(config)

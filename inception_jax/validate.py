"""What a config may say: names, ranges and shapes of values, checked before anything starts.

Needs neither jax nor TensorFlow. What depends on devices or data (divisibility of the batch, sizes
of maps, what is on disk) is checked where it is known.
"""

import re
import sys

from ml_collections import ConfigDict

from configs import googlenet
from inception_jax import models
from inception_jax.config import choose, flatten
from inception_jax.errors import UserError

SCHEDULES = ("step", "poly", "cosine")
OPTIMISERS = ("sgd", "rmsprop", "lars", "adamw", "lamb")
AVERAGES = ("none", "exponential", "plain")
MOMENTUM_FORMS = ("optax", "caffe")
CROPS = ("area", "image", "square", "warped", "image_corners", "square_corners")
INTERPOLATIONS = ("random", "antialiased", "bilinear", "area", "nearest", "cubic")
UNREADABLE = ("error", "skip")
DTYPES = ("float32", "bfloat16", "float64")

# The fields whose numbers, alone or in a tuple, must be above 0; 0 or more; below 1.
_POSITIVE = (
    *("batch_size", "accumulation", "epochs", "log_every_steps", "model.width"),
    *("schedule.every_epochs", "schedule.factor", "checkpoint.every_steps", "checkpoint.keep"),
    *("model.batch_norm_epsilon", "model.lrn_k", "model.kernel_5x5", "model.pool4_window"),
    "model.pyramid",
    *("data.image_size", "data.eval_resize", "data.crop_area", "data.crop_aspect", "data.std"),
    *("data.train_resize", "data.train_sizes"),
    *("eval.batch_size", "eval.every_steps", "eval.sizes"),
    *("optim.epsilon", "optim.trust_coefficient", "average.decay"),
    *("cluster.start_timeout", "cluster.dead_timeout"),
)
_NOT_NEGATIVE = (
    *("seed", "loss.auxiliary_weight", "loss.label_smoothing"),
    *("model.dropout", "model.auxiliary_dropout", "model.lrn_alpha", "model.auxiliary_bins"),
    *("data.brightness", "data.contrast", "data.saturation", "data.hue", "data.lighting"),
    *("data.randaugment_layers", "data.randaugment_magnitude", "data.erasing"),
    *("data.mixup", "data.cutmix", "data.cache_resize"),
    *("optim.momentum", "optim.weight_decay", "optim.clip_norm", "optim.betas"),
    *("optim.max_filter_rms", "optim.skip_nonfinite"),
    *("schedule.rate", "schedule.power", "schedule.warmup_epochs", "average.start_epochs"),
)
_BELOW_ONE = (
    *("model.dropout", "model.auxiliary_dropout", "loss.label_smoothing"),
    *("optim.momentum", "optim.betas", "average.decay"),
)
# The fields that are (regular expression, factor) pairs.
_PATTERNS = ("optim.decay_factors", "optim.rate_factors")


def check(config: ConfigDict) -> None:
    """Raises UserError for the first field that is missing, unknown or outside its range."""
    fields = dict(flatten(config))
    known = dict(flatten(googlenet.get_config()))
    for name in sorted(known.keys() - fields.keys()):
        raise UserError(f"the config lacks config.{name}: start from configs/googlenet.py")
    for name in sorted(fields.keys() - known.keys()):
        raise UserError(f"the config has config.{name}, which nothing reads: remove it")

    _check_types(fields, known)
    choose("model.name", config.model.name, models.NAMES)
    choose("model.dtype", config.model.dtype, DTYPES)
    choose("schedule.name", config.schedule.name, SCHEDULES)
    choose("optim.name", config.optim.name, OPTIMISERS)
    choose("average.name", config.average.name, AVERAGES)
    choose("optim.momentum_form", config.optim.momentum_form, MOMENTUM_FORMS)
    choose("data.crop", config.data.crop, CROPS)
    choose("data.interpolation", config.data.interpolation, INTERPOLATIONS)
    choose("data.unreadable", config.data.unreadable, UNREADABLE)
    profiled(config.profile)
    _check_numbers(fields)
    _check_together(config)


def profiled(steps: str) -> range:
    """Reads config.profile: the steps START to STOP - 1, none if it is empty.

    Raises:
      UserError: it is not START:STOP.
    """
    if not steps:
        return range(0)
    found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", steps)
    start, stop = map(int, found.groups()) if found else (0, 0)
    if not 1 <= start < stop:
        raise UserError(
            f"config.profile is {steps!r}: it must be START:STOP with 1 <= START < STOP, as in"
            " 20:25 for the steps 20 to 24"
        )
    return range(start, stop)


def _check_types(fields, known):
    optional = {f"model.{name}": kind for name, kind in googlenet.MODEL_FIELDS.items()}
    for name, default in known.items():
        value, wanted = fields[name], optional.get(name, type(default))
        if value is None and name in optional:
            continue
        if type(value) is int and wanted is float:
            continue
        if name == "init_from" and value is None:
            raise UserError(
                "config.init_from is None: this recipe starts from weights; give a folder of them,"
                " or the workdir of a run, as --config.init_from=DIR"
            )
        if type(value) is not wanted:
            raise UserError(f"config.{name} is {value!r}: it must be of type {wanted.__name__}")
        if name in _PATTERNS:
            _check_patterns(name, value)
            continue
        if name == "optim.freeze":
            for pattern in value:
                _check_expression(name, pattern)
            continue
        numbers = value if wanted is tuple else (value,) if wanted is float else ()
        if not all(map(_finite, numbers)):
            raise UserError(f"config.{name} is {value!r}: it needs finite numbers")
        if wanted is not tuple:
            continue
        # Where the default is empty, any number of whole numbers will do.
        whole = not any(type(number) is float for number in default or ())
        if whole and not all(type(number) is int for number in value):
            raise UserError(f"config.{name} is {value!r}: it needs whole numbers")
        if default and len(value) != len(default):
            raise UserError(f"config.{name} is {value!r}: it needs {len(default)} numbers")


def _finite(value):
    """Whether it is a number that floats can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _check_patterns(name, pairs):
    for pair in pairs:
        match pair:
            case (str(pattern), (int() | float()) as factor) if _finite(factor):
                pass
            case _:
                raise UserError(
                    f"config.{name} is {pairs!r}: it must be pairs of a regular expression and a"
                    " factor, as in (('.*/bias', 2.0), ('.*', 1.0))"
                )
        _check_expression(name, pattern)
        if factor < 0:
            raise UserError(f"config.{name}: the factor {factor} of {pattern!r} must be 0 or more")


def _check_expression(name, pattern):
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(
            f"config.{name}: {pattern!r} is not a regular expression: {error}"
        ) from None


_AT_MOST = {
    "data.brightness": 1,
    "data.contrast": 1,
    "data.saturation": 1,
    "data.hue": 0.5,
    "data.erasing": 1,
    "data.randaugment_magnitude": 10,
}


def _check_numbers(fields):
    for name, most in _AT_MOST.items():
        if fields[name] > most:
            raise UserError(f"config.{name} is {fields[name]}: it must not exceed {most}")
    if fields["seed"] >= 2**32:  # jax would use its lower bits only
        raise UserError(f"config.seed is {fields['seed']}: it must be below 2^32")
    for names, holds, rule in (
        (_POSITIVE, lambda v: v > 0, "above 0"),
        (_NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
        (_BELOW_ONE, lambda v: v < 1, "below 1"),
    ):
        for name in names:
            value = fields[name]
            if value is None:  # as published
                continue
            if not all(map(holds, value if isinstance(value, tuple) else (value,))):
                raise UserError(f"config.{name} is {value}: it must be {rule}")
    for name in ("data.crop_area", "data.crop_aspect", "data.train_resize"):
        low, high = fields[name]
        if low > high:
            raise UserError(f"config.{name} is {fields[name]}: the first must not be the larger")


def _check_together(config):
    if config.data.crop_area[1] > 1:
        raise UserError(f"config.data.crop_area is {config.data.crop_area}: it must not exceed 1")
    if config.data.eval_resize < config.data.image_size:
        raise UserError(
            f"config.data.eval_resize={config.data.eval_resize} is below"
            f" config.data.image_size={config.data.image_size}: the crop would not fit"
        )
    if config.data.crop != "area" and config.data.train_resize[0] < config.data.image_size:
        raise UserError(
            f"config.data.train_resize={config.data.train_resize} begins below"
            f" config.data.image_size={config.data.image_size}: the crop would not fit"
        )
    cache = config.data.cache
    if "://" in cache or (cache != "ram" and cache.lower() == "ram"):
        raise UserError(
            f"config.data.cache is {cache}: it must be ram, or a folder of this machine"
        )
    if "://" in config.compile_cache:
        raise UserError(
            f"config.compile_cache is {config.compile_cache}: it must be a folder of this machine;"
            " JAX_COMPILATION_CACHE_DIR in the environment may be any that JAX can write"
        )
    least = config.data.image_size
    if config.data.crop != "area":
        least = config.data.train_resize[0]
    if 0 < config.data.cache_resize < least:
        raise UserError(
            f"config.data.cache_resize={config.data.cache_resize} is below the {least} pixels that"
            " patches are cut from: raise it, or set it to 0 to keep images as they are"
        )
    if config.data.cache_resize > 0 and not config.data.cache:
        raise UserError(
            f"config.data.cache_resize={config.data.cache_resize} reduces what is kept, and nothing"
            " is: set config.data.cache to ram or to a folder"
        )
    if len({config.data.image_size, *config.eval.sizes}) <= len(config.eval.sizes):
        raise UserError(
            f"config.eval.sizes={config.eval.sizes} names a size twice, or"
            f" config.data.image_size={config.data.image_size}, which is evaluated anyway: name"
            " each further one once"
        )
    if config.schedule.warmup_epochs > config.epochs:
        raise UserError(
            f"config.schedule.warmup_epochs={config.schedule.warmup_epochs} is longer than the run:"
            f" config.epochs={config.epochs}"
        )
    staircase = config.schedule.name == "step" and config.schedule.factor != 1
    rest = config.epochs - config.schedule.warmup_epochs
    if staircase and config.schedule.every_epochs >= rest:
        raise UserError(
            f"config.schedule.every_epochs={config.schedule.every_epochs} is as long as the run"
            f" after its warm-up, {rest} epochs, or longer, so that the rate would never fall:"
            " lower it, or set config.schedule.factor=1 for a constant rate"
        )
    _check_mesh(config.mesh)


def _check_mesh(mesh):
    for name in ("slices", "data", "model"):
        if mesh[name] == 0 or mesh[name] < -1:
            raise UserError(
                f"config.mesh.{name} is {mesh[name]}: it must be -1 (the rest) or above 0"
            )
    if mesh.data == mesh.model == -1:
        raise UserError(
            "config.mesh.data and config.mesh.model are both -1: only one can take what is left"
        )

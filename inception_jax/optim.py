"""The optimiser and its schedules, made with optax from `config.optim` and `config.schedule`.

Which parameters learn faster or are decayed is written as the reference's prototxt writes it, a
factor per parameter (lr_mult, decay_mult), chosen by regular expressions over names such as
`inception_3a/5x5/kernel`.
"""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from inception_jax.errors import UserError
from inception_jax.names import name_of


def make_schedule(
    config: ConfigDict, steps_per_epoch: Fraction, total_steps: int
) -> Callable[[Any], jax.Array]:
    """Returns the learning rate as a function of the number of updates made so far.

    After the warm-up, linear from 0 over W steps, t counts from its end and T = total_steps - W:
      step    rate * factor^floor(epochs(t) / every_epochs)   (paper, section 6)
      poly    rate * (1 - t/T)^power                          (reference quick_solver.prototxt)
      cosine  rate * (1 + cos(pi t/T)) / 2                    (Loshchilov & Hutter 2017)

    The last two are computed from the whole number T - t, since 1 - t/T and 1 + cos lose most of
    float32's digits where the rate goes to 0, and a long run spends many steps there.

    Args:
      config: `config.schedule`.
      steps_per_epoch: exact, as an epoch need not end with a step.
      total_steps: updates in the whole run.
    """
    warmup = round(Fraction(str(config.warmup_epochs)) * steps_per_epoch)
    rest = max(total_steps - warmup, 1)

    def left(t):
        return jnp.asarray(rest - t, float) / rest

    if config.name == "step":
        after = _staircase(config, steps_per_epoch, rest)
    elif config.name == "poly":

        def after(t):
            return config.rate * left(t) ** config.power
    elif config.name == "cosine":

        def after(t):
            return config.rate * jnp.sin(math.pi / 2 * left(t)) ** 2
    else:
        raise ValueError(f"no schedule {config.name}")

    def schedule(count):
        ramp = config.rate * jnp.asarray(count, float) / max(warmup, 1)
        t = jnp.clip(count - warmup, 0, rest)
        return jnp.where(count < warmup, ramp, after(t))

    return schedule


def _staircase(config, steps_per_epoch, total_steps):
    """A table, since whether a step is past a boundary must not hang on float32's rounding."""
    # steps per stair; the number as it is written, not its binary expansion
    length = Fraction(str(config.every_epochs)) * steps_per_epoch
    if length < 1:
        raise UserError(
            f"config.schedule.every_epochs={config.every_epochs} is shorter than a step, which is"
            f" {float(1 / steps_per_epoch):.3g} epochs: raise it"
        )
    stairs = math.ceil(total_steps / length)
    boundaries = np.array([math.ceil(n * length) for n in range(1, stairs)], np.int32)
    rates = config.rate * config.factor ** np.arange(stairs)
    return lambda t: jnp.asarray(rates)[jnp.searchsorted(boundaries, t, side="right")]


def make_optimizer(config: ConfigDict, schedule, params) -> optax.GradientTransformation:
    """Gradient clipping, then one of
      sgd      momentum (Sutskever et al. 2013)
      rmsprop  with momentum; its mean square begins at 1 and epsilon is under the root, as in
               TensorFlow, whose momentum is that of momentum_form=caffe (Szegedy et al. 2016,
               section 8)
      lars     SGD whose steps are scaled to each parameter's norm (You et al. 2017), in optax's
               form: to |w| / |g + decay w|, where the paper has |w| / (|g| + decay |w|)
      adamw    (Loshchilov & Hutter 2019)
      lamb     AdamW scaled as in LARS (You et al. 2020)
    and a factor on each parameter's rate; filters may be limited to a root mean square (Zeiler &
    Fergus 2013, section 3). Weight decay is L2, in the gradient and so in the
    momentum, but in adamw and lamb beside it. LARS and LAMB scale what is decayed, as is usual for
    both: the norms of biases say little.

    Args:
      config: `config.optim`.
      schedule: from make_schedule.
      params: a tree of arrays or ShapeDtypeStructs.

    Raises:
      UserError: a pattern of config fits no parameter, or a parameter none.
    """
    # Else a frozen parameter's momentum would gather its decay, for when it is set free.
    decay_factors = jax.tree.map(
        lambda factor, still: 0.0 if still else factor,
        factors("decay_factors", config.decay_factors, params),
        _fitting(config.freeze, params),
    )
    rate_factors = factors("rate_factors", config.rate_factors, params)
    beta1, beta2 = config.betas
    decay = optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda u, p, f: u + config.weight_decay * f * p if f else u,
            updates,
            params,
            decay_factors,
        )
    )
    adam = optax.scale_by_adam(beta1, beta2, config.epsilon)
    decayed = jax.tree.map(bool, decay_factors)
    if config.name == "sgd":
        parts = [decay]
    elif config.name == "rmsprop":
        parts = [decay, optax.scale_by_rms(beta2, config.epsilon, initial_scale=1.0)]
    elif config.name == "lars":
        trust = optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient)
        parts = [decay, optax.masked(trust, decayed)]
    elif config.name == "adamw":
        parts = [adam, decay]
    elif config.name == "lamb":
        parts = [adam, decay, optax.masked(optax.scale_by_trust_ratio(), decayed)]
    else:
        raise ValueError(f"no optimiser {config.name}")

    parts.append(optax.scale_by_learning_rate(schedule))
    if config.name in ("sgd", "rmsprop", "lars"):
        momentum = optax.trace(config.momentum, config.nesterov)
        parts.insert(len(parts) - (config.momentum_form == "optax"), momentum)
    # In any case a part, so that a run may go on with another value: states go by position.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    faster = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rate_factors))
    return optax.chain(clip, *parts, faster, _limit_filters(config.max_filter_rms))


def _limit_filters(limit):
    """Scales each filter whose root mean square would exceed the limit back to it; 0: none."""
    if not limit:
        return optax.identity()

    def limited(update, param):
        if param.ndim != 4:  # not the kernel of a convolution
            return update
        filters = param + update
        rms = jnp.sqrt(jnp.mean(jnp.square(filters), axis=(0, 1, 2)))
        return jnp.where(rms > limit, filters * (limit / rms) - param, update)

    return optax.stateless(lambda updates, params: jax.tree.map(limited, updates, params))


def factors(field: str, patterns: Sequence[tuple[str, float]], params) -> Any:
    """Gives every parameter the factor of the first pattern that its whole name fits.

    Args:
      field: of `config.optim`, for messages.
      patterns: (regular expression, factor) pairs.
      params: a tree of anything.

    Returns:
      A tree of params' structure, of floats.

    Raises:
      UserError: a parameter fits no pattern, or a pattern is the first of no parameter.
    """
    used = set()

    def factor(path, _):
        name = name_of(path)
        for number, (pattern, value) in enumerate(patterns):
            if re.fullmatch(pattern, name):
                used.add(number)
                return float(value)
        raise UserError(
            f"config.optim.{field} has no pattern for the parameter {name}: end it with one for"
            " '.*'"
        )

    tree = jax.tree_util.tree_map_with_path(factor, params)
    for number, (pattern, _) in enumerate(patterns):
        if number not in used:
            taken = any(re.fullmatch(pattern, name) for name in _names(params))
            why = "only parameters that patterns before it take" if taken else "no parameter"
            raise _useless(field, pattern, why, params)
    return tree


def frozen(patterns: Sequence[str], variables: dict[str, Any]) -> dict[str, Any]:
    """Tells which variables training leaves alone.

    Args:
      patterns: `config.optim.freeze`.
      variables: params and batch_stats, trees of anything.

    Returns:
      variables' structure, of bools: parameters whose whole name a pattern fits, and statistics
      beside which all parameters are frozen.

    Raises:
      UserError: a pattern fits no parameter, or nothing would be left to train.
    """
    params = variables["params"]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in _names(params)):
            raise _useless("freeze", pattern, "no parameter", params)
    still = _fitting(patterns, params)
    if all(jax.tree.leaves(still)):
        raise UserError(
            f"config.optim.freeze={tuple(patterns)} fits every parameter, so that there is nothing"
            " to train: leave some out"
        )

    def beside(path, _):
        module = still
        for entry in path[:-1]:
            module = module[entry.key]
        return all(jax.tree.leaves(module))

    statistics = jax.tree_util.tree_map_with_path(beside, variables["batch_stats"])
    return {"params": still, "batch_stats": statistics}


def _fitting(patterns, params):
    """A tree of bools: whether one of the regular expressions fits a parameter's whole name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.fullmatch(pattern, name_of(path)) for pattern in patterns), params
    )


def _useless(field, pattern, why, params):
    names = _names(params)
    return UserError(
        f"config.optim.{field}: the pattern {pattern!r} fits {why}; names are like {names[0]} and"
        f" {names[-1]}"
    )


def _names(params):
    return [name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]

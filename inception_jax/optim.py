"""The optimiser and its schedules, made with optax from `config.optim` and `config.schedule`.

Default form of momentum: optax's, where the rate multiplies the buffer; Caffe's, where the rate is
inside it, is one field away. They are equal while the rate is constant.
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from inception_jax.errors import UserError


def make_schedule(config: ConfigDict, steps_per_epoch: Fraction, total_steps: int):
    """Returns the learning rate as a function of the number of updates made so far.

    After the warm-up, linear from 0 over W steps, t counts from its end and T = total_steps - W:
      step    rate * factor^floor(epochs(t) / every_epochs)   (paper, section 6)
      poly    rate * (1 - t/T)^power                          (reference quick_solver.prototxt)
      cosine  rate * (1 + cos(pi t/T)) / 2                    (Loshchilov & Hutter 2017)

    Args:
      config: `config.schedule`.
      steps_per_epoch: exact, as an epoch need not end with a step.
      total_steps: updates in the whole run.
    """
    warmup = round(Fraction(str(config.warmup_epochs)) * steps_per_epoch)
    rest = max(total_steps - warmup, 1)
    if config.name == "step":
        schedule = _staircase(config, steps_per_epoch, rest)
    elif config.name == "poly":
        schedule = optax.polynomial_schedule(config.rate, 0.0, config.power, rest)
    elif config.name == "cosine":
        schedule = optax.cosine_decay_schedule(config.rate, rest)
    else:
        raise ValueError(f"no schedule {config.name}")
    if warmup:
        ramp = optax.linear_schedule(0.0, config.rate, warmup)
        schedule = optax.join_schedules([ramp, schedule], [warmup])
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
    return lambda count: jnp.asarray(rates)[jnp.searchsorted(boundaries, count, side="right")]


def is_kernel(params) -> dict:
    """A tree of params' structure: True for kernels, the only parameters that weight decay shrinks.

    Biases are left alone as in the reference (decay_mult: 0), and so are batch norm's parameters.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(config: ConfigDict, schedule) -> optax.GradientTransformation:
    """SGD with momentum and L2 weight decay, which enters the gradient and so the momentum.

    Args:
      config: `config.optim`.
      schedule: from make_schedule.
    """
    decay = optax.add_decayed_weights(config.weight_decay, mask=is_kernel)
    momentum = optax.trace(config.momentum)
    rate = optax.scale_by_learning_rate(schedule)
    if config.momentum_form == "caffe":
        return optax.chain(decay, rate, momentum)
    return optax.chain(decay, momentum, rate)

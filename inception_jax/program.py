"""What a config compiles to: the jitted start, training step and evaluation step on a mesh."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inception_jax import average, models, optim, sharding, step
from inception_jax.data import device


class Program(NamedTuple):
    """The functions of a run, with the shapes and shardings to compile them for."""

    mesh: Mesh
    total_steps: int
    steps_per_epoch: Fraction
    schedule: Callable  # number of updates made -> rate
    init: Any  # jitted: () -> state
    train_step: Any  # jitted: (state, donated; batch) -> (state, metrics)
    eval_step: Any  # jitted: (state, batch) -> sums
    state: Any  # TrainState of ShapeDtypeStructs with shardings
    train_batch: dict[str, jax.ShapeDtypeStruct]
    eval_batch: dict[str, jax.ShapeDtypeStruct]


def make(config: ConfigDict, mesh: Mesh, *, num_examples: int, num_classes: int) -> Program:
    """Assembles a run's functions; compiles nothing yet.

    Args:
      config: the whole config.
      mesh: from sharding.make_mesh.
      num_examples: images in the training split, which make an epoch.
      num_classes: K.

    Raises:
      UserError: the images are too small for the network, the batch cannot be split so, a pattern
        of `config.optim` fits no parameter, or the average would begin after the end.
    """
    model = models.build(config.model, num_classes)
    model.check(config.data.image_size)
    sharding.check_batch("batch_size", config.batch_size, config.accumulation, mesh)

    steps_per_epoch = Fraction(num_examples, config.batch_size)
    total_steps = math.ceil(Fraction(str(config.epochs)) * steps_per_epoch)
    schedule = optim.make_schedule(config.schedule, steps_per_epoch, total_steps)
    update_average = average.make_update(config.average, steps_per_epoch, total_steps)
    preprocess = device.make_preprocess(config.data, config.seed)

    def init_variables():
        return step.init_variables(model, config.data.image_size, config.seed)

    abstract = jax.eval_shape(init_variables)
    optimizer = optim.make_optimizer(config.optim, schedule, abstract["params"])

    def init():
        return step.init_state(init_variables(), optimizer, averaged=update_average is not None)

    everywhere, split = sharding.replicated(mesh), sharding.over_batch(mesh)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), jax.eval_shape(init)
    )
    train_step = step.make_train_step(
        model,
        optimizer,
        preprocess,
        schedule=schedule,
        seed=config.seed,
        auxiliary_weight=config.loss.auxiliary_weight,
        label_smoothing=config.loss.label_smoothing,
        accumulation=config.accumulation,
        update_average=update_average,
    )

    def batch(size, **others):
        side = config.data.image_size
        fields = {"image": ((size, side, side, 3), jnp.uint8), "label": ((size,), jnp.int32)}
        fields |= {name: ((size,), dtype) for name, dtype in others.items()}
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
            for name, (shape, dtype) in fields.items()
        }

    # Padded and masked, so its size need only fit the devices; it changes no result.
    devices = mesh.shape["data"]
    eval_size = -(-config.eval.batch_size // devices) * devices
    return Program(
        mesh=mesh,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        schedule=schedule,
        # Nothing here runs twice, and on CPU optimising it would take longer than all its work.
        init=jax.jit(
            init,
            out_shardings=everywhere,
            compiler_options=(
                {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
            ),
        ),
        train_step=jax.jit(
            train_step,
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            step.make_eval_step(model, preprocess),
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
        ),
        state=state,
        train_batch=batch(config.batch_size, epoch=jnp.int32, example=jnp.int32),
        eval_batch=batch(eval_size, valid=jnp.bool_),
    )

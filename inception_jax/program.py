"""What a config compiles to: the jitted start, training step and evaluation step on a mesh."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inception_jax import average, models, optim, sharding, step
from inception_jax.data import device
from inception_jax.errors import UserError
from inception_jax.names import name_of


class Evaluation(NamedTuple):
    """What evaluation needs of a run."""

    mesh: Mesh
    variables: Any  # params and batch_stats, of ShapeDtypeStructs with shardings
    eval_step: Any  # jitted: (state, batch) -> sums
    eval_batch: dict[int, dict[str, jax.ShapeDtypeStruct]]  # the first is config.data.image_size


class Program(NamedTuple):
    """The functions of a run, with the shapes and shardings to compile them for."""

    mesh: Mesh
    total_steps: int
    steps_per_epoch: Fraction
    schedule: Callable  # number of updates made -> rate
    init: Any  # jitted: (arrays by name, to start from; none if left out) -> state
    train_step: Any  # jitted: (state, donated; batch) -> (state, metrics)
    eval_step: Any  # jitted: (state, batch) -> sums
    state: Any  # TrainState of ShapeDtypeStructs with shardings
    train_batch: dict[int, dict[str, jax.ShapeDtypeStruct]]  # by size of images
    eval_batch: dict[int, dict[str, jax.ShapeDtypeStruct]]  # the first is config.data.image_size


def make(config: ConfigDict, mesh: Mesh, *, num_examples: int, num_classes: int) -> Program:
    """Assembles a run's functions; compiles nothing yet.

    Args:
      config: the whole config.
      mesh: from sharding.make_mesh.
      num_examples: images in the training split, which make an epoch.
      num_classes: K.

    Raises:
      UserError: the images are too small for the network, or of sizes that its parameters do not
        fit, the batch cannot be split so, a pattern of `config.optim` fits no parameter, or the
        average would begin after the end.
    """
    evaluation = make_evaluation(config, mesh, num_classes)
    model = models.build(config.model, num_classes)
    sharding.check_batch("batch_size", config.batch_size, config.accumulation, mesh)

    steps_per_epoch = Fraction(num_examples, config.batch_size)
    total_steps = math.ceil(Fraction(str(config.epochs)) * steps_per_epoch)
    schedule = optim.make_schedule(config.schedule, steps_per_epoch, total_steps)
    update_average = average.make_update(config.average, steps_per_epoch, total_steps)
    preprocess = device.make_preprocess(config.data, config.seed)

    abstract = evaluation.variables
    placed = sharding.Placed(model, abstract, mesh, config.mesh)
    train_sizes = config.data.train_sizes or (config.data.image_size,)
    _check_sizes(model, abstract, config, "data.train_sizes", train_sizes)
    frozen = optim.frozen(config.optim.freeze, abstract)
    optimizer = optim.make_optimizer(config.optim, schedule, abstract["params"])

    def init(given=None):
        drawn = step.init_variables(model, config.data.image_size, config.seed)
        variables = replace(drawn, given or {})
        return step.init_state(variables, optimizer, averaged=update_average is not None)

    state = jax.eval_shape(init)
    where = sharding.of_state(state, mesh, config.mesh)
    train_step = step.make_train_step(
        placed,
        optimizer,
        preprocess,
        schedule=schedule,
        seed=config.seed,
        auxiliary_weight=config.loss.auxiliary_weight,
        label_smoothing=config.loss.label_smoothing,
        accumulation=config.accumulation,
        mix=device.make_mix(config.data, config.seed),
        update_average=update_average,
        frozen=frozen,
        skip_nonfinite=config.optim.skip_nonfinite > 0,
    )

    return Program(
        mesh=mesh,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        schedule=schedule,
        # Nothing here runs twice, and on CPU optimising it would take longer than all its work.
        init=jax.jit(
            init,
            out_shardings=where,
            compiler_options=(
                {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
            ),
        ),
        train_step=jax.jit(
            train_step,
            in_shardings=(where, sharding.over_batch(mesh)),
            out_shardings=(where, sharding.replicated(mesh)),
            donate_argnums=0,
        ),
        eval_step=evaluation.eval_step,
        state=_at(state, where),
        train_batch={
            size: _batch(mesh, config.batch_size, size, epoch=jnp.int32, example=jnp.int32)
            for size in train_sizes
        },
        eval_batch=evaluation.eval_batch,
    )


def make_evaluation(config: ConfigDict, mesh: Mesh, num_classes: int) -> Evaluation:
    """Assembles what evaluates a network; compiles nothing yet.

    Args:
      config: the whole config.
      mesh: from sharding.make_mesh.
      num_classes: K.

    Raises:
      UserError: the images are too small for the network, or of sizes that its parameters do not
        fit.
    """
    model = models.build(config.model, num_classes)
    model.check(config.data.image_size)
    variables = jax.eval_shape(
        lambda: step.init_variables(model, config.data.image_size, config.seed)
    )
    sizes = (config.data.image_size, *config.eval.sizes)
    _check_sizes(model, variables, config, "eval.sizes", sizes)
    # Padded and masked, so its size need only fit the devices; it changes no result.
    count = -(-config.eval.batch_size // mesh.size) * mesh.size
    placed = sharding.Placed(model, variables, mesh, config.mesh)
    return Evaluation(
        mesh=mesh,
        variables=_at(variables, sharding.of_state(variables, mesh, config.mesh)),
        eval_step=jax.jit(
            step.make_eval_step(placed, device.make_preprocess(config.data, config.seed)),
            out_shardings=sharding.replicated(mesh),
        ),
        eval_batch={size: _batch(mesh, count, size, valid=jnp.bool_) for size in sizes},
    )


def replace(variables: Any, given: dict[str, Any]) -> Any:
    """Puts given arrays in the place of those of their names, in the dtypes of these."""

    def leaf(path, drawn):
        name = name_of(path)
        return given[name].astype(drawn.dtype) if name in given else drawn

    return jax.tree_util.tree_map_with_path(leaf, variables)


def _at(tree, shardings):
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def _batch(mesh, count, size, **others):
    fields = {"image": ((count, size, size, 3), jnp.uint8), "label": ((count,), jnp.int32)}
    fields |= {name: ((count,), dtype) for name, dtype in others.items()}
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.over_batch(mesh))
        for name, (shape, dtype) in fields.items()
    }


def _check_sizes(model, variables, config, field, sizes: Sequence[int]):
    """Raises UserError for the first size of images that the network cannot take."""

    def fits(size, train):
        try:
            jax.eval_shape(
                lambda variables, images_BHWC: model.apply(
                    variables,
                    images_BHWC,
                    train=train,
                    rngs={"dropout": jax.random.key(0)},
                    mutable=["batch_stats"],
                ),
                variables,
                jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
            )
        except flax.errors.ScopeParamShapeError:
            return False
        return True

    built_for = config.data.image_size
    if set(sizes) == {built_for}:
        return
    train = field == "data.train_sizes"
    if not train and getattr(model, "auxiliary_heads", False):
        model = model.clone(auxiliary_heads=False)  # evaluation has none
    any_size = fits(2 * built_for, train)
    heads = train and fits(2 * built_for, train=False)
    for size in sizes:
        try:
            model.check(size)
            fitting = fits(size, train)
        except UserError as error:
            if any_size:  # it speaks of the field that usually has the size
                told = str(error).replace("config.data.image_size", f"config.{field}")
                raise UserError(told) from None
            fitting = False
        if not fitting:
            raise UserError(
                f"config.{field}: {size} pixels will not do, as the network's fully connected"
                f" layers fit images of {built_for} pixels only: "
                + ("set config.model.auxiliary_heads=False" if heads else f"leave {size} out")
            )

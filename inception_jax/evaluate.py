"""Exact evaluation: every image of the split counts once, whatever the batch and the devices.

python -m inception_jax.evaluate runs/digits
python -m inception_jax.evaluate runs/digits --config.eval.sizes=24, --format=json

The folder is the workdir of a run or holds imported weights; what is evaluated is its newest whole
checkpoint, on the evaluation split of its own config. Nothing is written.
"""

import json
import sys
from collections.abc import Callable, Collection, Iterable
from typing import Any

from absl import flags

from inception_jax import config as config_lib
from inception_jax import process, validate
from inception_jax.errors import UserError

FORMATS = ("table", "json")
FLAGS_HELP = """\
  DIR                       the folder; comes first
  --config.FIELD=VALUE      change one field of its config, as in --config.eval.batch_size=32
  --format=table|json       what to print; table if not given
"""


class Stopped(Exception):
    """Evaluation was interrupted."""


def evaluate(
    eval_step: Callable,
    state,
    batches: Iterable[dict[str, Any]],
    examples: int,
    skipped: Collection[int] = (),
) -> dict[str, float]:
    """Sums eval_step over batches.

    Args:
      eval_step: (state, batch) -> sums, as made by step.make_eval_step.
      state: a TrainState.
      batches: padded global batches with `valid`, on the devices.
      examples: how many images the split has.
      skipped: those that turn out to be unreadable, in the course of the batches.

    Returns:
      top1, top5 (shares in [0, 1]), loss (mean cross entropy) and examples.

    Raises:
      RuntimeError: the batches did not hold once every image that can be read.
    """
    import jax

    from inception_jax import hosts

    totals = {"top1": 0, "top5": 0, "loss": 0.0, "examples": 0}
    for batch in batches:
        sums = jax.device_get(eval_step(state, batch))
        totals = {name: total + sums[name].item() for name, total in totals.items()}
    examples -= len(set().union(*hosts.gather(list(skipped))))
    if totals["examples"] != examples:
        raise RuntimeError(f"counted {totals['examples']} images of {examples}")
    result = {name: totals[name] / examples for name in ("top1", "top5", "loss")}
    return result | {"examples": examples}


def at_every_size(
    evaluation, state, source, data_config, interrupted: Callable[[], Any] = lambda: False
) -> dict[str, float]:
    """Evaluates with images of each of the sizes that there are to be.

    Args:
      evaluation: a program.Evaluation or program.Program.
      state: a TrainState.
      source: the split.
      data_config: `config.data`.
      interrupted: asked before each batch.

    Returns:
      What evaluate returns, at data_config.image_size; and top1_SIZE, top5_SIZE and loss_SIZE of
      the further sizes.

    Raises:
      Stopped: interrupted() was true.
    """
    from inception_jax import hosts, sharding
    from inception_jax.data import order, pipeline

    def batches(size, count):
        for batch in pipeline.evaluation(
            source,
            order.evaluation(len(source), count),
            sharding.local_rows(count, evaluation.mesh),
            range(-(-len(source) // count)),
            data_config,
            size,
        ):
            if interrupted():
                raise Stopped
            yield batch

    def placed(batch):
        return sharding.place_batch(batch, evaluation.mesh)

    row: dict[str, float] = {}
    for size, batch in evaluation.eval_batch.items():
        ahead = sharding.place_ahead(batches(size, len(batch["label"])), placed)
        eval_step = hosts.compiled(evaluation.eval_step, state, batch)
        result = evaluate(eval_step, state, ahead, len(source), source.faults)
        if row:
            result = {f"{name}_{size}": result[name] for name in ("top1", "top5", "loss")}
        row |= result
    return row


def left_out(source) -> str:
    """Tells which examples of an evaluated split could not be read, and why."""
    from inception_jax import hosts
    from inception_jax.data.repair import listed

    told: dict[int, str] = {}
    for found in hosts.gather([(index, source.told(index)) for index in source.faults]):
        told |= dict(found)
    told = [told[index] for index in sorted(told)]
    return f"evaluation: {len(told)} unreadable, left out: {listed(told)}"


@process.command(__doc__, FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    if len(argv) < 2 or argv[1].startswith("-"):
        raise UserError(
            "no folder given: the workdir of a run, or imported weights, comes first, as in"
            " python -m inception_jax.evaluate runs/digits"
        )
    folder, rest = argv[1], argv[2:]
    if config_lib.source_of(argv):
        raise UserError(
            f"--config={config_lib.source_of(argv)}: the config is that of {folder}; change fields"
            " of it with --config.FIELD=VALUE"
        )
    config_lib.read(folder)  # else a folder that is not there would be called a config file
    values, config = config_lib.parse(
        [argv[0], f"--config={folder}", *rest],
        lambda f: flags.DEFINE_string("format", "table", "", flag_values=f),
    )
    if values.format not in FORMATS:
        raise UserError(f"--format is {values.format!r}; known: {', '.join(FORMATS)}")
    validate.check(config)
    process.quiet()

    import jax
    import numpy as np

    from inception_jax import program, sharding, step, transfer
    from inception_jax.console import Console
    from inception_jax.data import datasets

    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    found, lines = transfer.newest(folder)
    data = datasets.load(config.data)
    if data.num_classes != found.meta["num_classes"]:
        raise UserError(
            f"{folder} was trained for {found.meta['num_classes']} classes, the data"
            f" {config.data.name} have {data.num_classes}: set config.data to data of its classes"
        )
    names = found.meta.get("class_names"), data.class_names and list(data.class_names)
    if None not in names and names[0] != names[1]:
        before, now = next(pair for pair in zip(*names, strict=True) if pair[0] != pair[1])
        raise UserError(
            f"{folder} was trained for the class {before} where the data {config.data.name} have"
            f" {now}: set config.data to data of its classes"
        )
    evaluation = program.make_evaluation(config, sharding.make_mesh(config.mesh), data.num_classes)
    arrays, more = transfer.read(found, evaluation.variables, data.num_classes)
    for line in (*lines, *more):
        print(line, file=sys.stderr)
    # heads that the weights lack do nothing in evaluation
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), evaluation.variables)
    variables = jax.tree.map(
        lambda array, wanted: jax.device_put(array, wanted.sharding),
        program.replace(zeros, arrays),
        evaluation.variables,
    )
    state = step.TrainState(step=found.step, opt_state=(), **variables)
    results = {"step": found.step} | at_every_size(evaluation, state, data.eval, config.data)
    if data.eval.faults:
        print(left_out(data.eval), file=sys.stderr)
    if values.format == "json":
        print(json.dumps(results, indent=1))
    else:
        Console().evaluated(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""Plans a config for a topology: compiles what has to be compiled."""

import math
import re
import sys
import time
from typing import Any

from ml_collections import ConfigDict

from inception_jax import models, program, sharding
from inception_jax.cost import count
from inception_jax.data import datasets
from inception_jax.errors import UserError
from inception_jax.plan import find, topology, weigh
from inception_jax.plan.chips import CHIPS
from inception_jax.plan.report import Report
from inception_jax.plan.weigh import GIB, Memory

GRANULE = 8  # images of a chip: TPUs hold arrays in tiles of 8


def plan(name: str, config: ConfigDict, where: str, devices: list[Any], find_batch: bool) -> Report:
    """Compiles a config's training step for a topology.

    Args:
      name: what the config is called.
      config: the whole config.
      where: the topology.
      devices: from topology.devices.
      find_batch: whether to plan for the largest batch that fits instead of the config's.

    Raises:
      UserError: the config cannot be laid out so, or does not fit.
    """
    mesh = sharding.make_mesh(config.mesh, devices)
    available = weigh.available(devices[0])
    num_classes = datasets.count_classes(config.data)
    num_examples = datasets.count_examples(config.data)

    def make(batch_size):
        changed = config.copy_and_resolve_references()
        changed.batch_size = batch_size
        return program.make(changed, mesh, num_examples=num_examples, num_classes=num_classes)

    def compiled(batch_size, size):
        prog = make(batch_size)
        _say(f"compiling for {batch_size:,} images of {size}x{size} on {where} ...")
        begin = time.monotonic()
        try:
            return weigh.weigh(prog, size, available)
        finally:
            _say(f"  {time.monotonic() - begin:.0f} s")

    sizes = list(config.data.train_sizes or (config.data.image_size,))
    batch_size, too_large, steps = config.batch_size, None, {}
    if find_batch:
        share = GRANULE * config.accumulation * mesh.size
        hardest = max(sizes)
        best, above = find.largest(lambda n: compiled(n * share, hardest), batch_size // share or 1)
        if best is None:
            raise UserError(
                f"{name} does not fit on {where}, not even with {share} images a step: take more"
                " chips, smaller parts by config.accumulation, or config.mesh.fully_sharded=True"
            )
        batch_size, too_large = best.images * mesh.size, above * share
        steps[hardest] = best
    try:
        for size in sizes:
            steps[size] = steps.get(size) or compiled(batch_size, size)
            if not steps[size].memory.fits:
                raise weigh.TooLarge(steps[size].memory)
    except weigh.TooLarge as error:
        raise UserError(
            f"{name} does not fit on {where}: {_short(error.memory, config, mesh.size)}"
        ) from None
    prog = make(batch_size)
    return Report(
        name=name,
        model=config.model.name,
        topology=where,
        layout=dict(mesh.shape),
        chip=CHIPS.get(topology.parse(where)[0]),
        batch_size=batch_size,
        steps=[steps[size] for size in sizes],
        needed=[needed(config, num_classes, steps[size]) for size in sizes],
        zeros=[zeros(config, num_classes, steps[size]) for size in sizes],
        epochs=config.epochs,
        total_steps=prog.total_steps,
        too_large=too_large,
    )


def needed(config: ConfigDict, num_classes: int, step: weigh.Step) -> int:
    """Flops of a step's products by the cost command's count, of the network as it was published.

    Two for each valid multiply-add, forward, and back for the gradient of the weights, unless they
    are frozen, and for that of the inputs, if anything below is trained. Nobody needs that of the
    images.

    Args:
      config: the whole config.
      num_classes: of the data.
      step: says how many images of which size.
    """
    model = config.model.copy_and_resolve_references()
    model.space_to_depth = None
    return _products(model, config.optim.freeze, num_classes, step)


def zeros(config: ConfigDict, num_classes: int, step: weigh.Step) -> int:
    """Flops of products with zeros, which a convolution over blocks of 2x2 pixels adds to these."""
    built = _products(config.model, config.optim.freeze, num_classes, step)
    return built - needed(config, num_classes, step)


def _products(model, freeze, num_classes, step):
    layers = count.layers(models.build(model, num_classes), step.image_size)

    def trained(layer):
        return not any(re.fullmatch(pattern, f"{layer.name}/kernel") for pattern in freeze)

    lowest = min(layer.depth for layer in layers if layer.weights and trained(layer))
    passes = [1 + trained(layer) + (layer.depth > lowest) for layer in layers]
    forward = [layer.valid_multiply_adds for layer in layers]
    return 2 * step.images * sum(map(math.prod, zip(passes, forward, strict=True)))


def _short(memory: Memory, config: ConfigDict, num_chips: int) -> str:
    """By how much it does not fit, and what would."""
    told = (
        f"a chip needs {memory.needed / GIB:.2f} GiB and has {memory.available / GIB:.2f},"
        f" {(memory.needed - memory.available) / GIB:.2f} too few; "
    )
    images = config.batch_size // num_chips
    room = memory.available - (memory.needed - memory.changing)
    fitting = int(images / config.accumulation * room / memory.changing)  # of a part
    if fitting < 1:
        return told + (
            "more chips may do, or config.mesh.fully_sharded=True"
            if not config.mesh.fully_sharded
            else "more chips may do"
        )
    batch_size = fitting * config.accumulation * num_chips
    parts = next(n for n in range(1, images + 1) if images % n == 0 and images // n <= fitting)
    return told + (
        f"in proportion config.batch_size={batch_size} or config.accumulation={parts} would do;"
        " --find_batch looks for the largest batch"
    )


def _say(text):
    print(text, file=sys.stderr, flush=True)

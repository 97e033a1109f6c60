"""What the compiler says of a training step: memory, operations, traffic, all of one device."""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from inception_jax.plan import collectives, hlo, products
from inception_jax.plan.traffic import traffic
from inception_jax.program import Program

GIB = 2**30


class Memory(NamedTuple):
    """Bytes of a device's memory.

    Attributes:
      held: the state and the batch, padded as they lie there.
      next_batch: which is on its way while the step runs, padded, too.
      temporaries: what the step computes in between, and its metrics.
      code: the program.
      available: what programs may use; None where that is not known.
    """

    held: int
    next_batch: int
    temporaries: int
    code: int
    available: int | None

    @property
    def needed(self) -> int:
        """All of it together."""
        return self.held + self.next_batch + self.temporaries + self.code

    @property
    def changing(self) -> int:
        """What grows with the batch."""
        return 2 * self.next_batch + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether there is as much."""
        return self.available is None or self.needed <= self.available


class Step(NamedTuple):
    """One training step on one device.

    Attributes:
      image_size: pixels a side.
      images: of the device's share of the batch.
      memory: what it takes.
      products: flops of its convolutions and fully connected layers.
      other_flops: of all else: activations, pooling, normalisation, the update.
      traffic: bytes that it reads from the main memory and writes there.
      collectives: operations with other devices.
    """

    image_size: int
    images: int
    memory: Memory
    products: int
    other_flops: int
    traffic: int
    collectives: list[collectives.Collective]

    @property
    def flops(self) -> int:
        """All of them."""
        return self.products + self.other_flops


class TooLarge(Exception):
    """The compiler found no way to make it fit.

    Attributes:
      memory: what it would take; temporaries alone as the compiler tells them.
    """

    def __init__(self, memory: Memory):
        self.memory = memory


def weigh(prog: Program, size: int, available: int | None) -> Step:
    """Compiles a training step for the devices of its mesh, and reads what came out.

    XLA counts what a loop does once, however often it runs. So products and traffic are counted
    here, by the program's instructions, and other operations grow in proportion to the products.

    Args:
      prog: from program.make.
      size: of the images, one of prog.train_batch.
      available: from available().

    Raises:
      TooLarge: the compiler cannot make it fit.
    """
    mesh, batch = prog.mesh, prog.train_batch[size]
    try:
        compiled = prog.train_step.lower(prog.state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        held = _bytes((prog.state, batch))
        if (temporaries := exceeded(str(error), held)) is None:
            raise
        raise TooLarge(Memory(held, _bytes(batch), temporaries, 0, available)) from None
    program, counted = hlo.read(compiled.as_text()), compiled.cost_analysis()
    stats = compiled.memory_analysis()
    memory = Memory(
        held=stats.argument_size_in_bytes,
        next_batch=_padded(batch, program),
        temporaries=(
            stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        ),
        code=stats.generated_code_size_in_bytes,
        available=available,
    )
    whole, once = (products.flops(program, whole) for whole in (True, False))
    return Step(
        image_size=size,
        images=batch["label"].shape[0] // mesh.size,
        memory=memory,
        products=whole,
        other_flops=int((counted["flops"] - once) * whole / once),
        traffic=traffic(program),
        collectives=collectives.read(program, mesh.size, mesh.shape["slice"]),
    )


def available(device: Any) -> int | None:
    """Bytes of a TPU's memory that programs may use, which its compiler tells by refusing one.

    Raises:
      RuntimeError: this version of the compiler words it in another way.
    """
    if device.platform != "tpu":
        return None
    where = jax.sharding.SingleDeviceSharding(device)
    too_large = jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=where)
    try:
        jax.jit(lambda x: x + 1, out_shardings=where).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := _gibibytes(r"available HBM \(([\d.]+)G\)", str(error))) is not None:
            return found
        raise RuntimeError(f"how much memory there is cannot be read from: {error}") from None
    raise RuntimeError("an array of a tebibyte was not refused")


def exceeded(message: str, held: int) -> int | None:
    """Bytes that a step would compute in between, if the TPU compiler refuses it for them.

    Args:
      message: the compiler's.
      held: bytes of the state and the batch.
    """
    if (temporaries := _gibibytes(r"HLO temporaries \(([\d.]+)G\)", message)) is not None:
        return temporaries
    used = _gibibytes(r"Used ([\d.]+)G of [\d.]+G hbm", message)  # all of it together
    return None if used is None else used - held


def _gibibytes(pattern, message):
    found = re.search(pattern, message)
    return int(float(found[1]) * GIB) if found else None


def _bytes(tree):
    """Of a device's share, without padding."""
    return sum(
        jnp.dtype(x.dtype).itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(tree)
    )


def _padded(batch, program):
    """Of a device's share of a batch, padded where the program reads it."""
    read = {}
    for each, _ in hlo.every(program):
        if each.opcode == "parameter" and (
            named := re.search(r"""op_name="batch\[\\?'(\w+)""", each.rest)
        ):
            read[named[1]] = each.arrays[0].padded
    return sum(read.get(name) or _bytes(field) for name, field in batch.items())

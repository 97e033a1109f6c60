"""The collective operations of a compiled step: how often, of how much, among how many."""

import math
import re
from typing import NamedTuple

import numpy as np

from inception_jax.plan import hlo

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BETWEEN_SLICES = "between slices"  # slices of TPUs talk through their hosts, which add up


class Collective(NamedTuple):
    """One operation in which devices take part together.

    Attributes:
      kind: one of KINDS, or BETWEEN_SLICES.
      size: bytes of the whole array: of a sum, of what was gathered, before it is scattered.
      devices: how many take part with one another.
      times: how often a step does it.
    """

    kind: str
    size: int
    devices: int
    times: int = 1

    @property
    def sent(self) -> float:
        """Bytes that each device sends at the least, all times together.

        That is what a ring sends; no algorithm sends less (Patarasu and Yuan 2009, J. Parallel
        Distrib. Comput. 69).
        """
        share = (self.devices - 1) / self.devices
        if self.kind in ("all-reduce", BETWEEN_SLICES):
            share *= 2
        elif self.kind == "collective-permute":
            share = 1
        return self.times * self.size * share


def read(program: dict[str, hlo.Computation], num_devices: int, slices: int) -> list[Collective]:
    """Finds the collective operations of a compiled program.

    A TPU overlaps some with computation: the parts of such a one are in several fusions, each of
    which has it written down. A sum that is scattered is a fusion of the sum and a slice.

    Args:
      program: a compiled one.
      num_devices: of the mesh.
      slices: of TPUs.
    """
    found, seen = [], set()
    for name, computation in program.items():
        for each in computation.instructions.values():
            kind = each.opcode.removesuffix("-start")
            times = computation.times
            if kind == "send" and "_xla_megascale" in each.rest:
                found.append(Collective(BETWEEN_SLICES, each.arrays[0].size, slices, times))
            if kind not in KINDS or (within(each, computation) and channel(each) in seen):
                continue
            seen.add(channel(each))
            written = re.search(r"replica_groups=(.*?)(?:, \w+=|$)", each.rest)
            devices = len(groups(written[1], num_devices)[0]) if written else num_devices
            size = sum(a.size for a in results(each)) * (devices if kind == "reduce-scatter" else 1)
            if scatters(name):
                kind = "reduce-scatter"
            if devices > 1:
                found.append(Collective(kind, size, devices, times))
    return found


def results(each: hlo.Instruction) -> list[hlo.Array]:
    """What comes out of a collective; of its start what goes in is written before that."""
    if each.opcode in ("all-gather-start", "collective-permute-start"):
        count = len(each.operands)
        return each.arrays[count : 2 * count]
    return each.arrays


def within(each: hlo.Instruction, computation: hlo.Computation) -> bool:
    """Whether an instruction is a collective, or its start or end, that is part of a fusion."""
    custom = each.opcode == "custom-call" and "AsyncCollective" in each.rest
    return computation.inside and (each.opcode in KINDS or custom)


def channel(each: hlo.Instruction) -> str:
    """What the parts of a collective have in common."""
    found = re.search(r"channel_id=(\d+)", each.rest)
    return found[1] if found else each.name


def scatters(computation: str) -> bool:
    """Whether a fusion is a sum of which each device keeps its part, by its computation's name."""
    return computation.startswith("all-reduce-scatter")


def groups(written: str, num_devices: int) -> np.ndarray | list[np.ndarray]:
    """The devices that talk to each other, a row a group, from XLA's ways of writing them."""
    if written.startswith("{"):
        written_groups = re.findall(r"\{([\d,]+)\}", written)
        return [np.array(g.split(","), int) for g in written_groups] or [np.arange(num_devices)]
    numbers = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")

    def ids(found):
        sizes = [int(size) for size in found[1].split(",")]
        order = [int(axis) for axis in (found[2] or "").split(",") if axis] or range(len(sizes))
        return np.arange(math.prod(sizes)).reshape(sizes).transpose(order)

    if written.startswith("mesh"):  # mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'b'}
        axes = dict(re.findall(r"'(\w+)'=(\d+)", written))
        sizes = [int(size) for size in axes.values()]
        listed = numbers.search(written)
        devices = (ids(listed) if listed else np.arange(math.prod(sizes))).reshape(sizes)
        over = [list(axes).index(a) for a in re.findall(r"'(\w+)'", written.rpartition("{")[2])]
        count = math.prod(sizes[axis] for axis in over)
        return np.moveaxis(devices, over, range(-len(over), 0)).reshape(-1, count)
    shape, _, listed = written.partition("<=")  # [4,2]<=[2,4]T(1,0)
    return ids(numbers.match(listed)).reshape(ids(numbers.match(shape)).shape)

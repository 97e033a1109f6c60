"""Reading the text of a compiled program: its instructions, and how often each is run."""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?[\])}]) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
    r"|(branch_computations|called_computations)=\{([^}]*)\}"
)
_INSIDE = ("calls", "to_apply")  # parts of one instruction
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Of f32[8,4]{1,0:T(8,128)S(1)}: what of, the sides, their order from the fastest, tiles and space.
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+)(?:e\w+)?\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")


class Array(NamedTuple):
    """An array as it lies in a memory.

    Attributes:
      shape: its sides.
      size: bytes, without padding.
      padded: bytes with the padding of its layout.
      main: whether it is in the main memory, and not closer to the processor.
    """

    shape: tuple[int, ...]
    size: int
    padded: int
    main: bool


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: unique in its computation.
      type: of the result, as written.
      opcode: as in all-reduce-start.
      rest: operands and attributes, as written.
    """

    name: str
    type: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """The names of what it is computed from."""
        return re.findall(r"%([\w.-]+)", self.rest.partition(")")[0])

    @property
    def called(self) -> str:
        """The computation that a fusion is made of."""
        found = re.search(r"calls=%?([\w.-]+)", self.rest)
        return found[1] if found else ""

    @property
    def arrays(self) -> list[Array]:
        """Of the result."""
        return arrays(self.type)


class Computation(NamedTuple):
    """A named part of a program.

    Attributes:
      name: unique in its program.
      instructions: by their names.
      times: how often it is run in a step; in unknown loops once, and in branches as if taken.
      inside: it is a part of an instruction of another one, as of a fusion.
      root: the name of its result.
    """

    name: str
    instructions: dict[str, Instruction]
    times: int
    inside: bool
    root: str

    def given(self, instruction: Instruction) -> list[Instruction]:
        """What an instruction is computed from."""
        return [self.instructions[o] for o in instruction.operands if o in self.instructions]

    def results(self) -> list[Instruction]:
        """What its result is made of: one, or the parts of a tuple."""
        root = self.instructions[self.root]
        return self.given(root) if root.opcode == "tuple" else [root]

    def parameters(self) -> list[Instruction]:
        """Its own, in their order."""
        found = [each for each in self.instructions.values() if each.opcode == "parameter"]
        return sorted(found, key=lambda each: int(each.rest.partition(")")[0]))


def read(text: str) -> dict[str, Computation]:
    """Reads a program.

    Args:
      text: optimised HLO, as compiled.as_text() has it.

    Returns:
      Its computations by their names.
    """
    instructions: dict[str, dict[str, Instruction]] = {}
    roots: dict[str, str] = {}
    times: dict[str, int] = {}
    name = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            instructions[name] = {}
            if header[1]:
                times[name] = 1
        elif found := _INSTRUCTION.match(line):
            root, *parts = found.groups()
            each = Instruction(*parts)
            instructions[name][each.name] = each
            if root:
                roots[name] = each.name
    # who calls a computation, and how often in a run of its own
    callers: dict[str, list[tuple[str, int]]] = {}
    inside: set[str] = set()
    for caller, lines in instructions.items():
        for each in lines.values():
            trips = _trips(each, instructions, roots) if each.opcode == "while" else 1
            for how, one, _, several in _CALLED.findall(each.rest):
                for called in [one] if one else re.findall(r"[\w.-]+", several):
                    callers.setdefault(called, []).append((caller, trips))
                    if how in _INSIDE and each.opcode != "call":
                        inside.add(called)

    @functools.cache
    def count(name):
        return times.get(name) or sum(count(by) * trips for by, trips in callers.get(name, []))

    return {
        name: Computation(name, lines, count(name), name in inside, roots.get(name, ""))
        for name, lines in instructions.items()
    }


def every(
    program: dict[str, Computation],
) -> Iterator[tuple[Instruction, Computation]]:
    """Yields each instruction and where it is, those inside of others, too."""
    for computation in program.values():
        for instruction in computation.instructions.values():
            yield instruction, computation


def arrays(written: str) -> list[Array]:
    """The arrays of a written type."""
    found = []
    for kind, sides, order, layout in _ARRAY.findall(written):
        shape = tuple(int(n) for n in sides.split(",") if n)
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        lying = [shape[int(axis)] for axis in order.split(",") if axis]  # the fastest first
        tile = re.match(r"T\(([\d,]+)\)", layout)
        for axis, side in enumerate(reversed(tile[1].split(",")) if tile else ()):
            if axis < len(lying):
                lying[axis] = math.ceil(lying[axis] / int(side)) * int(side)
        sizes = (math.prod(n) * bits // 8 for n in (shape, lying or shape))
        found.append(Array(shape, *sizes, not re.search(r"S\([1-9]", layout)))
    return found


def _trips(loop, instructions, roots):
    """How often a loop runs, which counts from 0 in steps up to a limit; 1 if it does not."""
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    condition, body = (
        re.search(rf"{name}=%?([\w.-]+)", loop.rest)[1] for name in ("condition", "body")
    )
    ending, beginning = instructions[condition], instructions[body]

    def constant(computation, name):
        """The value of a whole number that is written down, else 0."""
        each = computation.get(name)
        written = re.match(r"\d+", each.rest) if each and each.opcode == "constant" else None
        return int(written[0]) if written else 0

    compare = ending[roots[condition]]
    counter, limit = ([*compare.operands, "", ""])[:2]
    index = re.search(r"index=(\d+)", ending[counter].rest) if counter in ending else None
    end = constant(ending, limit)
    if not (index and end and "direction=LT" in compare.rest):
        return 1
    operands = re.findall(r"%([\w.-]+)", beginning[roots[body]].rest)
    place = int(index[1])
    added = beginning.get(operands[place]) if place < len(operands) else None
    if not added or added.opcode != "add":
        return 1
    step = next(filter(None, (constant(beginning, name) for name in added.operands)), 0)
    return math.ceil(end / step) if step else 1

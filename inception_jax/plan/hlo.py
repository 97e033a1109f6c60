"""Reading the text of a compiled program: its instructions, and how often each is run."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?[\])}]) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+)(?:e\w+)?\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: unique in its computation.
      type: of the result, as written.
      opcode: as in all-reduce-start.
      rest: operands and attributes, as written.
      computation: the function that it is part of.
      times: how often a run of the program runs it; a loop of unknown length counts once.
    """

    name: str
    type: str
    opcode: str
    rest: str
    computation: str
    times: int


def instructions(text: str) -> Iterator[Instruction]:
    """Yields what a program holds, in its order.

    Args:
      text: optimised HLO, as compiled.as_text() has it.
    """
    times = _times(text)
    computation = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif found := _INSTRUCTION.match(line):
            yield Instruction(*found.groups(), computation, times.get(computation, 0))


def shapes(types: str) -> list[tuple[int, ...]]:
    """The shape of each array in a written type."""
    return [tuple(int(n) for n in shape.split(",") if n) for _, shape in _ARRAY.findall(types)]


def sizes(types: str) -> list[int]:
    """Bytes of each array in a written type, without the padding of its layout."""
    bits = [8 if d == "pred" else int(re.search(r"\d+", d)[0]) for d, _ in _ARRAY.findall(types)]
    return [math.prod(s) * b // 8 for s, b in zip(shapes(types), bits, strict=True)]


def _times(text):
    """How often a run of the program runs each of its computations."""
    callers: dict[str, list[tuple[str, int]]] = {}
    times: dict[str, int] = {}
    computation = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
            if line.startswith("ENTRY"):
                times[computation] = 1
            continue
        trips = _TRIPS.search(line)
        for one, several in _CALLED.findall(line):
            for called in [one] if one else re.findall(r"[\w.-]+", several):
                callers.setdefault(called, []).append((computation, int(trips[1]) if trips else 1))

    def count(name):
        if name not in times:
            times[name] = sum(count(by) * trips for by, trips in callers.get(name, []))
        return times[name]

    for name in callers:
        count(name)
    return times

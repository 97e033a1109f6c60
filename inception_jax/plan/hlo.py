"""Reading the text of a compiled program: its instructions, and how often each is run."""

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
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+)(?:e\w+)?\[([\d,]*)\]")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while")


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


class Program:
    """A program and its computations, the first of which is run once."""

    def __init__(self, text: str):
        """Reads a program.

        Args:
          text: optimised HLO, as compiled.as_text() has it.
        """
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._roots: dict[str, Instruction] = {}
        self._times: dict[str, int] = {}
        computation = ""
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                computation = header[2]
                self._computations[computation] = {}
                if header[1]:
                    self._times[computation] = 1
            elif found := _INSTRUCTION.match(line):
                root, *parts = found.groups()
                instruction = Instruction(*parts)
                self._computations[computation][instruction.name] = instruction
                if root:
                    self._roots[computation] = instruction
        # who calls a computation, and how often in a run of its own
        self._callers: dict[str, list[tuple[str, int]]] = {}
        self._inside: set[str] = set()
        for name, instructions in self._computations.items():
            for instruction in instructions.values():
                self._note_calls(name, instruction)
        for name in self._callers:
            self._count(name)

    def __iter__(self) -> Iterator[tuple[Instruction, int, list[str]]]:
        """Yields each instruction, how often it is run (in unknown loops once), operands' types."""
        for name in self._computations:
            for instruction, given in self._with_operands(name):
                yield instruction, self._times.get(name, 0), given

    def repeated_traffic(self) -> int:
        """Bytes that are read and written by loops when they run again.

        XLA counts every loop as if it ran once. Here, an instruction reads its operands and writes
        its result; XLA leaves out what it holds closer to the processor.
        """
        total = 0
        for name in self._computations.keys() - self._inside:
            again = max(self._times.get(name, 0) - 1, 0)
            for each, given in self._with_operands(name):
                if each.opcode not in _FREE and not each.opcode.endswith("-done"):
                    total += again * sum(sum(sizes(t)) for t in (each.type, *given))
        return total

    def _with_operands(self, computation):
        instructions = self._computations[computation]
        for each in instructions.values():
            yield each, [instructions[o].type for o in each.operands if o in instructions]

    def _note_calls(self, caller, instruction):
        trips = self._trips(instruction) if instruction.opcode == "while" else 1
        for how, one, _, several in _CALLED.findall(instruction.rest):
            for called in [one] if one else re.findall(r"[\w.-]+", several):
                self._callers.setdefault(called, []).append((caller, trips))
                if how in _INSIDE and instruction.opcode != "call":
                    self._inside.add(called)

    def _trips(self, loop):
        """How often a loop runs, which counts from 0 in steps up to a limit; 1 if it does not."""
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        condition, body = (
            re.search(rf"{name}=%?([\w.-]+)", loop.rest)[1] for name in ("condition", "body")
        )
        compare = self._roots[condition]
        counter, limit = ([*compare.operands, "", ""])[:2]
        index = re.search(r"index=(\d+)", self._rest(condition, counter))
        limit = self._constant(condition, limit)
        if not (index and limit and "direction=LT" in compare.rest):
            return 1
        operands = re.findall(r"%([\w.-]+)", self._roots[body].rest)
        added = self._computations[body].get(operands[int(index[1])])
        steps = [self._constant(body, name) for name in (added.operands if added else [])]
        step = next(filter(None, steps), 0) if added and added.opcode == "add" else 0
        return math.ceil(limit / step) if step else 1

    def _rest(self, computation, name):
        instruction = self._computations[computation].get(name)
        return instruction.rest if instruction else ""

    def _constant(self, computation, name):
        """The value of a whole number that is written down, else 0."""
        instruction = self._computations[computation].get(name)
        written = re.match(r"\d+", instruction.rest) if instruction else None
        return int(written[0]) if written and instruction.opcode == "constant" else 0

    def _count(self, name):
        if name not in self._times:
            calls = self._callers.get(name, [])
            self._times[name] = sum(self._count(by) * trips for by, trips in calls)
        return self._times[name]


def shapes(types: str) -> list[tuple[int, ...]]:
    """The shape of each array in a written type."""
    return [tuple(int(n) for n in shape.split(",") if n) for _, shape in _ARRAY.findall(types)]


def sizes(types: str) -> list[int]:
    """Bytes of each array in a written type, without the padding of its layout."""
    bits = [8 if d == "pred" else int(re.search(r"\d+", d)[0]) for d, _ in _ARRAY.findall(types)]
    return [math.prod(s) * b // 8 for s, b in zip(shapes(types), bits, strict=True)]

"""What a compiled step reads from a chip's main memory and writes to it.

XLA's own count ("bytes accessed") takes what lies in the memory beside the processor for the same
as what lies in the main one, and every loop for one round. So this reads the program: each
instruction reads what it is given and writes its result, where they lie in the main memory, once
and with the padding of their layout; of what is sliced, the slice. What a fusion computes inside
stays in the processor.
"""

from inception_jax.plan import collectives, hlo

# No work, or that of other instructions.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional")
_FREE += ("call", "after-all", "partition-id", "replica-id", "opt-barrier")
_FREE_CUSTOM = ("AllocateBuffer", "ConcatBitcast")
_SLICES = ("slice", "dynamic-slice", "gather")
# Each of their results needs more of what they are given than its own place there.
_WINDOWS = ("convolution", "dot", "reduce-window", "select-and-scatter", "scatter", "sort")


def traffic(program: dict[str, hlo.Computation]) -> int:
    """Bytes that a step reads and writes on one device."""
    total, fused = 0, _Fused(program)
    channels: dict[str, int] = {}  # of collectives in fusions, of which each is in several
    for computation in program.values():
        for each in computation.instructions.values():
            if not computation.inside:
                total += computation.times * _moved(each, computation, fused)
            elif each.opcode in collectives.KINDS and not collectives.scatters(computation.name):
                channel = collectives.channel(each)
                moved = computation.times * _whole(each, computation)
                channels[channel] = min(moved, channels.get(channel, moved))
    return total + sum(channels.values())


def _moved(each, computation, fused):
    """Of one instruction."""
    opcode, given = each.opcode, computation.given(each)
    kind = opcode.removesuffix("-start")
    if opcode in _FREE or opcode.endswith("-done") or _custom(each) in _FREE_CUSTOM:
        return 0
    if opcode == "fusion" and not collectives.scatters(each.called):
        return fused.read(each, given) + fused.written(each)
    read, written = sum(map(_main, given)), _main(each)
    if opcode in _SLICES:
        read += _part(given[0], each) - _main(given[0])
    elif opcode == "dynamic-update-slice":
        read, written = _main(given[1]), _part(given[0], given[1])
    elif opcode == "send":
        written = 0
    elif kind in collectives.KINDS:
        written = sum(array.padded for array in collectives.results(each) if array.main)
    elif kind != opcode:  # as much is read as is written
        target = each.arrays[0 if kind == "copy" else len(given)]
        read, written = target.padded * given[0].arrays[0].main, target.padded * target.main
    return read + written


def _main(each):
    """Of a result, where it lies in the main memory."""
    return sum(array.padded for array in each.arrays if array.main)


def _part(whole, part):
    """Of an array that is as large as another, where the first lies in the main memory."""
    return part.arrays[0].padded if whole.arrays[0].main else 0


def _whole(each, computation):
    return _main(each) + sum(map(_main, computation.given(each)))


def _custom(each):
    return each.rest.partition('custom_call_target="')[2].partition('"')[0]


def _is_result(each, computation):
    """Whether it is a part of its computation's result, by another name or not."""
    return any(
        each is result or (result.opcode == "bitcast" and each in computation.given(result))
        for result in computation.results()
    )


class _Fused:
    """What fusions read and write of what is around them."""

    def __init__(self, program: dict[str, hlo.Computation]):
        self._program = program
        self._shares: dict[tuple[str, str], float] = {}

    def read(self, fusion, given) -> int:
        """Bytes of what it is given that it reads."""
        inner = self._program[fusion.called]
        parameters = inner.parameters()
        return round(
            sum(self._share(p, inner) * _main(g) for p, g in zip(parameters, given, strict=True))
        )

    def written(self, fusion) -> int:
        """Bytes of its results that it writes, where they are not what it was given."""
        inner = self._program[fusion.called]
        parts, arrays = inner.results(), fusion.arrays
        if len(parts) != len(arrays):  # one instruction makes several
            return 0 if any(collectives.within(p, inner) for p in parts) else _main(fusion)
        pairs = zip(parts, arrays, strict=True)
        return sum(min(a.padded, self._new(part, inner)) for part, a in pairs if a.main)

    def _share(self, each, computation):
        """How much of a value inside a fusion is needed, from 0 to 1."""
        key = computation.name, each.name
        if key not in self._shares:
            final = each.opcode != "parameter" and each in computation.results()
            needs = [
                self._need(each, user, computation)
                for user in computation.instructions.values()
                if each.name in user.operands
            ]
            self._shares[key] = 1.0 if final else min(sum(needs), 1.0)
        return self._shares[key]

    def _need(self, each, user, computation):
        """How much of a value a user of it needs."""
        first = user.operands[0] == each.name
        if user.opcode == "tuple" or collectives.within(user, computation):
            return 0  # handed on, or counted by itself
        if user.opcode == "dynamic-update-slice" and first and _is_result(user, computation):
            return 0  # written over in place
        if user.opcode == "fusion":
            inner = self._program[user.called]
            at = [i for i, operand in enumerate(user.operands) if operand == each.name]
            return sum(self._share(inner.parameters()[i], inner) for i in at)
        if user.opcode in _WINDOWS:
            return 1
        share = self._share(user, computation)
        if user.opcode in _SLICES and first:
            share *= user.arrays[0].size / max(each.arrays[0].size, 1)
        return share

    def _new(self, part, computation):
        """Bytes of a part of a fusion's result that were not there before."""
        if part.opcode == "parameter" or collectives.within(part, computation):
            return 0
        if part.opcode == "bitcast":
            return self._new(computation.given(part)[0], computation)
        if part.opcode == "fusion" and len(part.arrays) == 1:
            inner = self._program[part.called]
            return sum(self._new(each, inner) for each in inner.results())
        if part.opcode == "dynamic-update-slice":
            return computation.given(part)[1].arrays[0].padded
        return sum(array.padded for array in part.arrays)

"""The matrix products of a compiled step: its convolutions and fully connected layers."""

import math
import re

import numpy as np

from inception_jax.plan import hlo


def flops(program: dict[str, hlo.Computation], whole: bool = True) -> int:
    """Two for each multiply-add of a pixel, as the cost command counts them; none for padding.

    Args:
      program: a compiled one.
      whole: loops count as often as they run; else once.
    """
    total = 0
    for each, computation in hlo.every(program):
        if each.opcode not in ("convolution", "dot"):
            continue
        count = _dot if each.opcode == "dot" else _convolution
        out, left, right = (e.arrays[0].shape for e in (each, *computation.given(each)))
        number = count(out, left, right, each.rest)
        total += 2 * number * (computation.times if whole else 1)
    return total


def _dot(out, left, right, attributes):
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)[1]
    return math.prod(out) * math.prod(left[int(axis)] for axis in contracted.split(",") if axis)


def _convolution(out, left, right, attributes):
    image, kernel, result = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    window = re.search(r"window=\{(.*?)\}", attributes)
    given = dict(part.split("=") for part in window[1].split()) if window else {}
    number = out[result.index("b")] * out[result.index("f")] * right[kernel.index("i")]
    for axis in range(len(image) - 2):

        def along(name, default, axis=axis):
            return given[name].split("x")[axis] if name in given else default

        pixels = left[image.index(str(axis))]
        apart = int(along("lhs_dilate", "1"))
        starts = np.arange(out[result.index(str(axis))]) * int(along("stride", "1"))
        taps = np.arange(int(along("size", "1"))) * int(along("rhs_dilate", "1"))
        at = starts[:, None] + taps - int(along("pad", "0_0").split("_")[0])
        number *= int(np.sum((at >= 0) & (at <= (pixels - 1) * apart) & (at % apart == 0)))
    return number

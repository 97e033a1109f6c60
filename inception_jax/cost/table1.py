"""GoogLeNet's rows beside the paper's Table 1 (Szegedy et al. 2014), and why they differ.

The paper counts weights in units of 1,024 and multiply-adds in units of a million, without biases.
"""

from collections.abc import Sequence
from typing import NamedTuple

from inception_jax.cost.count import Layer


class Row(NamedTuple):
    """One row of the comparison; the paper's numbers as it prints them."""

    row: str
    output: tuple[int, ...]
    depth: int
    kilo_weights: float
    paper_kilo_weights: float
    mega_multiply_adds: float
    paper_mega_multiply_adds: float
    notes: tuple[str, ...]


# Row: scope of its layers, and the paper's thousands of weights and millions of operations.
PAPER = {
    "conv1": ("conv1", 2.7, 34),
    "conv2": ("conv2", 112, 360),
    "3a": ("inception_3a", 159, 128),
    "3b": ("inception_3b", 380, 304),
    "4a": ("inception_4a", 364, 73),
    "4b": ("inception_4b", 437, 88),
    "4c": ("inception_4c", 463, 100),
    "4d": ("inception_4d", 580, 119),
    "4e": ("inception_4e", 840, 170),
    "5a": ("inception_5a", 1072, 54),
    "5b": ("inception_5b", 1388, 71),
    "linear": ("loss3", 1000, 1),
}
# Of the published network; tests/cost/test_table1.py recomputes what these say.
WHY = {
    "conv1": "the paper's 34M is a separable 7x7 convolution's (8 filters per colour, then 1x1:"
    " 34.0M), and so is its 2.7K, in units of 1,000 (2,712 weights); its text and the reference"
    " have the dense one",
    "3a": "the paper cuts the weights off: 159.5K",
    "4a": "the paper cuts the operations off: 73.6M",
    "5a": "a 5x5 reduction of 48 channels, as in 5b, would make 54.2M operations: a guess",
}
UNEXPLAINED = "the paper's own widths make our number of weights; no cause of the paper's is known"


def compare(layers: Sequence[Layer], published: bool) -> list[Row]:
    """Sums a GoogLeNet's layers up by the paper's rows.

    Args:
      layers: from count.layers.
      published: whether it is the paper's network, so that differences are the paper's.
    """
    rows, depth = [], 0
    for row, (scope, kilo_weights, mega) in PAPER.items():
        inside = [layer for layer in layers if layer.name.startswith(f"{scope}/")]
        if not inside:
            continue
        reached = max(layer.depth for layer in inside)
        ours = sum(layer.weights for layer in inside) / 1024
        operations = sum(layer.multiply_adds for layer in inside) / 1e6
        notes = _notes(row, ours, kilo_weights) if published else ()
        rows.append(
            Row(
                row, inside[-1].output, reached - depth, ours, kilo_weights, operations, mega, notes
            )
        )
        depth = reached
    return rows


def sums(rows: Sequence[Row]) -> tuple[float, float]:
    """Our millions of multiply-adds, and the paper's."""
    return sum(r.mega_multiply_adds for r in rows), sum(r.paper_mega_multiply_adds for r in rows)


def _notes(row, ours, kilo_weights):
    notes = [WHY[row]] if row in WHY else []
    if round(ours) != kilo_weights and row not in ("conv1", "3a"):  # whose weights are explained
        notes.append(UNEXPLAINED)
    return tuple(notes)

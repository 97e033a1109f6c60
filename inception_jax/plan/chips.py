"""The chips that can be planned for: the one table of their figures, with sources.

A chip is what JAX calls a device. v4 and v5p have two cores a chip, which compile as one device
("megacore"), as they do on Cloud TPU by default; all figures are those of both cores together.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """One generation of TPU.

    Attributes:
      cores: of a chip.
      flops: dense bfloat16 operations a second; float32 convolutions run in bfloat16 passes too.
      hbm: bytes of memory, as published; the compiler says how many of them programs may use.
      hbm_bandwidth: bytes a second.
      ici: bytes a second out of a chip to its neighbours in the slice, over all its links together.
      dcn: bytes a second out of a chip's share of its host's network to other slices; None where
        it was not published.
      slices: the slices that are rented, as the compiler writes them.
      source: where the figures were published.
    """

    cores: int
    flops: float
    hbm: int
    hbm_bandwidth: float
    ici: float
    dcn: float | None
    slices: tuple[str, ...]
    source: str


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    *("8x16x16",),
)

CHIPS = {
    "v4": Chip(
        cores=2,
        flops=275e12,
        hbm=32 * 2**30,
        hbm_bandwidth=1_228e9,
        ici=6 * 50e9,
        dcn=None,
        slices=(*_CUBES, "16x16x16"),
        source="docs.cloud.google.com/tpu/docs/v4; links: Jouppi et al. 2023, arXiv:2304.01433",
    ),
    "v5e": Chip(
        cores=1,
        flops=197e12,
        hbm=16 * 2**30,
        hbm_bandwidth=819e9,
        ici=1_600e9 / 8,
        dcn=6.4e12 / 8 / 256,  # of a pod of 256
        slices=_FLAT,
        source="docs.cloud.google.com/tpu/docs/v5e",
    ),
    "v5p": Chip(
        cores=2,
        flops=459e12,
        hbm=95 * 2**30,
        hbm_bandwidth=2_765e9,
        ici=1_200e9 / 2,  # published for both directions
        dcn=50e9 / 8,
        slices=(*_CUBES, "4x4x12", "4x8x12", "8x8x12", "16x16x16", "16x16x24"),
        source="docs.cloud.google.com/tpu/docs/v5p",
    ),
    "v6e": Chip(
        cores=1,
        flops=918e12,
        hbm=32 * 2**30,
        hbm_bandwidth=1_638e9,
        ici=800e9 / 2,  # published for both directions
        dcn=25.6e12 / 8 / 256,  # of a pod of 256
        slices=_FLAT,
        source="docs.cloud.google.com/tpu/docs/v6e",
    ),
}

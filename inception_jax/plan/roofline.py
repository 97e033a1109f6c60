"""How fast a step can be at the best: the slowest of what a chip does at once, at full speed.

Williams et al. 2009, "Roofline", with the networks beside compute and memory. All are taken to
overlap wholly and to run at the rates of the data sheet, so what comes out is a ceiling.
"""

from typing import Any, NamedTuple

from inception_jax.plan.chips import Chip
from inception_jax.plan.collectives import BETWEEN_SLICES
from inception_jax.plan.weigh import Step


class Times(NamedTuple):
    """Seconds that a step takes at the least by each of a chip's limits; None if not known."""

    compute: float
    memory: float
    interconnect: float
    network: float | None

    @property
    def bound(self) -> str:
        """The name of the largest."""
        return max(self._fields, key=lambda name: getattr(self, name) or 0)

    @property
    def step(self) -> float:
        """The largest."""
        return getattr(self, self.bound)


def times(step: Step, chip: Chip) -> Times:
    """The times of a step on a chip."""
    between = sum(c.sent for c in step.collectives if c.kind == BETWEEN_SLICES)
    within = sum(c.sent for c in step.collectives) - between
    return Times(
        compute=step.flops / chip.flops,
        memory=step.traffic / chip.hbm_bandwidth,
        interconnect=within / chip.ici,
        network=between / chip.dcn if chip.dcn else (None if between else 0.0),
    )


def ceilings(step: Step, needed: int, chip: Chip, num_chips: int) -> dict[str, Any]:
    """What follows from the times: images/s of all chips, and MFU.

    MFU is Model FLOPs Utilisation (Chowdhery et al. 2022, arXiv:2204.02311): the products that the
    network needs, forward and back, over what the chips could do meanwhile. What is computed a
    second time to save memory is no use, nor are products with zeros.

    Args:
      step: on one chip.
      needed: flops of the network's products for it.
      chip: which it is.
      num_chips: that do the same.
    """
    seconds = times(step, chip).step
    return {
        "images_per_second": step.images * num_chips / seconds,
        "mfu": needed / chip.flops / seconds,
    }

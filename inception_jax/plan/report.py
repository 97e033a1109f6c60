"""What a config comes to on a pod, put together for people and for programs."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from inception_jax.plan import roofline
from inception_jax.plan.chips import Chip
from inception_jax.plan.weigh import Step


@dataclasses.dataclass
class Report:
    """A config on a topology.

    Attributes:
      name: of the config.
      model: config.model.name.
      topology: as given.
      layout: the mesh's axes and their sizes.
      chip: None for CPUs, of which no speeds are known.
      batch_size: of all devices together.
      steps: the compiled step for each size of images that training sees.
      needed: flops of the network's products for a device's share at each size, forward and back,
        by the cost command's count of multiply-adds.
      zeros: of products with zeros, where a convolution is computed over blocks of pixels.
      epochs: of the recipe.
      total_steps: of the recipe.
      too_large: the next larger batch, where this is the largest that fits; else None.
    """

    name: str
    model: str
    topology: str
    layout: dict[str, int]
    chip: Chip | None
    batch_size: int
    steps: list[Step]
    needed: list[int]
    zeros: list[int]
    epochs: float
    total_steps: int
    too_large: int | None = None

    @property
    def num_devices(self) -> int:
        """Chips, or virtual devices of a CPU."""
        return math.prod(self.layout.values())

    @property
    def hours(self) -> float:
        """Of the recipe's updates at the ceiling; sizes of images take turns."""
        seconds = [roofline.times(step, self.chip).step for step in self.steps]
        return self.total_steps * sum(seconds) / len(seconds) / 3600

    def rows(self) -> Iterator[tuple[Step, int, int]]:
        """Yields each step, what it needs, and its products with zeros."""
        return zip(self.steps, self.needed, self.zeros, strict=True)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values; bytes, flops and seconds of one chip and one step."""
        found = {
            "config": self.name,
            "model": self.model,
            "topology": self.topology,
            "mesh": self.layout,
            "devices": self.num_devices,
            "batch_size": self.batch_size,
            "steps": [self._step(*each) for each in self.rows()],
            "recipe": {"epochs": self.epochs, "steps": self.total_steps},
        }
        if self.chip:
            found["chip"] = self.chip._asdict()
            found["recipe"] |= {
                "hours": self.hours,
                "chip_hours": self.hours * self.num_devices,
            }
        if self.too_large:
            found["largest_batch"] = {"fits": self.batch_size, "too_large": self.too_large}
        return found

    def _step(self, step, needed, zeros):
        memory = step.memory._asdict()
        memory["needed"] = step.memory.needed
        flops = {"products": step.products, "others": step.other_flops, "all": step.flops}
        found = {
            "image_size": step.image_size,
            "images": step.images,
            "memory_bytes": memory,
            "flops": flops | {"products_by_cost_command": needed, "products_with_zeros": zeros},
            "traffic_bytes": step.traffic,
            "collectives": [c._asdict() | {"sent": c.sent} for c in step.collectives],
        }
        if self.chip:
            times = roofline.times(step, self.chip)
            found["roofline_seconds"] = times._asdict() | {"step": times.step}
            found["bound"] = times.bound
            found["ceilings"] = roofline.ceilings(step, needed, self.chip, self.num_devices)
        return found

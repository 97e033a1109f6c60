"""The mesh, and where on it a run's arrays live: the one place that knows of devices and hosts."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from inception_jax.errors import UserError


def make_mesh(config: ConfigDict) -> Mesh:
    """Lays all devices out as `data` x `model`.

    Args:
      config: `config.mesh`; data=-1 takes the devices that model leaves.

    Raises:
      UserError: the product is not the number of devices.
    """
    devices = jax.device_count()
    data = devices // config.model if config.data == -1 else config.data
    if data * config.model != devices:
        raise UserError(
            f"config.mesh.data={config.data} and config.mesh.model={config.model} do not make"
            f" {devices} devices: their product must be the number of devices"
        )
    # Auto, since under jax.make_mesh's default, Explicit, dropout and the reshape of gradient
    # accumulation would need sharding annotations inside models.
    return jax.make_mesh((data, config.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device: parameters, optimiser state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over `data`: everything in a batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(name: str, batch_size: int, parts: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets the same whole number of images in each part."""
    shares = mesh.shape["data"] * parts
    if batch_size % shares:
        raise UserError(
            f"config.{name}={batch_size} is not divisible by {mesh.shape['data']} devices"
            f" x {parts} accumulation: take {max(batch_size // shares, 1) * shares}, or another"
            f" multiple of {shares}"
        )


def local_rows(batch_size: int) -> slice:
    """The rows of each global batch that this process reads: one contiguous share per process."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def place_ahead(batches: Iterable[dict[str, Any]], place: Callable) -> Iterator[dict[str, Any]]:
    """Yields each batch placed, with the next one already on its way to the devices.

    Args:
      batches: on the host.
      place: what to do with each.
    """
    ahead: collections.deque = collections.deque()
    for batch in batches:
        ahead.append(place(batch))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, split over `data`, of the rows that each process has read."""
    sharding = over_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }

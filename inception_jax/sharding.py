"""The mesh, and where on it a run's arrays live: the one place that knows of devices and hosts.

The mesh has three axes:
  slice  groups of devices between which the network is slow: slices of TPUs, hosts of GPUs
  data   devices of a group, each with its share of the batch and, in fully sharded runs, of the
         state
  model  devices that share the fully connected layers (SPLIT) as well

The batch is split over all of them, so every convolution is computed once (Krizhevsky 2014,
arXiv:1404.5997: data parallel convolutions, model parallel layers behind them). Networks know
nothing of this: `Placed` stands around them.
"""

import collections
import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from inception_jax.errors import UserError
from inception_jax.models import layers
from inception_jax.names import name_of

AXES = ("slice", "data", "model")
# Fully connected layers that are split over `model`, and by which axis of their kernel: 1, each
# device computes some of the outputs; 0, it takes some of the inputs, and the devices' sums are
# added up. A pair of 1 and 0 moves nothing in between (Shoeybi et al. 2019, section 3).
SPLIT = (
    (r"fc6|loss[12]/fc", 1),
    (r"fc7|fc8|loss[123]/classifier", 0),
)


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays devices out as `slice` x `data` x `model`.

    Args:
      config: `config.mesh`; data or model may be -1, which takes the devices that the others leave,
        slices=-1 the groups that the devices say they are in.
      devices: all that there are, if None.

    Raises:
      UserError: the product is not the number of devices.
    """
    devices = sorted(devices or jax.devices(), key=lambda d: (_slice_of(d), d.process_index, d.id))
    slices = config.slices
    if slices == -1:
        slices = len({_slice_of(device) for device in devices})
    sizes = {"slices": slices, "data": config.data, "model": config.model}
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: len(devices) // known if n == -1 else n for name, n in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        given = [f"config.mesh.{name}={config[name]}" for name in sizes if config[name] != -1]
        rule = "be" if len(given) == len(sizes) else "divide"
        raise UserError(
            f"{', '.join(given) or 'config.mesh'} cannot lay out {len(devices)} devices"
            + (f" in {slices} slices" if slices > 1 else "")
            + f": the product has to {rule} their number"
        )
    each = sizes["data"], sizes["model"]
    groups = np.split(np.array(devices), slices)
    laid_out = [mesh_utils.create_device_mesh(each, group.tolist()) for group in groups]
    # Auto, since under Explicit dropout and the reshape of gradient accumulation would need
    # sharding annotations inside models.
    return Mesh(np.stack(laid_out), AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device: metrics, and parameters where nothing shares them."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices: everything in a batch."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def told(state: Any, mesh: Mesh) -> str:
    """Says in a line how a state of ShapeDtypeStructs with shardings lies on a mesh."""
    leaves = jax.tree.leaves(state)
    whole = sum(x.size * x.dtype.itemsize for x in leaves)
    own = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    layout = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return (
        f"{mesh.size} devices, {layout}; parameters and all that is kept with them:"
        f" {whole / 1e6:,.1f} MB, {own / 1e6:,.1f} MB on each"
    )


def of_state(tree: Any, mesh: Mesh, config: ConfigDict) -> Any:
    """Where each array of a state lies; the optimiser's and averages beside their parameters.

    Layers of SPLIT are split over `model`. With fully_sharded the longest axis that `data` divides
    is split over it; what has none (a step's number, small biases) is whole on every device. Slices
    have the same each, so that parameters are never gathered over the slow network.

    Args:
      tree: of arrays or ShapeDtypeStructs, named as in the run's state or in its variables.
      mesh: from make_mesh.
      config: `config.mesh`.

    Returns:
      A tree of NamedShardings.

    Raises:
      UserError: `model` does not divide a layer of SPLIT.
    """

    def leaf(path, array):
        spec = _split(name_of(path), array.shape, mesh)
        if config.fully_sharded:
            parts = mesh.shape["data"]
            free = [i for i, size in enumerate(array.shape) if not spec[i] and size % parts == 0]
            if free:
                spec[max(free, key=lambda i: (array.shape[i], i))] = "data"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(leaf, tree)


class Placed:
    """A network on a mesh: `apply` is the network's own, for variables that lie as of_state says.

    Parameters that are split over `data` are gathered before they are used, each once in a step;
    their gradients come back split, summed over the devices on the way.
    """

    def __init__(self, model, variables: Any, mesh: Mesh, config: ConfigDict):
        """Wraps a network.

        Args:
          model: a linen module.
          variables: its params and batch_stats, trees of arrays or ShapeDtypeStructs.
          mesh: from make_mesh.
          config: `config.mesh`.

        Raises:
          UserError: `model` does not divide a layer of SPLIT.
        """
        self._model, self._mesh = model, mesh
        self._gather = config.fully_sharded and mesh.shape["data"] > 1
        self._stored = of_state(variables, mesh, config)

    def apply(self, variables: dict[str, Any], images_BHWC: jax.Array, **kwargs):
        """Applies the network; arguments and results are those of linen's Module.apply."""
        if self._gather:
            variables = {
                name: jax.tree.map(_gather, tree, self._stored[name])
                for name, tree in variables.items()
            }
        with self._placing():
            return self._model.apply(variables, images_BHWC, **kwargs)

    def _placing(self):
        if self._mesh.shape["model"] == 1:
            return contextlib.nullcontext()

        def place(name, x_BF, output):
            axis = _axis(name)
            if axis is None:
                return x_BF
            together = PartitionSpec(("slice", "data"))
            match axis, output:
                case (1, False):
                    spec = together
                case (1, True) | (0, False):
                    spec = PartitionSpec(*together, "model")
                case (0, True):
                    spec = PartitionSpec(self._mesh.axis_names)
            return jax.lax.with_sharding_constraint(x_BF, NamedSharding(self._mesh, spec))

        return layers.placing(place)


def _gather(array, stored):
    """Returns the array whole on every device of `data`; its gradient lies as the array does."""
    spec = PartitionSpec(*(None if axis == "data" else axis for axis in stored.spec))
    whole = NamedSharding(stored.mesh, spec)
    gather = jax.custom_vjp(lambda array: jax.lax.with_sharding_constraint(array, whole))
    gather.defvjp(
        lambda array: (jax.lax.with_sharding_constraint(array, whole), None),
        lambda _, gradient: (jax.lax.with_sharding_constraint(gradient, stored),),
    )
    return gather(array)


def check_batch(name: str, batch_size: int, parts: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets the same whole number of images in each part."""
    shares = mesh.size * parts
    if batch_size % shares:
        raise UserError(
            f"config.{name}={batch_size} is not divisible by {mesh.size} devices"
            f" x {parts} accumulation: take {max(batch_size // shares, 1) * shares}, or another"
            f" multiple of {shares}"
        )


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows of each global batch that this process's devices have, and so it reads, in order."""
    own = [device.process_index == jax.process_index() for device in mesh.devices.flat]
    return np.arange(batch_size).reshape(mesh.size, -1)[own].ravel()


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
    """Makes global arrays, split over all devices, of the rows that each process has read."""
    sharding = over_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def _slice_of(device):
    return getattr(device, "slice_index", None) or 0  # one of a single slice may have none


def _axis(layer):
    """The axis of a layer's kernel that is split over `model`, or None."""
    for pattern, axis in SPLIT:
        if re.fullmatch(rf"(?:.*/)?(?:{pattern})", layer):
            return axis
    return None


def _split(name, shape, mesh):
    """For each axis of an array, `model` if it is split over that, else None."""
    spec: list[str | None] = [None] * len(shape)
    layer, _, kind = name.rpartition("/")
    axis = _axis(layer)
    parts = mesh.shape["model"]
    if parts == 1 or axis is None or (kind == "bias" and axis == 0):
        return spec
    at = axis if kind == "kernel" else 0
    if shape[at] % parts:
        raise UserError(
            f"config.mesh.model={parts} does not divide the {shape[at]}"
            f" {'outputs' if axis else 'inputs'} of {layer}: take a divisor of them"
        )
    spec[at] = "model"
    return spec

"""Devices to compile for: those of a slice of TPUs that is not here, or virtual ones of this CPU.

`prepare` comes before jax is imported, `devices` after.
"""

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.plan.chips import CHIPS

# Beside the code, so that jax does not take this machine for one with TPUs.
FOLDER = Path(__file__).resolve().parents[2] / ".libtpu"
# A compiler without chips: it asks no metadata server who it is, and takes no lock on the machine.
_WITHOUT_CHIPS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def parse(topology: str) -> tuple[str, int | str]:
    """Reads --topology.

    Returns:
      ("cpu", number of devices), or a generation of TPUs and the slice's shape.

    Raises:
      UserError: it is none that is known.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu" and shape.isdecimal() and int(shape):
        return kind, int(shape)
    if kind == "cpu":
        raise UserError(f"--topology={topology} is unknown: write cpu:N, N being 1 or more")
    if kind not in CHIPS:
        raise UserError(
            f"--topology={topology} is unknown: take one of {_listed(CHIPS)}, or cpu:N for N"
            " virtual devices"
        )
    if shape not in CHIPS[kind].slices:
        raise UserError(f"--topology={topology} is unknown: take one of {_listed([kind])}")
    return kind, shape


def prepare(topology: str) -> None:
    """Sets the environment that jax has to find when it is imported.

    Raises:
      UserError: the TPU compiler is not installed.
    """
    kind, shape = parse(topology)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if kind == "cpu":
        given = os.environ.get("XLA_FLAGS", "")
        count = f"--xla_force_host_platform_device_count={shape}"
        os.environ["XLA_FLAGS"] = f"{given} {count}".strip()
        return
    os.environ.update(_WITHOUT_CHIPS)
    given = os.environ.get("TPU_LIBRARY_PATH")
    if not given and importlib.util.find_spec("libtpu"):
        return
    library = Path(given or FOLDER / "libtpu" / "libtpu.so")
    if not library.exists():
        at = f"TPU_LIBRARY_PATH={given}" if given else str(FOLDER)
        raise UserError(f"--topology={topology}: the TPU compiler is not at {at}: {_install()}")
    os.environ["TPU_LIBRARY_PATH"] = str(library)


def requirement() -> str:
    """The TPU compiler that belongs to this version of jax, as pip takes it."""
    asked = importlib.metadata.requires("jax") or []
    return next(r.partition(";")[0].strip() for r in asked if r.startswith("libtpu"))


def devices(topology: str, slices: int) -> list[Any]:
    """The devices, in as many slices of TPUs.

    Raises:
      UserError: the compiler does not know them.
    """
    import jax
    from jax.experimental import topologies

    kind, shape = parse(topology)
    if kind == "cpu":
        return jax.devices()
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)  # hosts have four else
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # as Cloud TPU has it; v5p is so by itself
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--topology={topology}: the TPU compiler cannot be used"
            f" ({str(error).splitlines()[0]}): {_install()}"
        ) from None
    return found.devices


def _install():
    return (
        f"type make libtpu, or pip install --no-deps --upgrade --target {FOLDER} '{requirement()}'"
    )


def _listed(kinds):
    return ", ".join(f"{kind}:{'|'.join(CHIPS[kind].slices)}" for kind in kinds)

"""The processes that make up a run, and this one's place among them.

On a pod each host runs one process. A process that finds itself one of several becomes a supervisor
(supervisor.py) and starts a worker (worker.py), itself once more, which does the work. So whatever
happens to a worker, or to another host, the supervisor is there to end it and to say why.
"""

import os
import warnings
from typing import NamedTuple

from inception_jax.errors import UserError

FLAGS_HELP = """\
  --coordinator_address=HOST:PORT, --num_processes=N, --process_id=I
                            this is process I, from 0, of N, the first of which is at HOST; PORT and
                            the one below it have to be free there. Cloud TPU, GKE, Slurm and Open
                            MPI need none of the three; --num_processes=1 alone keeps to this one
"""


_PORTS = 2**16 - 2**12  # from there on are those of Slurm jobs, as jax has it


class Cluster(NamedTuple):
    """A place among several processes."""

    address: str  # of process 0, HOST:PORT
    count: int
    index: int
    devices: list[int] | None = None  # of those that the host has; None: all


def find(address: str | None, count: int | None, index: int | None, timeout: float):
    """Finds out which of several processes this is, from its arguments or from what runs it.

    Args:
      address, count, index: as given by the user; None: not given.
      timeout: in seconds, to wait for the name of process 0's host to be known.

    Returns:
      A Cluster, or None where there is one process only.

    Raises:
      UserError: only some are given, they do not fit together, or nothing can be found out.
    """
    given = (address, count, index)
    if given == (None, None, None):
        found = _detect(timeout)
    elif given == (None, 1, None):
        return None
    elif None in given:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id belong together: give all"
            " three, or none where Cloud TPU, GKE, Slurm or Open MPI tell them"
        )
    else:
        found = Cluster(*given)
    if found is None:
        return None
    host, _, port = found.address.rpartition(":")
    if not host or not port.isdecimal() or not 1 < int(port) < 2**16:
        raise UserError(
            f"--coordinator_address={found.address}: it must be HOST:PORT, of process 0"
        )
    if not 0 <= found.index < found.count:
        raise UserError(
            f"--process_id={found.index} of --num_processes={found.count}: it must be from 0 to"
            f" {max(found.count - 1, 0)}"
        )
    return found if found.count > 1 else None


def _detect(timeout):
    """What jax would find out by itself, before it is too late to watch over it."""
    from jax._src import clusters  # it has no public name; jax.distributed.initialize uses it

    with warnings.catch_warnings(action="ignore"):  # Kubernetes without its package
        try:
            address, count, index, devices = (
                clusters.ClusterEnv.auto_detect_unset_distributed_params(
                    None, None, None, None, None, int(timeout)
                )
            )
        except Exception as error:  # whatever requests, kubernetes or mpi4py raise
            raise UserError(
                f"could not find out which process this is ({' '.join(str(error).split())}): give"
                " --coordinator_address, --num_processes and --process_id, or --num_processes=1 if"
                " it is the only one"
            ) from None
    if None in (address, count, index):
        return None
    if "SLURM_JOB_ID" in os.environ:  # jax leaves one port a job, and two are needed
        port = _PORTS + 1 + 2 * (int(os.environ["SLURM_JOB_ID"]) % ((2**16 - _PORTS) // 2))
        address = f"{address.rpartition(':')[0]}:{port}"
    if str(count) == os.environ.get("SLURM_STEP_NUM_NODES"):
        devices = None  # one a node has all that is there; jax would take the first GPU only
    return Cluster(address, count, index, devices and list(devices))

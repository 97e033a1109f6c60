"""The process that works: its part of the talk with its supervisor, and its place in jax."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from inception_jax.cluster import Cluster
from inception_jax.errors import UserError

STREAMS = ("stdout", "stderr")
WORKER = "INCEPTION_JAX_WORKER"  # in the environment of a worker: what its supervisor tells it


class Worker:
    """The process that works, as its supervisor knows it."""

    def __init__(self, told: dict[str, Any]):
        self.cluster = Cluster(*told["cluster"])
        self._dead = told["dead"]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until jax takes it
        # What native code prints, as it connects and as it aborts, the supervisor keeps; what we
        # say, and Python's tracebacks, the user sees.
        for name in STREAMS:
            setattr(sys, name, open(told[name], "w", buffering=1))  # noqa: SIM115
        self._supervisor = socket.socket(fileno=told["control"])
        threading.Thread(target=self._die_with_it, daemon=True).start()

    def join(self) -> None:
        """Becomes one of the processes that jax knows; call it before jax is used.

        From then on SIGTERM means that this host is to go: jax tells all processes, and each finds
        out by hosts.Preemption.
        """
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            *self.cluster,
            cluster_detection_method="deactivate",  # that has been done
            # The supervisors know first that a process is dead; if jax knew, it would abort.
            heartbeat_timeout_seconds=round(10 * self._dead),
        )
        self._tell("joined", True)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Tells the supervisor how the work has failed, if it has, and ends this process then."""
        import jax

        try:
            yield
            return
        except UserError as error:
            self._tell("error", str(error))
        except jax.errors.JaxRuntimeError as error:  # most often another process is gone
            os.write(2, traceback.format_exc().encode())
            self._tell("lost", " ".join(str(error).split())[:300])
        except Exception as error:
            traceback.print_exc()
            self._tell("error", f"{type(error).__name__}: {error}".strip(": "))
        sys.stderr.flush()
        os._exit(1)  # at a usual exit jax would wait for the others

    def _tell(self, what, value):
        with contextlib.suppress(OSError):
            self._supervisor.sendall(json.dumps({what: value}).encode() + b"\n")

    def _die_with_it(self):
        with contextlib.suppress(OSError):
            while self._supervisor.recv(1024):
                pass
        os._exit(1)


def started_as_worker() -> Worker | None:
    """This process as a worker, or None if nobody has started it as one."""
    told = os.environ.pop(WORKER, None)
    return Worker(json.loads(told)) if told else None

"""What the processes of a run tell each other while they work: JSON values, and when to stop.

Every call is one that all processes make, in the same order.
"""

import itertools
import json
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from inception_jax.errors import UserError
from inception_jax.workdir import writing

_A_DAY = 24 * 3600 * 1000  # milliseconds; that a process is dead its supervisor knows much sooner
_meetings = itertools.count()


def meet() -> None:
    """Waits until all processes are here, with the host alone.

    Devices may be less patient: gloo, by which CPUs talk, gives up when a process comes 30 seconds
    late to an operation that is their first together.
    """
    multihost.get_barrier_sync_fn()(key=f"meeting {next(_meetings)}", timeout_ms=_A_DAY)


def compiled(function: Any, *arguments: Any) -> Any:
    """Returns a jitted function, compiled for arguments or their shapes; all have it by then."""
    executable = function.lower(*arguments).compile()
    meet()
    return executable


def first() -> bool:
    """Whether this is process 0, which alone writes logs and small files."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns the JSON values of all processes, in their order."""
    if jax.process_count() == 1:
        return [value]
    meet()
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]


def of_first(value: Any) -> Any:
    """Returns process 0's JSON value; that of the others does not matter."""
    return gather(value if first() else None)[0]


def check_alike(workdir: Path, facts: dict[str, Any]) -> None:
    """Compares what the processes find in their folders.

    Args:
      workdir: held by process 0.
      facts: JSON values by name, of the images.

    Raises:
      UserError: two processes have other workdirs or other images.
    """
    if jax.process_count() == 1:
        return
    mark = workdir / ".shared"
    if first():
        with writing(mark):
            mark.write_text(uuid.uuid4().hex)
    gather("written")
    found = gather([mark.read_text() if mark.exists() else None, facts])
    if first():
        mark.unlink()
    for number, (shared, others) in enumerate(found):
        if shared != found[0][0]:
            raise UserError(
                f"--workdir={workdir} is another folder for process {number} than for process 0: it"
                " has to be on a disk that all hosts share"
            )
        for name, value in found[0][1].items():
            if others.get(name) != value:
                raise UserError(
                    f"process {number} has {name}={others.get(name)} in config.data.dir, process 0"
                    f" {value}: all hosts need the same images"
                )


class Preemption:
    """Whether a host is to go, so that all have to stop; they agree on the moment.

    jax takes SIGTERM in each process, tells the others and chooses a step that none has passed.
    """

    def __init__(self):
        self._asked = 0
        self._stop = None

    def __call__(self) -> str | None:
        """Returns "SIGTERM" from the moment on that all have agreed on, else None."""
        if not self._stop:
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self._stop = "SIGTERM"
        return self._stop

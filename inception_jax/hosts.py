"""What the processes of a run tell each other while they work: JSON values, and when to stop.

Every call is one that all processes make, in the same order.
"""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def first() -> bool:
    """Whether this is process 0, which alone writes logs and small files."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Returns the JSON values of all processes, in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]


def of_first(value: Any) -> Any:
    """Returns process 0's JSON value; that of the others does not matter."""
    return gather(value if first() else None)[0]


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

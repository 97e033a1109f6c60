"""The folder of one run: made, checked and held, so that two runs never write to it at once."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Makes the folder and locks it; the lock ends with the process, however that ends.

    Raises:
      UserError: the folder cannot be made or written, or another run has it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"cannot write to workdir {workdir}: {error.strerror}; take another --workdir"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to {workdir}: stop it, or take another --workdir"
            ) from None
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is, at any moment, either the old or the new one in full."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

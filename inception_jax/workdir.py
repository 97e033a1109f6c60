"""The folder of one run: made, checked and held, so that two runs never write to it at once."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inception_jax import retry
from inception_jax.errors import UserError


@contextlib.contextmanager
def hold(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Makes the folder and locks it; the lock ends with the process, however that ends.

    Args:
      flag: that chooses the folder, for messages.

    Raises:
      UserError: the folder cannot be made or written, or another run has it.
    """
    try:
        retry.again(lambda: workdir.mkdir(parents=True, exist_ok=True))
        lock = retry.again(lambda: open(workdir / ".lock", "w"))  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"cannot write to {flag.lstrip('-')} {workdir}: {error.strerror}; take another {flag}"
        ) from None

    def take():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to {workdir}: stop it, or take another {flag}"
            ) from None

    with lock:
        try:
            retry.again(take)
        except OSError as error:
            raise UserError(f"cannot lock {flag.lstrip('-')} {workdir}: {error.strerror}") from None
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"could not write {path}: {error.strerror}; make room or mend it, then start again with"
            " the same line"
        ) from None


def aside(path: Path) -> Path:
    """Renames a damaged file or folder, never over another, and returns its new path."""
    number = 1
    while (new := path.with_name(f"{path.name}.damaged{number}")).exists():
        number += 1
    retry.rename(path, new)
    return new


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is, at any moment, either the old or the new one in full."""
    temporary = path.with_name(f".{path.name}.new")

    def attempt():
        with open(temporary, "w") as file:
            file.write(json.dumps(value, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    with writing(path):
        retry.again(attempt)

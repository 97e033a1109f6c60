"""Storage that fails for a while, as networks and servers do: which errors pass; trying again."""

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from inception_jax.errors import UserError

T = TypeVar("T")

PAUSES = (1, 2, 4, 8)  # seconds between attempts
# Not every system has all of them. A full disk, a file that is missing or may not be written and
# the like stay so until somebody mends it.
PASSING = {
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EBUSY"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN"),
    )
    if hasattr(errno, name)
}


def passes(error: Exception) -> bool:
    """Whether it may be over soon. tensorstore's errors have the system's words in their text."""
    if isinstance(error, OSError):
        return error.errno in PASSING
    return reason(error) in map(os.strerror, PASSING)


def reason(error: Exception) -> str:
    """The system's reason in a few words; tensorstore puts it before its codes."""
    told = re.search(r": ([^:[]+) \[(?:os_error_code|tensorstore_spec)", str(error))
    return told[1] if told else getattr(error, "strerror", None) or str(error)


def again(action: Callable[[], T]) -> T:
    """Returns what action does, as soon as it does; it has to bear being repeated.

    Raises:
      Exception: the first that does not pass, or the last.
    """
    for pause in PAUSES:
        try:
            return action()
        except (OSError, ValueError) as error:
            if not passes(error):
                raise
        time.sleep(pause)
    return action()


def reading(path: Path, action: Callable[[], T]) -> T:
    """Returns what action reads.

    Raises:
      UserError: it failed again and again.
    """
    try:
        return again(action)
    except (OSError, ValueError) as error:
        if not passes(error):
            raise
        raise UserError(
            f"could not read {path}: {reason(error)}; mend it, then start again with the same line"
        ) from None


def rename(path: Path, new: Path) -> None:
    """Renames a file or folder; a server may have done so and then failed to tell."""

    def attempt():
        try:
            path.rename(new)
        except FileNotFoundError:
            if not new.exists():
                raise

    again(attempt)

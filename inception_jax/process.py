"""What every command has in common: --help, errors as one line, and libraries kept quiet."""

import functools
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable

import absl.logging

from inception_jax.errors import UserError

STARTED = time.monotonic()  # as near to the start of the process as is simple


def command(doc: str, flags: str) -> Callable:
    """Decorates main(argv) so that it returns an exit code, prints --help and reports UserErrors.

    What main returns is the exit code; None is 0.

    Args:
      doc: the module's docstring, which --help prints.
      flags: a line or more for each flag.
    """

    def decorate(main: Callable[[list[str]], int | None]) -> Callable[[list[str]], int]:
        @functools.wraps(main)
        def run(argv: list[str]) -> int:
            if any(arg in ("--help", "-help", "-h", "--helpfull") for arg in argv[1:]):
                print(f"{doc.strip()}\n\nFlags:\n{flags}", end="")
                return 0
            try:
                return main(argv) or 0
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            except KeyboardInterrupt as stop:
                print(stop if stop.args else "stopped", file=sys.stderr)
                return 130

        return run

    return decorate


def quiet() -> None:
    """Keeps libraries' messages off the terminal; call it before importing jax or TensorFlow."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    # TensorFlow looks for a package that is not installed, in place of importing Keras for seconds
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ["GRPC_VERBOSITY"] = "NONE"
    absl.logging.set_verbosity(absl.logging.FATAL)
    # asyncio repeats what a failed save left behind, urllib3 every retry, Pillow what it does not
    # like in a file; the failure itself raises
    for name in ("asyncio", "urllib3", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # of an entry that is half written, or no longer there; then jax compiles
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation cache entry")
    sys.unraisablehook = _unraisable


def _unraisable(args):
    """Says nothing of tensorstore's writes that end after their save has failed."""
    if not (isinstance(args.exc_value, RuntimeError) and "loop is closed" in str(args.exc_value)):
        sys.__unraisablehook__(args)

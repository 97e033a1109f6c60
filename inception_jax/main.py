"""Trains and evaluates what a config describes, and goes on where the last run stopped.

python -m inception_jax.main --config=configs/digits.py
python -m inception_jax.main --config=configs/digits.py --config.seed=1 --workdir=runs/seed1
"""

import logging
import os
import shlex
import signal
import sys
from pathlib import Path

import absl.logging
from absl import flags

from inception_jax import config as config_lib
from inception_jax import validate
from inception_jax.errors import UserError

FLAGS_HELP = """\
  --workdir=DIR             checkpoints, metrics and results; runs/CONFIG if not given. A run that
                            was stopped there, in whatever way, goes on.
  --help                    this
"""


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    if any(arg in ("--help", "-help", "-h", "--helpfull") for arg in argv[1:]):
        config_lib.print_help(__doc__, FLAGS_HELP)
        return 0
    try:
        values, config = config_lib.parse(
            argv, lambda f: flags.DEFINE_string("workdir", None, "", flag_values=f)
        )
        validate.check(config)
        return _run(config, Path(values.workdir or _default_workdir(argv)), argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(config, workdir, argv):
    signals = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: _on_signal(n, signals))
    _quiet()

    from inception_jax import train
    from inception_jax.console import Console

    console = Console()
    step, results = train.train(config, workdir, lambda: signals[0] if signals else None, console)
    if results is None:
        again = shlex.join(["python", "-m", "inception_jax.main", *argv[1:]])
        console.line(f"stopped by {signals[0]} at step {step}, which is saved; go on with: {again}")
    return 0


def _on_signal(number, signals):
    signals.append(signal.Signals(number).name)
    for each in (signal.SIGTERM, signal.SIGINT):  # a second signal ends it at once
        signal.signal(each, signal.SIG_DFL)


def _default_workdir(argv):
    path, _, argument = config_lib.source_of(argv).partition(":")
    return os.path.join("runs", "-".join(filter(None, [Path(path).stem, argument])))


def _quiet():
    """Keeps libraries' start-up messages off the terminal; errors still raise."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    os.environ["GRPC_VERBOSITY"] = "NONE"
    absl.logging.set_verbosity(absl.logging.FATAL)
    # What a failed save leaves behind in asyncio and tensorstore; the failure itself is raised.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

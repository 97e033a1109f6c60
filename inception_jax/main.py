"""Trains and evaluates what a config describes, and goes on where the last run stopped.

python -m inception_jax.main --config=configs/digits.py
python -m inception_jax.main --config=configs/digits.py --config.seed=1 --workdir=runs/seed1
"""

import os
import shlex
import signal
import sys
from pathlib import Path

from absl import flags

from inception_jax import config as config_lib
from inception_jax import init_from, process, validate

FLAGS_HELP = """\
  --workdir=DIR             checkpoints, metrics and results; runs/CONFIG if not given. A run that
                            was stopped there, in whatever way, goes on.
"""


@process.command(__doc__, config_lib.HELP + FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    values, config = config_lib.parse(
        argv, lambda f: flags.DEFINE_string("workdir", None, "", flag_values=f)
    )
    workdir = Path(values.workdir or _default_workdir(argv)).expanduser()
    taken = init_from.adopt(config, config_lib.given(argv), workdir)
    validate.check(config)

    signals = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: _on_signal(n, signals))
    process.quiet()

    from inception_jax import train
    from inception_jax.console import Console

    console = Console()
    if taken:
        console.line(taken)
    step, results = train.train(config, workdir, lambda: signals[0] if signals else None, console)
    if results is None:
        where = f"at step {step}, which is saved" if step else "before the first step"
        again = shlex.join([_interpreter(), "-m", "inception_jax.main", *argv[1:]])
        console.line(f"stopped by {signals[0]} {where}; go on with: {again}")


def _on_signal(number, signals):
    signals.append(signal.Signals(number).name)
    print(f"{signals[0]}: stopping after this step; a second signal stops at once", flush=True)
    for each in (signal.SIGTERM, signal.SIGINT):  # a second signal ends it at once
        signal.signal(each, signal.SIG_DFL)


def _interpreter():
    """This Python, as a person would type it."""
    path, here = Path(sys.executable), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _default_workdir(argv):
    path, _, argument = config_lib.source_of(argv).partition(":")
    return os.path.join("runs", "-".join(filter(None, [Path(path).stem, argument])))


if __name__ == "__main__":
    sys.exit(main(sys.argv))

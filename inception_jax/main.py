"""Trains and evaluates what a config describes, and goes on where the last run stopped.

python -m inception_jax.main --config=configs/digits.py
python -m inception_jax.main --config=configs/digits.py --config.seed=1 --workdir=runs/seed1
"""

import contextlib
import importlib.metadata
import os
import shlex
import signal
import sys
from pathlib import Path

from absl import flags

from inception_jax import cluster, init_from, process, validate
from inception_jax import config as config_lib
from inception_jax.cluster.worker import started_as_worker

FLAGS_HELP = """\
  --workdir=DIR             checkpoints, metrics and results; runs/CONFIG if not given. A run that
                            was stopped there, in whatever way, goes on. On several hosts all need
                            the same folder, on a disk that they share
"""


@process.command(__doc__, config_lib.HELP + FLAGS_HELP + cluster.FLAGS_HELP)
def main(argv: list[str]) -> int | None:
    """Runs the command line."""
    worker = started_as_worker()
    with worker.reporting() if worker else contextlib.nullcontext():
        values, config = config_lib.parse(argv, _define)
        workdir = Path(values.workdir or _default_workdir(argv)).expanduser()
        taken = init_from.adopt(config, config_lib.given(argv), workdir)
        validate.check(config)
        process.quiet()
        if worker:
            worker.join()
        else:
            place = cluster.find(
                *(values.coordinator_address, values.num_processes, values.process_id),
                timeout=config.cluster.start_timeout,
            )
            if place:
                return _supervise(place, config, workdir)
        _work(argv, config, workdir, taken, several=bool(worker))
        return 0


def _define(values):
    for name in ("workdir", "coordinator_address"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    for name in ("num_processes", "process_id"):
        flags.DEFINE_integer(name, None, "", flag_values=values)


def _supervise(place, config, workdir):
    from inception_jax import __version__
    from inception_jax.cluster import meeting

    fields = {f"config.{name}": value for name, value in config_lib.flatten(config)}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    about = fields | {"--workdir": str(workdir), "inception_jax": __version__} | versions
    role = meeting.First if place.index == 0 else meeting.Other
    timeouts = config.cluster.start_timeout, config.cluster.dead_timeout
    return role(place, about, *timeouts).supervise()


def _work(argv, config, workdir, taken, several):
    stop = None if several else _Signals()

    from inception_jax import hosts, train
    from inception_jax.console import Console

    stop = stop or hosts.Preemption()
    console = Console(quiet=several and not hosts.first())
    if taken:
        console.line(taken)
    step, results = train.train(config, workdir, stop, console)
    if results is None:
        where = f"at step {step}, which is saved" if step else "before the first step"
        again = shlex.join([_interpreter(), "-m", "inception_jax.main", *argv[1:]])
        if several:
            again = "the same lines as before, on as many hosts as there are then"
        console.line(f"stopped by {stop()} {where}; go on with: {again}")


class _Signals:
    """The first signal that has come, if any; a second one ends the process."""

    def __init__(self):
        self._name = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def __call__(self):
        return self._name

    def _on_signal(self, number, _):
        self._name = signal.Signals(number).name
        print(f"{self._name}: stopping after this step; a second signal stops at once", flush=True)
        for each in (signal.SIGTERM, signal.SIGINT):
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

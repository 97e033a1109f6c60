"""What all launchers have in common: the job's arguments, checked and passed on as they are."""

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from inception_jax import config as config_lib
from inception_jax import validate, workdir
from inception_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
HELP = (
    config_lib.HELP
    + """\
  --workdir=DIR             checkpoints, metrics and results; the run goes on from what is there
  --dry_run                 print what would run, and run nothing
"""
)
LATECOMERS = 1800  # seconds: hosts of a cloud come up minutes apart


class Job(NamedTuple):
    """One run of the main job.

    Attributes:
      flags: the values of the launcher's own.
      config: overrides applied.
      source: of the config, FILE[:ARGUMENT].
      workdir: as given, with ~ replaced.
      arguments: --config and overrides as given, each one argument, for inception_jax.main.
    """

    flags: flags.FlagValues
    config: ConfigDict
    source: str
    workdir: str
    arguments: list[str]

    def command(self, workdir: str | Path, python: str = "python") -> list[str]:
        """The main job's command line.

        Args:
          workdir: the folder by the name that it has where the job runs.
          python: the interpreter there.
        """
        return [python, "-m", "inception_jax.main", *self.arguments, f"--workdir={workdir}"]

    def for_latecomers(self) -> "Job":
        """The job, waiting for hosts as long as clouds need, unless its arguments say how long."""
        field = "cluster.start_timeout"
        if field in config_lib.given(["", *self.arguments]):
            return self
        return self._replace(arguments=[*self.arguments, f"--config.{field}={LATECOMERS}"])


def read(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None], needed: Sequence[str] = ()
) -> Job:
    """Reads a launcher's command line and checks the job's config before anything is started.

    Args:
      argv: the program's name and its arguments.
      define: adds the launcher's own flags.
      needed: those of them that have to be given.

    Raises:
      UserError: a mistake in the config, its overrides or the flags, or something is missing.
    """
    own: set[str] = set()

    def define_all(values):
        before = set(values)
        flags.DEFINE_string("workdir", "", "", flag_values=values)
        flags.DEFINE_boolean("dry_run", False, "", flag_values=values)
        define(values)
        own.update(set(values) - before)

    values, config = config_lib.parse(list(argv), define_all)
    validate.check(config)
    for name in ("workdir", *needed):
        if not values[name].value:
            raise UserError(f"no --{name} given; see --help")
    source = config_lib.source_of(list(argv))
    folder = os.path.expanduser(values.workdir)
    return Job(values, config, source, folder, _others(argv[1:], own, values))


def within(source: str) -> None:
    """Raises UserError unless a config file is part of the code, which is what is sent away."""
    path = Path(source.partition(":")[0])
    here, there = path.resolve(), (ROOT / path).resolve()
    if path.is_absolute() or here != there or not here.is_relative_to(ROOT):
        raise UserError(
            f"--config={source} stays here: only what is in {ROOT} is sent; put the file into"
            " configs/, and name it as in --config=configs/digits.py"
        )


def run(command: Sequence[str], **kwargs) -> subprocess.CompletedProcess:
    """Runs another program and returns when it has ended.

    Raises:
      UserError: it is not installed, or fails.
    """
    need(command[0])
    process = subprocess.run(command, check=False, text=True, **kwargs)
    if process.returncode:
        told = reason(process.stderr)
        raise UserError(
            f"{' '.join(command[:5])} ... ended with exit code {process.returncode}"
            + (f": {told}" if told else "")
        )
    return process


def reason(stderr: str | None) -> str:
    """The line of what a program printed that says why it failed: the first error, or the last."""
    lines = (stderr or "").strip().splitlines()
    return next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Waits for what an earlier launcher, which was killed, has left at work in a folder.

    Yields:
      A descriptor for the processes that are started: others wait as long as one of them has it.

    Raises:
      UserError: the folder cannot be made or written.
    """
    path = folder / ".launched"
    with workdir.writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")  # noqa: SIM115
    with lock:
        with workdir.writing(path):  # a disk may have no locks
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"a run is still at work in {folder}: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def need(program: str) -> None:
    """Raises UserError if a program is not installed."""
    if not shutil.which(program):
        raise UserError(f"{program} is not installed here, or not on the PATH; {_WHERE[program]}")


def shown(command: Sequence[str]) -> str:
    """A command as it can be pasted into a shell."""
    return shlex.join(map(str, command))


def file_shown(path: Path, text: str) -> str:
    """A file as a shell would write it."""
    return f"cat > {shlex.quote(str(path))} <<'END_OF_FILE'\n{text}END_OF_FILE"


def say(text: str) -> None:
    """Tells a person what happens."""
    print(text, file=sys.stderr, flush=True)


def _others(arguments, own, values):
    """The arguments that are not the launcher's own."""
    kept, rest = [], config_lib.join_values(["", *arguments])[1:]
    while rest:
        argument = rest.pop(0)
        name, equals, _ = argument.lstrip("-").partition("=")
        name = name if name in own else name.removeprefix("no")
        if name not in own:
            kept.append(argument)
        elif not equals and not values[name].boolean:
            rest.pop(0)  # its value
    return kept


_WHERE = {
    "gcloud": "it is part of the Google Cloud CLI, cloud.google.com/sdk",
    "kubectl": "it is told at kubernetes.io/docs/tasks/tools",
    "xpk": "pip install xpk",
    "sbatch": "call this on a login node of a Slurm cluster",
}

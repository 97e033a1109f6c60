"""Runs the main job again and again until it is finished, whatever ends it.

python -m launch.until_finished --workdir=DIR [--bucket=gs://BUCKET/FOLDER] -- COMMAND ...

On every host of a run, COMMAND being its main job. A run is finished when COMMAND ends with exit
code 0 and DIR/results.json is there. SIGTERM is passed on; the run then saves, and this ends with
exit code 143, so that whoever stopped it knows that it is to be started again. After ATTEMPTS ends
in a row without a new checkpoint it gives up, with exit code 3 and the reason in DIR/gave_up.txt.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from inception_jax import process
from inception_jax.errors import UserError
from launch.bucket import Mirror
from launch.job import say
from launch.processes import STOPPED, Processes

GAVE_UP = "gave_up.txt"  # for who watches from elsewhere
HOPELESS = 3  # the exit code then, which nothing else has
ATTEMPTS = 3  # in a row that bring no checkpoint; then the mistake is the user's
FLAGS_HELP = """\
  --workdir=DIR             that COMMAND has as well
  --bucket=gs://BUCKET/FOLDER
                            keeps a copy of DIR there, and fetches it where it is ahead
  --seen_within=SECONDS     that a file may take to be seen by other hosts; 60 if not given
"""


@process.command(__doc__, FLAGS_HELP)
def main(argv: list[str]) -> int:
    """Runs the command line."""
    if "--" not in argv or argv[-1] == "--":
        raise UserError("no command given: write it behind --, as --help shows")
    at = argv.index("--")
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--bucket", default="")
    parser.add_argument("--seen_within", type=float, default=60)
    try:
        own, unknown = parser.parse_known_args(argv[1:at])
    except argparse.ArgumentError as error:
        raise UserError(f"{error}; see --help") from None
    if unknown:
        raise UserError(f"unknown flag {unknown[0]}; see --help")
    if not own.workdir:
        raise UserError("no --workdir given; see --help")
    workdir = own.workdir.expanduser()
    with Mirror(workdir, own.bucket) if own.bucket else contextlib.nullcontext():
        return until_finished(lambda: [argv[at + 1 :]], workdir, own.seen_within)


def until_finished(
    commands: Callable[[], list[list[str]]],
    workdir: Path,
    seen_within: float,
    keep: Sequence[int] = (),
) -> int:
    """Runs commands side by side, again and again, until the run in a folder is finished.

    Args:
      commands: says what to run the next time.
      workdir: of the run.
      seen_within: seconds that results.json may take to be seen here.
      keep: descriptors that the commands get.

    Returns:
      0, STOPPED after SIGTERM or SIGINT, or HOPELESS when it ended ATTEMPTS times without getting
      any further.
    """
    in_vain = 0
    (workdir / GAVE_UP).unlink(missing_ok=True)
    with Processes(keep) as processes:
        while True:
            before = _progress(workdir)
            codes = processes.run(commands())
            if not any(codes) and _appears(workdir / "results.json", seen_within, processes):
                return 0
            if processes.stopped:
                return STOPPED
            in_vain = in_vain + 1 if _progress(workdir) == before else 0
            told = f"ended with exit code {max(codes, key=abs)}" if any(codes) else "stopped"
            if in_vain == ATTEMPTS:
                why = f"{told}, {ATTEMPTS} times in a row without a new checkpoint"
                workdir.mkdir(parents=True, exist_ok=True)
                (workdir / GAVE_UP).write_text(f"{why}\n")
                say(f"error: the run in {workdir} {why}: see above for why")
                return HOPELESS
            say(f"the run in {workdir} {told}: it goes on")


def _progress(workdir):
    """What changes with each checkpoint."""
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in _checkpoints(workdir))
    return []


def _checkpoints(workdir) -> Iterator[Path]:
    return (entry for entry in (workdir / "checkpoints").iterdir() if entry.name.isdecimal())


def _appears(path, within, processes):
    """Whether a file is there, or comes to be seen in time."""
    end = time.monotonic() + within
    while not path.exists():
        if processes.stopped or time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv))

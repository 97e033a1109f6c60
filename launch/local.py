"""Runs the main job in one or several processes of this machine, until it is finished.

python -m launch.local --config=configs/digits.py --workdir=runs/digits
python -m launch.local --num_processes=4 --config=configs/digits.py --workdir=runs/four
"""

import contextlib
import socket
import sys
from pathlib import Path

from absl import flags

from inception_jax import process
from inception_jax.errors import UserError
from launch import bucket, job
from launch.until_finished import until_finished

FLAGS_HELP = """\
  --num_processes=N         which share the work, as hosts of a pod would, on CPUs; 1 if not given
  --bucket=gs://BUCKET/FOLDER
                            keeps a copy there, in FOLDER/DIR, and fetches it where it is ahead
"""


@process.command(__doc__, job.HELP + FLAGS_HELP)
def main(argv: list[str]) -> int | None:
    """Runs the command line."""
    asked = read(argv)
    count = asked.flags.num_processes
    to = bucket.folder(asked.flags.bucket, asked.workdir) if asked.flags.bucket else ""

    def commands():
        command = asked.command(asked.workdir, sys.executable)
        if count == 1:
            return [command]
        address = f"--coordinator_address=localhost:{_free_port()}"
        several = (address, f"--num_processes={count}")
        return [[*command, *several, f"--process_id={i}"] for i in range(count)]

    if asked.flags.dry_run:
        lines = [job.shown(command) for command in commands()]
        print(" &\n".join(lines) + ("\n" if count == 1 else " &\nwait\n"), end="")
        if to:
            print(job.shown(bucket.mirror(asked.workdir, to)))
        return None
    workdir = Path(asked.workdir)
    with (
        job.alone(workdir) as keep,
        bucket.Mirror(workdir, to) if to else contextlib.nullcontext(),
    ):
        return until_finished(commands, workdir, seen_within=0, keep=[keep])


def read(argv: list[str]) -> job.Job:
    """Reads the command line and checks it; raises a UserError."""
    asked = job.read(argv, _define)
    if asked.flags.num_processes < 1:
        raise UserError(f"--num_processes={asked.flags.num_processes}: it must be 1 or more")
    if asked.flags.bucket:
        bucket.check(asked.flags.bucket)
    return asked


def _define(values):
    flags.DEFINE_integer("num_processes", 1, "", flag_values=values)
    flags.DEFINE_string("bucket", "", "", flag_values=values)


def _free_port():
    """One with the next lower free as well, which the processes meet at."""
    while True:
        with socket.socket() as upper, socket.socket() as lower:
            upper.bind(("localhost", 0))
            port = upper.getsockname()[1]
            with contextlib.suppress(OSError):
                lower.bind(("localhost", port - 1))
                return port


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""A copy of a run's folder in a bucket of Cloud Storage, by gcloud."""

import os
import re
import subprocess
import threading
from pathlib import Path

from inception_jax.errors import UserError
from launch import job

SECONDS = 300  # between copies


def check(bucket: str) -> None:
    """Raises UserError unless this is gs://BUCKET or gs://BUCKET/FOLDER."""
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+(/.*)?", bucket):
        raise UserError(
            f"--bucket={bucket} is no bucket: write gs://BUCKET or gs://BUCKET/FOLDER, with the"
            " bucket's own name, of a-z, 0-9, -, _ and ."
        )


def folder(bucket: str, workdir: str) -> str:
    """Where a run's folder is copied to: by its whole path, so that runs may share a bucket."""
    path = os.path.normpath(workdir)
    return f"{bucket.rstrip('/')}/{(os.path.abspath(path) if path[0] == '.' else path).lstrip('/')}"


def copy(source: str | Path, target: str | Path) -> list[str]:
    """The command that copies what is new in a folder; either may be in a bucket."""
    return ["gcloud", "storage", "rsync", "--recursive", str(source), str(target)]


def mirror(workdir: str | Path, copied: str) -> list[str]:
    """The command that makes the copy of a run's folder equal to it."""
    return [*copy(workdir, copied), "--delete-unmatched-destination-objects"]


def told(verb: str, path: str) -> str:
    """What gcloud says of something in a bucket; nothing, if it is not there.

    Args:
      verb: cat or ls.
      path: gs://BUCKET/...

    Raises:
      UserError: whether it is there cannot be told.
    """
    command = ["gcloud", "storage", verb, path]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode and "matched no objects" not in process.stderr:
        raise UserError(f"cannot see what is at {path}: {job.reason(process.stderr)}")
    return process.stdout


class Mirror:
    """Fetches a run that has got further elsewhere, then copies it at intervals and at the end.

    A copy that fails is told and made up for by the next one: training does not wait for it.
    """

    def __init__(self, workdir: Path, copied: str):
        """Fetches the folder, if its copy is ahead.

        Args:
          workdir: of the run.
          copied: from folder.

        Raises:
          UserError: no bucket, or gcloud is not installed or does not get at it, or another run is
            there.
        """
        check(copied)
        job.need("gcloud")
        self._command = mirror(workdir, copied)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._copy_at_intervals, daemon=True)
        workdir.mkdir(parents=True, exist_ok=True)
        config, stored = workdir / "config.json", told("cat", f"{copied}/config.json")
        begun = config.exists()
        if begun and stored and config.read_text() != stored:
            raise UserError(
                f"{copied} is a copy of another run than {workdir}: take another --bucket, or"
                " another --workdir"
            )
        here = _newest(map(str, (workdir / "checkpoints").glob("*")))
        there = _newest(told("ls", f"{copied}/checkpoints/").splitlines())
        half_fetched = workdir / ".fetching"
        if stored and (not begun or there > here or half_fetched.exists()):
            half_fetched.touch()
            job.run(copy(copied, workdir), capture_output=True)
            half_fetched.unlink()
            job.say(f"fetched {workdir} from {copied}")

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _copy_at_intervals(self):
        while True:
            ended = self._ended.wait(SECONDS)
            try:
                job.run(self._command, capture_output=True)
            except UserError as error:
                job.say(f"not copied: {error}")
            if ended:
                return


def _newest(checkpoints):
    """The step of the newest of some paths, -1 if there is none."""
    names = (path.rstrip("/").rpartition("/")[2] for path in checkpoints)
    return max((int(name) for name in names if name.isdecimal()), default=-1)

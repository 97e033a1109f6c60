"""A copy of a run's folder in a bucket of Cloud Storage, by gcloud."""

import re
import subprocess
import threading
from pathlib import Path

from inception_jax.errors import UserError
from launch import job

SECONDS = 300  # between copies


def check(bucket: str) -> None:
    """Raises UserError unless this is gs://BUCKET or gs://BUCKET/FOLDER."""
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+(/.+)?", bucket):
        raise UserError(f"--bucket={bucket} is no bucket: write gs://BUCKET or gs://BUCKET/FOLDER")


def copy(source: str | Path, target: str | Path) -> list[str]:
    """The command that makes a folder equal to another; either may be in a bucket."""
    mirrored = ("--recursive", "--delete-unmatched-destination-objects")
    return ["gcloud", "storage", "rsync", *mirrored, str(source), str(target)]


class Mirror:
    """Fetches a folder that is not here yet, then copies it at intervals and at the end.

    A copy that fails is told and made up for by the next one: training does not wait for it.
    """

    def __init__(self, workdir: Path, bucket: str):
        """Fetches the folder, if it is empty and a copy is there.

        Raises:
          UserError: no bucket, or gcloud is not installed, or does not get at it.
        """
        check(bucket)
        job.need("gcloud")
        self._command = copy(workdir, bucket)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._copy_at_intervals, daemon=True)
        workdir.mkdir(parents=True, exist_ok=True)
        listed = subprocess.run(
            ["gcloud", "storage", "ls", bucket], check=False, capture_output=True, text=True
        )
        if listed.returncode == 0 and listed.stdout.strip() and not any(workdir.iterdir()):
            job.run(copy(bucket, workdir), capture_output=True)
            job.say(f"fetched {workdir} from {bucket}")

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

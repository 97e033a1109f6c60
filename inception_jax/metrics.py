"""What a run measures, in the workdir: metrics.jsonl, and the same as TensorBoard events.

metrics.jsonl is the record: one JSON object a line, `kind` train, eval, skipped or nonfinite. A
checkpoint stores its length and hash (`mark`), so a resume restores the very bytes that were there
when it was saved. The events are a view of it, written anew on a resume, so that none past the
resumed step remains.
"""

import contextlib
import functools
import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import NamedTuple

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from inception_jax import retry, workdir

NOT_PLOTTED = ("kind", "step", "time", "examples", "what", "value")


class Mark(NamedTuple):
    """A place in metrics.jsonl: everything before it is as it was when the mark was taken."""

    length: int  # bytes
    sha256: str


class NoLog:
    """What a process has that writes none, in the place of a MetricsLog."""

    def open(self, mark: Mark | None) -> None:
        """Does nothing, as the others."""

    def append(self, row: dict) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class _File:
    """A file that grows; as its length is known, what fails half way is written over."""

    def __init__(self, path: Path, length: int = 0):
        """Opens it, cut to a length."""
        self._number = retry.again(lambda: os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
        retry.again(lambda: os.ftruncate(self._number, length))
        self.length = length

    def write(self, content: bytes) -> None:
        """Writes behind the end; all of it, or nothing as far as the storage lets."""
        try:
            retry.again(lambda: self._put(content, self.length))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._number, self.length)
            raise
        self.length += len(content)

    def sync(self, last: bytes | bytearray) -> None:
        """Brings it to the disk.

        Args:
          last: what was written since it was there, to be written once more: after a failure the
            system may take for written what it has lost.
        """

        def attempt():
            self._put(last, self.length - len(last))
            os.fsync(self._number)

        retry.again(attempt)

    def close(self) -> None:
        os.close(self._number)

    def _put(self, content, at):
        while content:
            written = os.pwrite(self._number, content, at)
            content, at = content[written:], at + written


class MetricsLog:
    """Appends rows to metrics.jsonl and to TensorBoard events."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self._events_folder = folder / "tensorboard"
        self._hash = hashlib.sha256()
        self._unsynced = bytearray()

    def open(self, mark: Mark | None) -> str | None:
        """Cuts what was written after `mark` (all of it, if None) and gets ready to append.

        Returns:
          A warning for the user where the part before the mark is damaged; that file is then set
          aside and the record begins anew.
        """
        kept = b""
        warning = None
        if mark is not None:
            stored = b""
            with contextlib.suppress(FileNotFoundError):
                stored = retry.reading(self.path, self.path.read_bytes)
            kept = stored[: mark.length]
            if hashlib.sha256(kept).hexdigest() != mark.sha256:
                warning = self._set_aside()
                kept = b""
        self._hash.update(kept)
        with workdir.writing(self.path):
            self._file = _File(self.path, len(kept))
        with workdir.writing(self._events_folder):
            self._open_events()
            for line in kept.splitlines():
                self._write_event(json.loads(line))
        return warning

    def _set_aside(self):
        if not self.path.exists():
            return f"{self.path} is missing: the rows of earlier steps are lost"
        name = workdir.aside(self.path).name
        return (
            f"{self.path} is not as it was when the checkpoint was saved: set aside as {name};"
            " the rows of earlier steps start anew"
        )

    def append(self, row: dict) -> None:
        """Writes one row: `kind`, `step` and numbers; the time is added."""
        row = row | {"time": round(time.time(), 3)}
        line = (json.dumps(row) + "\n").encode()
        with workdir.writing(self.path):
            self._file.write(line)  # who watches the run sees each row at once
        self._hash.update(line)
        self._unsynced += line
        with workdir.writing(self._events_folder):
            self._write_event(row)

    def flush(self) -> Mark:
        """Brings every row to the disk and returns the mark behind the last."""
        with workdir.writing(self.path):
            self._file.sync(self._unsynced)
        self._unsynced = bytearray()
        return Mark(self._file.length, self._hash.hexdigest())

    def close(self) -> None:
        """Closes both files."""
        with workdir.writing(self.path):
            self._file.close()
        with workdir.writing(self._events_folder):
            self._events.close()

    def _open_events(self):
        retry.again(lambda: self._events_folder.mkdir(exist_ok=True))
        for old in self._events_folder.glob("events.out.tfevents.*"):
            retry.again(functools.partial(old.unlink, missing_ok=True))
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._events = RecordWriter(_File(self._events_folder / name))
        header = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
        self._events.write(header.SerializeToString())

    def _write_event(self, row):
        values = [
            summary_pb2.Summary.Value(tag=f"{row['kind']}/{name}", simple_value=value)
            for name, value in row.items()
            if name not in NOT_PLOTTED
        ]
        event = event_pb2.Event(
            wall_time=row["time"], step=row["step"], summary=summary_pb2.Summary(value=values)
        )
        self._events.write(event.SerializeToString())

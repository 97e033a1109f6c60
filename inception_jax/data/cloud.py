"""Data sets in Google Cloud Storage, gs://BUCKET/FOLDER, by way of TensorFlow and array_record.

python -m inception_jax.data.prepare imagenet --manual_dir=DIR --data_dir=gs://BUCKET/FOLDER

array_record reads from there but cannot write, so a set is prepared in a folder of $TMPDIR and
copied. What says that a set is there is copied last: a set that is not whole is never read.
"""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from inception_jax import workdir
from inception_jax.console import Console
from inception_jax.errors import UserError

LAST = ("dataset_info.json", "features.json")  # without them TFDS sees no set
SECONDS = 30  # for the first answer; TensorFlow alone would try for many minutes


def is_remote(path: str) -> bool:
    """Whether a path is in Google Cloud Storage."""
    return path.startswith("gs://")


def reach(path: str) -> None:
    """Sees to it that Google Cloud Storage answers.

    Raises:
      UserError: it does not, or access is refused.
    """
    answers = []
    # a daemon, which holds nothing up when it waits on
    thread = threading.Thread(target=lambda: answers.append(_ask(path)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    fault = answers[0] if answers else f"no answer in {SECONDS} seconds"
    if fault:
        raise UserError(
            f"cannot reach {path}: {fault}; is there a network, and has `gcloud auth"
            " application-default login` been done?"
        )


def _ask(path):
    """Why the path cannot be reached, or None."""
    import tensorflow as tf

    try:
        epath.Path(path).exists()
    except (tf.errors.OpError, OSError) as error:
        return " ".join(str(error).split())
    return None


@contextlib.contextmanager
def staging(key: str) -> Iterator[Path]:
    """A folder in $TMPDIR for the sets, held, and removed at the end unless there is an error.

    Args:
      key: what is prepared from what for where; what another key left in the folder is removed.

    Raises:
      UserError: the folder cannot be made, or another preparation has it.
    """
    folder = Path(tempfile.gettempdir(), f"inception_jax-{os.getuid()}")
    with workdir.hold(folder, "TMPDIR"):
        sets, said = folder / "sets", folder / "key.txt"
        if not said.exists() or said.read_text() != key:
            shutil.rmtree(sets, ignore_errors=True)
            (folder / "copied.txt").unlink(missing_ok=True)
            said.write_text(key)
        sets.mkdir(exist_ok=True)
        yield sets
        shutil.rmtree(sets)
        (folder / "copied.txt").unlink(missing_ok=True)
        said.unlink()


def is_whole(target: str) -> bool:
    """Whether a set has been copied to the end."""
    return (epath.Path(target) / LAST[-1]).exists()


def start(target: str) -> None:
    """Writes a file beside what is to come, so that it is known at once whether that can be."""
    _marker(target).write_text("This set is being copied, or its copying was interrupted.\n")


def copy(source: Path, target: str, console: Console) -> None:
    """Copies a set from `staging`; goes on with a copy that was interrupted.

    Args:
      source: folder of the version, as in `staging`/mnist/3.0.1.
      target: folder of the version, gs://...
    """
    copied = next(p for p in source.parents if p.name == "sets").parent / "copied.txt"
    done = copied.read_text().split() if copied.exists() else []
    files = [path for path in source.iterdir() if path.is_file()]
    files.sort(key=lambda path: (path.name in LAST, path.name))
    sizes = {path: path.stat().st_size for path in files}
    for old in epath.Path(target).iterdir():  # of an attempt with other files
        if old.name not in done and old != _marker(target):
            old.unlink()
    total, started, behind = sum(sizes.values()), time.monotonic(), 0
    with console.progress(0, total, "copying", ""), open(copied, "a") as log:
        for number, (path, size) in enumerate(sizes.items(), 1):
            if path.name not in done:
                epath.Path(path).copy(epath.Path(target) / path.name, overwrite=True)
                log.write(f"{path.name}\n")
                log.flush()
            behind += size
            spent = time.monotonic() - started
            console.show(
                behind,
                "copying",
                f"{number:,} of {len(files):,} files  {behind / 1e9:.1f} of {total / 1e9:.1f} GB",
                spent * (total - behind) / max(behind, 1),
            )
    _marker(target).unlink()


def _marker(target):
    return epath.Path(target) / "unfinished.txt"

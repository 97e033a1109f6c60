"""Saving and restoring a run: orbax for the arrays, checksums around them, and the order of it all.

    WORKDIR/checkpoints/STEP/state/          orbax's files
    WORKDIR/checkpoints/STEP/meta.json       step, config, counters, mark of metrics.jsonl
    WORKDIR/checkpoints/STEP/checksums.json  SHA-256 of every file above and of itself
    WORKDIR/checkpoints/.unfinished/         what is being written or deleted

The order of a save at step k: the losses up to k are known to be finite; metrics up to k are on the
disk; the arrays are copied from the devices; then, while training goes on, orbax writes them under
.unfinished, the checksums follow, and a rename makes the checkpoint exist. So one that exists is
whole or was damaged later. Then old ones are deleted: all but the newest `keep` and the best.

The order of a resume: the newest checkpoint whose checksums hold is chosen; what differs between
its config and the given one is told, or refused, with nothing touched yet; the arrays are restored,
onto whatever devices there are now; .unfinished is removed, damaged newer checkpoints are named and
set aside; metrics.jsonl is cut to its mark and the TensorBoard events are written anew; training
goes on with the next step.

On several hosts the folder is on a disk that they share. Each writes its own part of the arrays;
all else, and the choice of what to resume from, is process 0's.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from inception_jax import hosts, retry, workdir
from inception_jax.errors import UserError
from inception_jax.names import name_of

CHECKSUMS = "checksums.json"
META = "meta.json"
FAILURES = 3  # saves in a row that may fail while the storage does, the last of which ends the run


class Found(NamedTuple):
    """A whole checkpoint."""

    step: int
    folder: Path
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    What fails for a while is tried again, at once where the data are still there; a save that fails
    in training, whose arrays are gone by then, is told, and the next one is the new attempt.
    """

    def __init__(self, folder: Path, keep: int, tell: Callable[[str], None] = print):
        self.folder = folder / "checkpoints"
        self._unfinished = self.folder / ".unfinished"
        self._keep = keep
        self._tell = tell
        self._orbax = ocp.StandardCheckpointer()
        self._thread: threading.Thread | None = None
        self._error: tuple[int, Exception] | None = None  # of which save, and what
        self._failures = 0  # in a row

    def find_newest(self) -> tuple[Found | None, dict[Path, str]]:
        """Chooses what to resume from; changes nothing.

        Returns:
          The newest whole checkpoint, None if there are none at all, and the damaged newer ones
          with what is wrong with each.

        Raises:
          UserError: there are checkpoints, and all of them are damaged.
        """
        damaged = {}
        for step in reversed(self.steps()):
            folder = self.folder / str(step)
            problem = verify(folder)
            if problem is None:
                break
            damaged[folder] = problem
        else:
            if damaged:
                folder, problem = next(iter(damaged.items()))
                raise UserError(
                    f"no checkpoint in {self.folder} is whole (the newest, {folder.name}:"
                    f" {problem}): restore the folder from a copy, or remove it to start anew"
                )
            return None, {}
        meta = retry.reading(folder, (folder / META).read_text)
        return Found(step, folder, json.loads(meta)), damaged

    def agree_on_newest(self) -> tuple[Found | None, dict[Path, str]]:
        """As find_newest, by process 0 for all; only it gets to know of damaged ones."""
        found, damaged = self.find_newest() if hosts.first() else (None, {})
        step = hosts.of_first(found and found.step)
        if step is None or hosts.first():
            return found, damaged
        folder = self.folder / str(step)
        meta = retry.reading(folder, (folder / META).read_text)
        return Found(step, folder, json.loads(meta)), {}

    def clean(self, damaged: dict[Path, str]) -> list[str]:
        """Removes what is unfinished and sets damaged ones aside; returns a line for each."""
        if hosts.first():
            _remove(self._unfinished)
        return [
            f"checkpoint {folder.name} is damaged ({problem}): set aside as"
            f" {workdir.aside(folder).name}"
            for folder, problem in damaged.items()
        ]

    def restore(self, found: Found, abstract_state):
        """Reads the arrays of a whole checkpoint.

        Args:
          found: from find_newest.
          abstract_state: a tree of ShapeDtypeStructs with the shardings to restore onto.

        Raises:
          UserError: the checkpoint's arrays are not those of abstract_state.
        """
        stored, wanted = found.meta["arrays"], describe(abstract_state)
        differing = sorted(
            name for name in stored.keys() | wanted if stored.get(name) != wanted.get(name)
        )
        if differing:
            name = differing[0]
            raise UserError(
                f"checkpoint {found.step} in {self.folder} does not fit: {len(differing)} arrays"
                f" differ, the first {name} ({stored.get(name, 'none')} there,"
                f" {wanted.get(name, 'none')} here): take another --workdir"
            )
        arrays = (found.folder / "state").absolute()
        return retry.reading(arrays, lambda: self._orbax.restore(arrays, abstract_state))

    def save(self, step: int, state, meta: dict[str, Any], best: int | None) -> None:
        """Starts a save and returns once the arrays are copied from the devices.

        Args:
          step: what the checkpoint is called.
          state: a tree of arrays.
          meta: JSON values to keep with it.
          best: the step whose checkpoint is kept however old it is.

        Raises:
          UserError: this or the previous save failed, as on a full disk; see check.
        """
        self.wait()
        meta = meta | {"arrays": describe(state)}
        temporary = self._unfinished / str(step)
        # With room to spare: on a full disk orbax's threads print tracebacks of their own.
        needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**22
        try:
            if hosts.first():
                if shutil.disk_usage(self.folder.parent).free < needed:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                _remove(self._unfinished)  # what a save that failed has left
                temporary.mkdir(parents=True)
            # the others wait for process 0 to make orbax's own folder in it
            self._orbax.save((temporary / "state").absolute(), state)
        except (OSError, ValueError) as error:
            self._error = (step, error)
            if jax.process_count() > 1 or not retry.passes(error):
                raise self._failed() from None
            return
        self._thread = threading.Thread(target=self._finish, args=(step, meta, best))
        self._thread.start()

    def wait(self) -> None:
        """Waits for a save under way, then does what check does."""
        self._join()
        self.check()

    def check(self) -> None:
        """Tells it if a save has failed by now; does not wait.

        Raises:
          UserError: the reason does not pass, or it was the last of FAILURES in a row.
        """
        if self._error is None:
            return
        self._failures += 1
        alone = jax.process_count() == 1  # else others may still wait for what failed here
        if not alone or self._failures == FAILURES or not retry.passes(self._error[1]):
            raise self._failed()
        self._tell(f"{self._told()}; training goes on, and the next save tries again")

    def finish(self, save: Callable[[], None]) -> None:
        """Waits for the last save; where it fails for a while, makes it anew, from the same state.

        Several processes would have to do so together: there it is not tried again.

        Args:
          save: starts that save.

        Raises:
          UserError: it failed again and again, or the reason does not pass.
        """
        pauses = retry.PAUSES if jax.process_count() == 1 else ()
        for pause in (*pauses, None):
            self._join()
            if self._error is None:
                return
            if pause is None or not retry.passes(self._error[1]):
                raise self._failed()
            self._error = None
            time.sleep(pause)
            save()

    def _join(self):
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _finish(self, step, meta, best):
        temporary = self._unfinished / str(step)
        try:
            self._orbax.wait_until_finished()
            if not hosts.first():  # which waits until all have written
                return
            retry.again(lambda: (temporary / META).write_text(json.dumps(meta)))
            hashes = _hash_files(temporary)
            sealed = {CHECKSUMS: _hash(json.dumps(hashes).encode())} | hashes
            retry.again(lambda: (temporary / CHECKSUMS).write_text(json.dumps(sealed, indent=1)))
            # Once: after a failure the system may take for written what is lost, and say so.
            _fsync_tree(temporary)
            retry.rename(temporary, self.folder / str(step))
            self._failures = 0
            self._prune(best)
        except Exception as error:  # whatever it is, it is raised again by wait()
            self._error = (step, error)

    def _prune(self, best):
        """Deletes old ones once the new one is sure to stay; what fails is for the next save."""
        try:
            retry.again(lambda: _fsync(self.folder))
            for step in self.steps()[: -self._keep]:
                if step != best:
                    doomed = self._unfinished / f"{step}.deleted"
                    retry.rename(self.folder / str(step), doomed)
                    _remove(doomed)
        except OSError as error:
            if not retry.passes(error):
                raise

    def steps(self) -> list[int]:
        """Those of which there are checkpoints, whole or damaged, in order."""
        try:
            names = retry.reading(self.folder, lambda: os.listdir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if name.isdecimal())

    def _told(self):
        (step, error), self._error = self._error, None
        return f"could not save checkpoint {step} to {self.folder}: {retry.reason(error)}"

    def _failed(self):
        told, last = self._told(), self.steps()[-1:]
        kept = f"the newest checkpoint is {last[0]}" if last else "there is no checkpoint yet"
        return UserError(
            f"{told}; {kept}. Make room or mend it, then start again with the same line"
        )


def verify(folder: Path) -> str | None:
    """Compares a checkpoint's files with its checksums; returns what is wrong, or None."""
    try:
        expected = json.loads(retry.again((folder / CHECKSUMS).read_text))
        found = _hash_files(folder)
        own = expected.pop(CHECKSUMS)
        if own != _hash(json.dumps(expected).encode()):
            raise ValueError
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, KeyError, AttributeError, TypeError):  # not what was written
        return f"{CHECKSUMS} is damaged"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if expected.get(name) != found[name]:
            return f"{name} is damaged"
    return None


def read(found: Found, names: Collection[str]) -> dict[str, np.ndarray]:
    """Reads some arrays of a whole checkpoint onto the host; names are those of describe."""
    tree: dict[str, Any] = {}
    for name in names:
        *groups, last = name.split("/")
        functools.reduce(lambda group, key: group.setdefault(key, {}), groups, tree)[last] = 0
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with ocp.PyTreeCheckpointer() as reader:
        folder = (found.folder / "state").absolute()
        args = ocp.args.PyTreeRestore(tree, restore_args=as_numpy, partial_restore=True)
        stored = retry.reading(folder, lambda: reader.restore(folder, args=args))
    leaves, _ = jax.tree_util.tree_flatten_with_path(stored)
    return {name_of(path): leaf for path, leaf in leaves}


def describe(tree) -> dict[str, str]:
    """Names every array of a tree: path -> dtype[shape]."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        name_of(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in leaves
    }


def _hash(content):
    return hashlib.sha256(content).hexdigest()


def _hash_files(folder):
    return {
        str(path.relative_to(folder)): _hash(retry.again(path.read_bytes))
        for path in sorted(retry.again(lambda: _files(folder)))
        if path != folder / CHECKSUMS
    }


def _files(folder):
    """Every file below; Path.rglob leaves out what cannot be listed for a while."""

    def fail(error):
        raise error

    walk = os.walk(folder, onerror=fail)
    return [Path(parent, name) for parent, _, names in walk for name in names]


def _fsync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder):
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)


def _remove(folder):
    with contextlib.suppress(FileNotFoundError):
        retry.again(lambda: shutil.rmtree(folder))

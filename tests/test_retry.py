"""Storage that fails for a while: tried again, so many times; what stays broken is told at once."""

import errno
import fcntl
import json
import os
import re
import types
from pathlib import Path

import pytest
from conftest import arrays, newest, rows
from tensorboard.backend.event_processing import event_file_loader
from test_checkpoint import abstract, assert_is_state, state

from inception_jax import main, metrics, retry, workdir
from inception_jax.checkpoint import Checkpoints, verify
from inception_jax.data import pipeline
from inception_jax.errors import DataError, UserError

ATTEMPTS = 5
EIO = OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", (0,) * (ATTEMPTS - 1))


@pytest.fixture
def slept(monkeypatch):
    pauses = []
    monkeypatch.setattr(retry, "time", types.SimpleNamespace(sleep=pauses.append))
    return pauses


@pytest.fixture
def fail(monkeypatch, no_pauses):
    """Returns fail(module, name, times, pattern, error=EIO) -> a list of the paths it failed on.

    The next so many calls fail whose first argument, or the file of that number, has a path that
    the regular expression finds.
    """

    def fail(module, name, times, pattern, error=EIO):
        real, failed = getattr(module, name), []

        def fake(*arguments, **options):
            path = arguments[0]
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            if re.search(pattern, str(path)) and len(failed) < times:
                failed.append(str(path))
                raise error
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, fake)
        return failed

    return fail


# As tensorstore 0.1.80 words them.
TENSORSTORE = (
    'UNKNOWN: Error opening "zarr" driver: Error writing "a/.zarray" in OCDBT database at local'
    " file \"/runs/x/\": Failed to fsync file: {} [os_error_code='{}'] [tensorstore_spec='{{...",
    'UNKNOWN: Error opening "zarr" driver: Error reading from open file /runs/x/d/1: Failed to read'
    " 281 bytes from file at offset 0: {} [tensorstore_spec='{{...",
)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        *((n, True) for n in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY)),
        *((n, True) for n in (errno.ECONNRESET, errno.ENETDOWN, errno.EHOSTUNREACH)),
        *((n, False) for n in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT)),
        *((n, False) for n in (errno.EDQUOT, errno.EFBIG, errno.ENOTDIR, errno.EPERM)),
    ],
)
def test_what_may_pass_is_told_from_what_stays(number, expected):
    told = os.strerror(number)
    assert retry.passes(OSError(number, told)) == expected
    for text in TENSORSTORE:
        error = ValueError(text.format(told, number))
        assert retry.reason(error) == told
        assert retry.passes(error) == expected


def test_other_errors_do_not_pass():
    for error in (ValueError("Input/output"), OSError("x"), KeyError(5), ValueError()):
        assert not retry.passes(error)


@pytest.mark.parametrize("failures", [0, 1, 4])
def test_what_passes_is_tried_again_after_longer_and_longer_pauses(failures, slept):
    errors = [EIO] * failures

    def action():
        if errors:
            raise errors.pop()
        return "done"

    assert retry.again(action) == "done"
    assert slept == [1, 2, 4, 8][:failures]


def test_it_is_given_up_in_the_end_and_what_stays_at_once(slept):
    def action(number):
        calls.append(number)
        raise OSError(number, os.strerror(number))

    for number, count in ((errno.EIO, 5), (errno.ENOSPC, 1)):
        calls = []
        with pytest.raises(OSError, match=os.strerror(number)):
            retry.again(lambda number=number: action(number))
        assert len(calls) == count
    assert slept == [1, 2, 4, 8]


def test_a_rename_that_was_made_but_not_confirmed_is_made(tmp_path, monkeypatch, no_pauses):
    real = os.rename

    def unconfirmed(*arguments):
        real(*arguments)
        raise OSError(errno.ETIMEDOUT, "x")

    monkeypatch.setattr(os, "rename", unconfirmed)
    (tmp_path / "a").write_text("precious")
    retry.rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "precious"
    with pytest.raises(FileNotFoundError):
        retry.rename(tmp_path / "a", tmp_path / "c")


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 10 and 20, and the lines that were told."""
    told = []
    checkpoints = Checkpoints(tmp_path, keep=2, tell=told.append)
    for step in (10, 20):
        checkpoints.save(step, state(step), {}, best=None)
    checkpoints.wait()
    return checkpoints, told


def save(checkpoints, step):
    checkpoints.save(step, state(step), {}, best=None)
    checkpoints.wait()


# What fails of a save of step 30 after the arrays are written, and may be tried again by itself.
AFTER_THE_ARRAYS = [
    (Path, "write_text", r"/30/meta\.json$"),
    (Path, "read_bytes", r"\.unfinished/30/state/manifest\.ocdbt$"),
    (Path, "write_text", r"/30/checksums\.json$"),
    (os, "rename", r"\.unfinished/30$"),
    (os, "fsync", r"/checkpoints$"),
    (os, "rename", r"/checkpoints/10$"),
]
# And what cannot: orbax's own part, and what may be lost where the disk fails to take it.
WITH_THE_ARRAYS = [
    (os, "rename", r"orbax-checkpoint-tmp$"),
    (os, "fsync", r"\.unfinished/30/state"),
    (Path, "mkdir", r"\.unfinished/30$"),
]


@pytest.mark.parametrize(("module", "name", "pattern"), AFTER_THE_ARRAYS)
def test_a_save_outlives_four_failures_behind_the_arrays(module, name, pattern, saved, fail):
    checkpoints, told = saved
    failed = fail(module, name, ATTEMPTS - 1, pattern)
    save(checkpoints, 30)
    assert (told, len(failed)) == ([], ATTEMPTS - 1)
    assert checkpoints.steps() == [20, 30]
    assert verify(checkpoints.folder / "30") is None
    found, _ = checkpoints.find_newest()
    assert_is_state(checkpoints.restore(found, abstract()), 30)


@pytest.mark.parametrize(("module", "name", "pattern"), [*AFTER_THE_ARRAYS[:4], *WITH_THE_ARRAYS])
def test_a_save_that_fails_is_told_and_the_next_one_leaves_nothing_of_it(
    module, name, pattern, saved, fail
):
    checkpoints, told = saved
    once = (module, name, pattern) in WITH_THE_ARRAYS
    fail(module, name, 1 if once else ATTEMPTS, pattern)
    save(checkpoints, 30)
    assert told == [
        f"could not save checkpoint 30 to {checkpoints.folder}: Input/output error; training goes"
        " on, and the next save tries again"
    ]
    assert checkpoints.steps() == [10, 20]
    save(checkpoints, 40)
    assert len(told) == 1
    assert checkpoints.steps() == [20, 40]
    assert verify(checkpoints.folder / "40") is None
    assert not list((checkpoints.folder / ".unfinished").iterdir())


@pytest.mark.parametrize(("module", "name", "pattern"), AFTER_THE_ARRAYS[4:])
def test_a_save_that_has_its_name_is_one_and_the_next_deletes_the_old(
    module, name, pattern, saved, fail
):
    checkpoints, told = saved
    fail(module, name, ATTEMPTS, pattern)
    save(checkpoints, 30)
    assert checkpoints.steps() == [10, 20, 30]
    save(checkpoints, 40)
    assert checkpoints.steps() == [30, 40]
    assert told == []


def test_the_third_failure_in_a_row_ends_the_run(saved, fail):
    checkpoints, told = saved
    fail(os, "rename", 2, r"orbax-checkpoint-tmp$")
    for step in (30, 40, 50):
        save(checkpoints, step)
    assert len(told) == 2  # and then it is forgotten
    fail(os, "rename", 3, r"orbax-checkpoint-tmp$")
    save(checkpoints, 60)
    save(checkpoints, 70)
    message = "could not save checkpoint 80 to .*: Input/output error; the newest checkpoint is 50"
    with pytest.raises(UserError, match=message):
        save(checkpoints, 80)
    assert len(told) == 4


@pytest.mark.parametrize(("module", "name", "pattern"), [*AFTER_THE_ARRAYS, *WITH_THE_ARRAYS])
def test_what_stays_broken_ends_the_run_at_once(module, name, pattern, saved, fail):
    checkpoints, told = saved
    fail(module, name, 1, pattern, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UserError, match=r"could not save checkpoint 30 .*No space left"):
        save(checkpoints, 30)
    assert told == []


@pytest.mark.parametrize(("module", "name", "pattern"), WITH_THE_ARRAYS)
@pytest.mark.parametrize("times", [ATTEMPTS - 1, ATTEMPTS])
def test_the_last_save_is_made_again_as_long_as_its_state_is_there(
    module, name, pattern, times, saved, fail
):
    checkpoints, told = saved
    fail(module, name, times, pattern)

    def again():
        checkpoints.save(30, state(30), {}, best=None)

    again()
    if times == ATTEMPTS:
        message = "could not save checkpoint 30 .*Input/output error; the newest checkpoint is 20"
        with pytest.raises(UserError, match=message):
            checkpoints.finish(again)
        assert checkpoints.steps() == [10, 20]
    else:
        checkpoints.finish(again)
        assert verify(checkpoints.folder / "30") is None
    assert told == []
    checkpoints.wait()  # it is told once


def read_whole(folder):
    checkpoints = Checkpoints(folder, keep=3)
    found, damaged = checkpoints.find_newest()
    return found.step, {path.name: why for path, why in damaged.items()}


READS = [
    (Path, "read_text", r"/20/checksums\.json$"),
    (Path, "read_bytes", r"/20/meta\.json$"),
    (Path, "read_bytes", r"/20/state/"),
    (os, "scandir", r"/20/state$"),
]


@pytest.mark.parametrize(("module", "name", "pattern"), READS)
def test_a_good_checkpoint_is_not_called_damaged_for_what_passes(
    module, name, pattern, saved, tmp_path, fail
):
    failed = fail(module, name, ATTEMPTS - 1, pattern)
    assert read_whole(tmp_path) == (20, {})
    assert len(failed) == ATTEMPTS - 1
    fail(module, name, ATTEMPTS, pattern)  # as where the disk is bad
    assert read_whole(tmp_path) == (10, {"20": "it cannot be read: Input/output error"})


def test_a_list_of_checkpoints_that_cannot_be_had_is_no_new_run(saved, tmp_path, fail):
    fail(os, "listdir", ATTEMPTS - 1, "checkpoints$")
    assert read_whole(tmp_path) == (20, {})
    fail(os, "listdir", ATTEMPTS, "checkpoints$")
    with pytest.raises(UserError, match=r"could not read .*checkpoints: Input/output error; mend"):
        read_whole(tmp_path)


@pytest.mark.parametrize("times", [ATTEMPTS - 1, ATTEMPTS])
def test_arrays_are_read_again(times, saved, monkeypatch, no_pauses):
    checkpoints, _ = saved
    errors = [ValueError(TENSORSTORE[1].format(EIO.strerror))] * times
    real = checkpoints._orbax.restore

    def restore(*arguments):
        if errors:
            raise errors.pop()
        return real(*arguments)

    monkeypatch.setattr(checkpoints._orbax, "restore", restore)
    found, _ = checkpoints.find_newest()
    if times == ATTEMPTS:
        with pytest.raises(UserError, match=r"could not read .*20/state: Input/output error; mend"):
            checkpoints.restore(found, abstract())
    else:
        assert_is_state(checkpoints.restore(found, abstract()), 20)


@pytest.fixture
def log(tmp_path):
    """A record with a row in it."""
    log = metrics.MetricsLog(tmp_path)
    log.open(None)
    log.append({"kind": "train", "step": 1})
    yield log
    log.close()


def write_half(monkeypatch, times, number=errno.EIO):
    """The next calls of pwrite write half of what they should, then fail."""
    real = os.pwrite
    errors = [OSError(number, os.strerror(number))] * times

    def half(file, content, at):
        if not errors:
            return real(file, content, at)
        real(file, content[: len(content) // 2], at)
        raise errors.pop()

    monkeypatch.setattr(os, "pwrite", half)


def steps_logged(log):
    return [json.loads(line)["step"] for line in log.path.read_text().splitlines()]


def test_a_row_of_which_a_half_was_written_is_written_whole(log, tmp_path, monkeypatch, no_pauses):
    for step in (2, 3, 4):
        write_half(monkeypatch, ATTEMPTS - 1)
        log.append({"kind": "train", "step": step})
    assert steps_logged(log) == [1, 2, 3, 4]
    mark = log.flush()
    again = metrics.MetricsLog(tmp_path)
    assert again.open(mark) is None  # no warning: length and hash are those of the file
    again.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_where_a_row_cannot_be_written_there_is_no_half_of_it(number, log, monkeypatch, no_pauses):
    write_half(monkeypatch, ATTEMPTS, number)
    with pytest.raises(UserError, match=f"could not write .*jsonl: {os.strerror(number)}; make"):
        log.append({"kind": "train", "step": 2})
    assert steps_logged(log) == [1]


def test_events_are_written_whole(log, monkeypatch, no_pauses):
    real, calls = metrics.RecordWriter.write, []

    def write(self, data):
        write_half(monkeypatch, 2)
        real(self, data)
        calls.append(data)

    monkeypatch.setattr(metrics.RecordWriter, "write", write)
    log.append({"kind": "train", "step": 2, "loss": 1.5})
    (file,) = (log.path.parent / "tensorboard").iterdir()
    assert calls
    assert file.read_bytes().count(calls[0]) == 1
    events = list(event_file_loader.LegacyEventFileLoader(str(file)).Load())
    assert [event.step for event in events] == [0, 1, 2]


def test_rows_that_a_failed_fsync_has_lost_are_written_again(log, monkeypatch, no_pauses):
    """Linux drops what it could not write, and the next fsync knows nothing of it."""
    log.append({"kind": "train", "step": 2})
    real, failures = os.fsync, [1, 2]

    def lose(number):
        if failures:
            failures.pop()
            size = os.fstat(number).st_size
            os.pwrite(number, bytes(size), 0)
            raise EIO
        real(number)

    monkeypatch.setattr(os, "fsync", lose)
    mark = log.flush()
    assert steps_logged(log) == [1, 2]
    assert mark.length == log.path.stat().st_size


@pytest.mark.parametrize(("name", "pattern"), [("fsync", "new$"), ("replace", "new$")])
def test_a_json_file_is_written_again(name, pattern, tmp_path, fail):
    path = tmp_path / "config.json"
    failed = fail(os, name, ATTEMPTS - 1, pattern)
    workdir.write_json(path, {"seed": 1})
    assert len(failed) == ATTEMPTS - 1
    fail(os, name, ATTEMPTS, pattern)
    with pytest.raises(UserError, match=r"could not write .*config.json: Input/output error"):
        workdir.write_json(path, {"seed": 2})
    assert json.loads(path.read_text()) == {"seed": 1}


def test_the_lock_is_tried_again_unless_another_run_has_it(tmp_path, monkeypatch, slept):
    """Although the system gives that the number of what passes, EAGAIN."""
    errors, real = [EIO] * 2, fcntl.flock

    def flock(*arguments):
        if errors:
            raise errors.pop()
        real(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    with workdir.hold(tmp_path):
        assert slept == [1, 2]
        with pytest.raises(UserError, match="another run is writing"), workdir.hold(tmp_path):
            pass
    assert slept == [1, 2]


COMMAND = (
    "main",
    "--config=configs/digits.py",
    "--config.model.modules=3a",
    "--config.model.width=0.0625",
    "--config.batch_size=32",
    "--config.epochs=0.5",
    "--config.schedule.warmup_epochs=0",
    "--config.log_every_steps=1",
    "--config.checkpoint.every_steps=5",
)
STEPS = 23


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main.main([*COMMAND, f"--workdir={folder}"]) == 0
    return folder


def assert_as(undisturbed, folder):
    first, second = arrays(undisturbed, STEPS), arrays(folder, STEPS)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name
    assert rows(folder) == rows(undisturbed)
    assert (folder / "results.json").exists()


def test_a_run_outlives_failing_saves(undisturbed, tmp_path, fail, capfd):
    """The first two in training, whose arrays are gone; of the last one four attempts."""
    failed = fail(os, "rename", 6, r"/(5|10|23)/.*orbax-checkpoint-tmp$")
    assert main.main([*COMMAND, f"--workdir={tmp_path}"]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    told = [line for line in said.out.splitlines() if "could not save" in line]
    assert [line.split()[:5] for line in told] == [
        ["could", "not", "save", "checkpoint", step] for step in ("5", "10")
    ]
    assert len(failed) == 6
    assert_as(undisturbed, tmp_path)


def test_a_run_ends_where_three_saves_in_a_row_fail_and_goes_on(undisturbed, tmp_path, fail, capfd):
    fail(os, "rename", 3, r"/(10|15|20)/.*orbax-checkpoint-tmp$")
    assert main.main([*COMMAND, f"--workdir={tmp_path}"]) == 1
    error = capfd.readouterr().err
    assert error == (
        f"error: could not save checkpoint 20 to {tmp_path}/checkpoints: Input/output error; the"
        " newest checkpoint is 5. Make room or mend it, then start again with the same line\n"
    )
    assert main.main([*COMMAND, f"--workdir={tmp_path}"]) == 0
    assert_as(undisturbed, tmp_path)


def test_where_everything_fails_for_a_while_the_run_is_as_if_nothing_had(
    undisturbed, tmp_path, fail, monkeypatch
):
    """Started, ended by its data and gone on with: whatever is done first fails twice."""
    here = re.escape(str(tmp_path))
    failed = []
    for module, name, pattern in (
        (Path, "mkdir", f"{here}$"),
        (os, "rename", r"\.unfinished/\d+$"),
        (os, "replace", "new$"),
        (os, "pwrite", "(jsonl|tfevents.*)$"),
        (os, "fsync", "(jsonl|new)$"),
        (os, "ftruncate", "(jsonl|tfevents.*)$"),
        (Path, "read_bytes", here),
        (Path, "read_text", here),
        (Path, "write_text", "meta.json$"),
        (os, "unlink", "results.json$"),
        (fcntl, "flock", "lock"),
    ):
        failed.append(fail(module, name, 2, pattern))
    read = pipeline.training

    def short(*arguments):
        for number, batch in enumerate(read(*arguments)):
            if number == 7:
                raise DataError("no more images")
            yield batch

    monkeypatch.setattr(pipeline, "training", short)
    assert main.main([*COMMAND, f"--workdir={tmp_path}"]) == 1
    assert newest(tmp_path) == 7
    monkeypatch.setattr(pipeline, "training", read)
    assert main.main([*COMMAND, f"--workdir={tmp_path}"]) == 0
    assert [len(paths) for paths in failed] == [2] * len(failed)
    assert_as(undisturbed, tmp_path)

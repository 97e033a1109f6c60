"""metrics.jsonl and TensorBoard events: every row once, and none of what a resume goes back on."""

import hashlib
import json
import resource
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator, event_file_loader

from inception_jax.errors import UserError
from inception_jax.metrics import Mark, MetricsLog


def row(step, kind="train"):
    return {"kind": kind, "step": step, "epoch": step / 3, "loss": 2.5 / (step + 1)}


@pytest.fixture
def start(tmp_path):
    """Opens the log as a run does that starts or goes on; closes them all at the end."""
    logs = []

    def open_log(mark=None):
        log = MetricsLog(tmp_path)
        logs.append(log)
        return log, log.open(mark)

    yield open_log
    for log in logs:
        log.close()


def rows(tmp_path):
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def events(tmp_path):
    """(tag, step, value) of every event in every file, doubled ones included."""
    files = list((tmp_path / "tensorboard").iterdir())
    assert all("tfevents" in path.name for path in files)
    return [
        (value.tag, event.step, value.simple_value)
        for path in files
        for event in event_file_loader.LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def as_events(kept):
    return [
        (f"{r['kind']}/{name}", r["step"], float(np.float32(r[name])))
        for r in kept
        for name in ("epoch", "loss")
    ]


def test_rows_are_on_the_disk_after_a_flush(start, tmp_path):
    log, warning = start()
    written = [row(1), row(2), row(2, "eval") | {"top1": 0.5, "examples": 360}]
    before = time.time()
    for each in written:
        log.append(each)
    mark = log.flush()
    assert warning is None
    assert rows(tmp_path) == written
    stored = (tmp_path / "metrics.jsonl").read_bytes()
    assert mark == Mark(len(stored), hashlib.sha256(stored).hexdigest())
    for line in stored.splitlines():
        assert before - 0.001 <= json.loads(line)["time"] <= time.time() + 0.001
    plotted = [*as_events(written), ("eval/top1", 2, 0.5)]
    assert sorted(events(tmp_path)) == sorted(plotted)


def test_a_row_can_be_watched_before_a_flush(start, tmp_path):
    log, _ = start()
    log.append(row(1))
    assert rows(tmp_path) == [row(1)]
    assert events(tmp_path) == as_events([row(1)])


def test_a_row_that_does_not_fit_on_the_disk_is_an_error(start):
    """Where only a part of it does, the mark would be of a file that never was."""
    log, _ = start()
    for step in range(5):
        log.append({"kind": "train", "step": step, "examples": 123})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"could not write .*jsonl: File too large; make"):
            log.append({"kind": "train", "step": 5, "examples": 123})
            log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_tensorboard_shows_the_curves(start, tmp_path):
    log, _ = start()
    for step in range(5):
        log.append(row(step))
    log.flush()
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {"train/epoch", "train/loss"}
    curve = [("train/loss", point.step, point.value) for point in board.Scalars("train/loss")]
    assert curve == [e for e in as_events(map(row, range(5))) if e[0] == "train/loss"]
    times = [json.loads(line)["time"] for line in log.path.read_text().splitlines()]
    assert [point.wall_time for point in board.Scalars("train/loss")] == times


@pytest.mark.parametrize("tail", [b"", b'{"kind": "tra', b"\0\0\0\0\n", b"\xff"])
def test_a_resume_cuts_what_came_after_the_mark(tail, start, tmp_path):
    """Also a line that a crash left half written."""
    log, _ = start()
    for step in (1, 2):
        log.append(row(step))
    mark = log.flush()
    kept = log.path.read_bytes()
    for step in (3, 4):
        log.append(row(step))
    log.flush()
    with open(log.path, "ab") as file:
        file.write(tail)

    log, warning = start(Mark(*json.loads(json.dumps(mark))))  # as a checkpoint stores it
    assert warning is None
    log.flush()
    assert log.path.read_bytes() == kept
    assert events(tmp_path) == as_events([row(1), row(2)])

    log.append(row(3))
    again = log.flush()
    stored = log.path.read_bytes()
    assert rows(tmp_path) == [row(1), row(2), row(3)]
    assert again == Mark(len(stored), hashlib.sha256(stored).hexdigest())
    assert events(tmp_path) == as_events([row(1), row(2), row(3)])


def test_several_resumes_neither_lose_nor_double_a_row(start, tmp_path):
    log, _ = start()
    mark = log.flush()
    for step in range(1, 6):
        log.append(row(step))
        mark, lost = log.flush(), mark
        log.append(row(step + 100))  # never saved
        log, warning = start(mark)
        assert warning is None
        assert lost != mark
    log.flush()
    assert rows(tmp_path) == [row(step) for step in range(1, 6)]
    assert events(tmp_path) == as_events(rows(tmp_path))


def flip(path):
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_record_is_set_aside_and_told(damage, start, tmp_path):
    log, _ = start()
    log.append(row(1))
    mark = log.flush()
    damage(log.path)
    damaged = log.path.read_bytes()

    log, warning = start(mark)
    assert "\n" not in warning
    assert str(tmp_path / "metrics.jsonl") in warning
    assert "metrics.jsonl.damaged1" in warning
    assert (tmp_path / "metrics.jsonl.damaged1").read_bytes() == damaged
    log.append(row(2))
    again = log.flush()
    stored = log.path.read_bytes()
    assert rows(tmp_path) == [row(2)]
    assert again == Mark(len(stored), hashlib.sha256(stored).hexdigest())
    assert events(tmp_path) == as_events([row(2)])


def test_a_lost_record_is_told_and_claims_no_copy(start, tmp_path):
    log, _ = start()
    log.append(row(1))
    mark = log.flush()
    log.path.unlink()
    log, warning = start(mark)
    assert str(tmp_path / "metrics.jsonl") in warning
    assert not (tmp_path / "metrics.jsonl.damaged1").exists()
    assert "set aside" not in warning
    log.append(row(2))
    log.flush()
    assert rows(tmp_path) == [row(2)]


def test_a_new_run_leaves_nothing_of_an_older_one_without_checkpoints(start, tmp_path):
    log, _ = start()
    log.append(row(1))
    log.flush()
    log, warning = start(None)
    assert warning is None
    log.append(row(7))
    log.flush()
    assert rows(tmp_path) == [row(7)]
    assert events(tmp_path) == as_events([row(7)])

"""The folder of a run: one run at a time, and files that are never half written."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from inception_jax import workdir
from inception_jax.errors import UserError

HOLDER = """
import sys
from pathlib import Path
from inception_jax import workdir
with workdir.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def message(folder):
    with pytest.raises(UserError) as caught, workdir.hold(folder):
        pass
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    assert "another --workdir" in text
    return text


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    """Even if that is killed, which leaves no time to clean up."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert "another run is writing" in message(folder)
        with workdir.hold(tmp_path / "other"):
            pass
        holder.kill()
        holder.wait()
    with workdir.hold(folder):
        assert "another run is writing" in message(folder)
    with workdir.hold(folder):
        pass


def test_the_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), workdir.hold(tmp_path):
        raise ZeroDivisionError
    with workdir.hold(tmp_path):
        pass


def test_a_new_folder_is_made_with_its_parents_and_an_old_one_is_left_as_it_is(tmp_path):
    folder = tmp_path / "a" / "b"
    with workdir.hold(folder):
        (folder / "kept").write_text("x")
    with workdir.hold(folder):
        assert (folder / "kept").read_text() == "x"


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(name, tmp_path):
    (tmp_path / "file").write_text("precious")
    text = message(tmp_path / name)
    assert text.startswith("cannot write to workdir")
    assert any(os.strerror(number) in text for number in (errno.ENOTDIR, errno.EEXIST))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_json_file_holds_what_was_written(tmp_path):
    path = tmp_path / "results.json"
    for value in ({"top1": 0.97, "config": {"a": [1, None, "é"]}}, {"top1": 0.98}):
        workdir.write_json(path, value)
        assert json.loads(path.read_text()) == value
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_file(when, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    workdir.write_json(path, {"top1": 0.97})

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if when == "fsync" else (Path, "replace")), fail)
    with pytest.raises(UserError, match=r"could not write .*results.json: No space left"):
        workdir.write_json(path, {"top1": 0.98})
    assert json.loads(path.read_text()) == {"top1": 0.97}


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    workdir.write_json(path, {"top1": 0.97})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"top1": object()})
    assert json.loads(path.read_text()) == {"top1": 0.97}


def test_a_file_takes_its_name_only_once_it_is_whole_and_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    workdir.write_json(path, {"top1": 0.97})
    synced = []

    def fsync(number):
        (new,) = (p for p in tmp_path.iterdir() if p.stat().st_ino == os.fstat(number).st_ino)
        synced.append((json.loads(new.read_text()), json.loads(path.read_text())))

    monkeypatch.setattr(os, "fsync", fsync)
    workdir.write_json(path, {"top1": 0.98})
    assert synced == [({"top1": 0.98}, {"top1": 0.97})]
    assert json.loads(path.read_text()) == {"top1": 0.98}

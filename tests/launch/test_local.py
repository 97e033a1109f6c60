"""Several processes here: every argument arrives as it was typed."""

import re
import sys

import pytest
from dry import AWKWARD, CONFIG, dry_run, shell

from launch import local


def test_several_processes_here(tmp_path, monkeypatch):
    python = tmp_path / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    printed = dry_run(local, *AWKWARD, f"--workdir={tmp_path}/a b", "--num_processes", "3")
    seen = shell(tmp_path, printed, "python")
    assert len(seen) == 3
    for number, command in enumerate(sorted(seen, key=lambda command: command[-1])):
        head, address, *others = command[:-3], *command[-3:]
        assert head == ["python", "-m", "inception_jax.main", *AWKWARD, f"--workdir={tmp_path}/a b"]
        assert re.fullmatch(r"--coordinator_address=localhost:\d+", address)
        assert others == ["--num_processes=3", f"--process_id={number}"]


@pytest.mark.parametrize("value", ["workdir", "bucket=x", "dry_run", "num_processes"])
def test_values_are_not_taken_for_the_launchers_flags(tmp_path, monkeypatch, value):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    arguments = ("--config", "configs/digits.py", "--config.data.dir", value, "--config.seed", "3")
    printed = dry_run(local, *arguments, "--workdir", "x")
    (command,) = shell(tmp_path, printed, "python")
    expected = (CONFIG, f"--config.data.dir={value}", "--config.seed=3", "--workdir=x")
    assert command[3:] == [*expected]


def test_one_process_needs_no_address(tmp_path):
    printed = dry_run(local, CONFIG, f"--workdir={tmp_path}")
    assert printed.count("\n") == 1
    assert "coordinator" not in printed

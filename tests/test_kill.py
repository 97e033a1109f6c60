"""SIGKILL at any moment, several times: the run ends as if nothing had happened."""

import random
import time

import pytest
from conftest import arrays, newest, rows, start_main, wait_until

# An evaluation and a save every few steps, so that kills fall into them too.
OPTIONS = (
    "--config.epochs=6",
    "--config.eval.every_steps=30",
    "--config.checkpoint.every_steps=13",
    "--config.checkpoint.keep=2",
    "--config.log_every_steps=1",
    "--config.average.name=exponential",
    "--config.average.decay=0.99",
)
STEPS = 270


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_bit_identical(run_main, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_main(*OPTIONS, f"--workdir={whole}")

    moments = random.Random(0)
    kills = 0
    # After so many steps past the newest checkpoint, or while the next one is being written.
    for after in (0, 3, "saving", 20, "saving", 40, "saving"):
        process = start_main(*OPTIONS, f"--workdir={killed}")
        begin = newest(killed)
        unfinished = killed / "checkpoints" / ".unfinished"

        def saving(begin=begin, unfinished=unfinished):
            return newest(killed) > begin and unfinished.is_dir() and any(unfinished.iterdir())

        def trained(begin=begin, after=after):
            log = killed / "metrics.jsonl"
            return log.exists() and log.read_bytes().count(b'"train"') >= begin + (after or 1)

        if wait_until(process, saving if after == "saving" else trained):
            time.sleep(moments.uniform(0, 0.05))  # anywhere between two steps, or two writes
            process.kill()
            kills += 1
        process.communicate()
    assert kills >= 5
    run_main(*OPTIONS, f"--workdir={killed}")

    first, second = arrays(whole, STEPS), arrays(killed, STEPS)
    assert first.keys() == second.keys()
    assert any(name.startswith("['average']['mean']['params']") for name in first)
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name
    assert rows(killed) == rows(whole)
    assert [row["step"] for row in rows(whole) if row["kind"] == "train"] == list(range(1, 271))


@pytest.mark.slow
def test_killed_during_start_up_and_before_the_first_checkpoint(run_main, tmp_path):
    options = ("--config.epochs=0.2", "--config.log_every_steps=1", f"--workdir={tmp_path}")
    log = tmp_path / "metrics.jsonl"
    for count in (0, 1):  # before and after the first row
        process = start_main(*options)
        assert wait_until(process, lambda n=count: log.exists() and rows_so_far(log) >= n)
        process.kill()
        process.communicate()
    process = run_main(*options)
    assert process.stderr == ""
    steps = [row["step"] for row in rows(tmp_path) if row["kind"] == "train"]
    assert steps == list(range(1, 10))


def rows_so_far(log):
    return log.read_bytes().count(b"\n")

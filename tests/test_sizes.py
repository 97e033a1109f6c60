"""Images of more than one size in a run: what it leaves behind, and what a network cannot take."""

import json
import re

import pytest
from conftest import arrays, rows
from flax import linen as nn

from inception_jax import models, program, sharding
from inception_jax.errors import UserError
from inception_jax.models.googlenet import Logits

# The second epoch begins within step 45, so that of 24 pixels is from step 46 to 59.
OPTIONS = (
    "--config.data.train_sizes=(16, 24)",
    "--config.eval.sizes=(24,)",
    "--config.accumulation=2",
    "--config.log_every_steps=1",
    "--config.eval.every_steps=40",
    "--config.checkpoint.every_steps=50",
)
DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
NAMES = ("top1", "top5", "loss")


@pytest.fixture(scope="module")
def finished(run_main, tmp_path_factory):
    """An uninterrupted run of 59 steps on two devices: its workdir and its process."""
    workdir = tmp_path_factory.mktemp("sizes") / "run"
    env = DEVICES | {"JAX_LOG_COMPILES": "1"}
    return workdir, run_main(*OPTIONS, "--config.epochs=1.3", f"--workdir={workdir}", env=env)


@pytest.mark.slow
def test_every_evaluation_is_repeated_at_the_further_size(finished):
    workdir, process = finished
    evaluations = [row for row in rows(workdir) if row["kind"] == "eval"]
    assert [row["step"] for row in evaluations] == [40, 59]
    for row in evaluations:
        assert row["examples"] == 360
        for end in ("", "_24"):
            assert 0 <= row[f"top1{end}"] <= row[f"top5{end}"] <= 1
        assert row["loss"] != row["loss_24"]
    results = json.loads((workdir / "results.json").read_text())
    assert results["best"]["top1"] == max(row["top1"] for row in evaluations)
    lines = [line for line in process.stdout.splitlines() if "evaluation: " in line]
    told = []
    for row in evaluations:
        for end, where in (("", ""), ("_24", "  at 24 pixels")):
            top1, top5, loss = (f"{row[name + end]:.4f}" for name in NAMES)
            numbers = f"top-1 {top1}  top-5 {top5}  loss {loss}  (360 images){where}"
            told.append(f"step {row['step']}  epoch {row['epoch']:.1f}  evaluation: {numbers}")
    assert lines == told
    table = process.stdout[process.stdout.index("Results") :]
    for shown, name in (("top-1", "top1"), ("top-5", "top5"), ("loss", "loss")):
        assert results[f"{name}_24"] == evaluations[-1][f"{name}_24"]
        assert results[name] == evaluations[-1][name]
        assert re.search(rf"^ *{shown} +{results[name]:.4f}", table, re.M)
        assert re.search(rf"^ *{shown} at 24 pixels +{results[f'{name}_24']:.4f}", table, re.M)


@pytest.mark.slow
def test_each_size_is_compiled_once(finished):
    for name in ("train_step", "eval_step"):
        done = re.findall(rf"Finished XLA compilation of jit\({name}\)", finished[1].stderr)
        assert len(done) == 2, name


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0.9, 1.12])  # 41 and 51 steps, before and after the change
def test_a_run_that_stopped_at_either_size_goes_on_to_the_same_end(
    epochs, finished, run_main, tmp_path
):
    """The rate does not depend on the length, so that the first part is that of the whole run."""
    constant = ("--config.schedule.name=step", "--config.schedule.factor=1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_main(*OPTIONS, *constant, "--config.epochs=1.3", f"--workdir={whole}", env=DEVICES)
    for length in (epochs, 1.3):
        options = (*OPTIONS, *constant, f"--config.epochs={length}", f"--workdir={parts}")
        process = run_main(*options, env=DEVICES)
    assert process.stdout.startswith(f"going on from step {round(epochs * 1437 / 32 + 0.49)} in")
    at_the_end = [row for row in rows(parts) if row["kind"] == "eval" and row["step"] % 40]
    assert len(at_the_end) == 2  # the one of the first part's end is not of the whole run
    assert [row for row in rows(parts) if row is not at_the_end[0]] == rows(whole)

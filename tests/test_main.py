"""The main job as a user meets it: what it prints, what it leaves behind, how it fails."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SMALL, arrays, rows, start_main

from inception_jax.checkpoint import verify

MAIN = (sys.executable, "-m", "inception_jax.main", *SMALL)
SHORT = ("--config.epochs=0.6", "--config.checkpoint.every_steps=10", "--config.log_every_steps=5")


@pytest.fixture(scope="module")
def finished(run_main, tmp_path_factory):
    """An uninterrupted run of 27 steps: its workdir and what it printed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, run_main(*SHORT, f"--workdir={workdir}")


def failed(process):
    """Asserts that a process ended with one line for its user, and returns the line."""
    assert process.returncode != 0
    lines = process.stderr.splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_the_terminal_shows_our_lines_only(finished):
    workdir, process = finished
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[0] == f"new run in {workdir}"
    assert lines[1].startswith("step 5/27  loss ")
    assert lines[2].startswith("step 27  epoch 0.6  evaluation: top-1 0.")
    assert lines[3] == "Results"
    assert "parameters" in process.stdout


def test_a_terminal_has_a_progress_bar_with_loss_rate_speed_and_time_left(tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MAIN, *SHORT, f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
        stdout=theirs,
        stderr=subprocess.STDOUT,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    bar = r"step 25/27 [^a-z]+ loss \d+\.\d{4}  rate \S+  \d+ images/s [0-9:-]+ left"
    assert re.search(bar, text), text
    assert re.search(r"step 27  epoch 0.6  evaluation: top-1 0\.\d{4}", text)


def test_results_hold_what_a_table_needs(finished):
    workdir, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["step"] == 27
    assert results["epoch"] == pytest.approx(27 * 32 / 1437)
    assert results["examples"] == 360
    assert 0 <= results["top1"] <= results["top5"] <= 1
    assert results["best"] == {"step": 27, "top1": results["top1"]}
    assert results["images_per_second"] > 0
    assert results["wall_seconds"] > 27 * 32 / results["images_per_second"]
    assert results["versions"].keys() >= {"jax", "flax", "optax", "python", "inception_jax"}
    assert results["config"]["model"]["width"] == 0.0625
    assert results["config"] == json.loads((workdir / "config.json").read_text())
    last = [row for row in rows(workdir) if row["kind"] == "eval"][-1]
    assert {name: last[name] for name in ("step", "top1", "top5", "loss")} == {
        name: results[name] for name in ("step", "top1", "top5", "loss")
    }
    parameters = [a.size for name, a in arrays(workdir, 27).items() if "'params'" in name]
    assert results["parameters"] == sum(parameters)


def test_a_finished_run_started_again_only_reports(finished, run_main):
    workdir, first = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    again = run_main(*SHORT, f"--workdir={workdir}")
    assert again.stdout.splitlines()[0] == f"finished at step 27 in {workdir}"
    table = first.stdout[first.stdout.index("Results") :].splitlines()[:5]
    assert again.stdout[again.stdout.index("Results") :].splitlines()[:5] == table
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_is_not_relabelled_with_another_config(finished, run_main):
    """Its numbers are those of the config that it was trained with."""
    workdir, _ = finished
    before = {name: (workdir / name).read_bytes() for name in ("results.json", "config.json")}
    again = run_main(*SHORT, f"--workdir={workdir}", "--config.schedule.rate=0.5")
    assert again.stderr == ""
    assert "config.schedule.rate: 0.1 before, 0.5 now" in again.stdout
    assert {name: (workdir / name).read_bytes() for name in before} == before


def test_the_record_of_a_finished_run_outlives_its_checkpoints(finished, run_main, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    error = failed(run_main(*SHORT, f"--workdir={workdir}", check=False))
    assert f"a run was finished in {workdir}, and its checkpoints are gone" in error
    assert rows(workdir) == rows(finished[0])


def test_each_step_is_compiled_once_in_a_run(run_main, tmp_path):
    """Three evaluations and a resume's kind of state among them."""
    process = run_main(
        f"--workdir={tmp_path}",
        *SHORT,
        "--config.eval.every_steps=10",
        env={"JAX_LOG_COMPILES": "1"},
    )
    for name in ("train_step", "eval_step"):
        compiled = re.findall(rf"Finished XLA compilation of jit\({name}\)", process.stderr)
        assert len(compiled) == 1, name
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "eval"] == [10, 20, 27]


def test_output_into_a_file_has_no_escape_codes_and_a_closed_pipe_stops_nothing(tmp_path):
    for number, environment in enumerate(({"FORCE_COLOR": "1"}, {})):
        workdir = tmp_path / str(number)
        process = subprocess.Popen(
            [*MAIN, *SHORT, f"--workdir={workdir}"],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if number:
            process.stdout.close()
            process.stdout = None
        out, error = process.communicate(timeout=300)
        assert (process.returncode, error) == (0, b"")
        assert b"\x1b" not in (out or b"")
        assert (workdir / "results.json").exists()


def wait_for_step(workdir, step):
    """Waits until metrics.jsonl has a row of that step or a later one."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        log = workdir / "metrics.jsonl"
        if log.exists() and any(row["step"] >= step for row in rows(workdir)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} did not come")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_line_it_prints_goes_on(number, tmp_path):
    options = ("--config.epochs=3", "--config.log_every_steps=1", f"--workdir={tmp_path}")
    process = start_main(*options)
    wait_for_step(tmp_path, 1)
    process.send_signal(number)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    name = signal.Signals(number).name
    last = out.splitlines()[-1]
    assert last.startswith(f"stopped by {name} at step ")
    assert out.splitlines()[-2].startswith(f"{name}: stopping after this step")
    step = int(last.split("at step ")[1].split(",")[0])
    assert 1 <= step < 135
    assert verify(tmp_path / "checkpoints" / str(step)) is None
    assert not (tmp_path / "results.json").exists()
    line = last.split("go on with: ")[1]
    again = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[0] == f"going on from step {step} in {tmp_path}"
    steps = [row["step"] for row in rows(tmp_path) if row["kind"] == "train"]
    assert steps == list(range(1, 136))


def test_a_damaged_newest_checkpoint_is_named_and_the_end_is_the_same(finished, run_main, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    meta = workdir / "checkpoints" / "27" / "meta.json"
    meta.write_text(meta.read_text().replace("27", "28"))
    (workdir / "results.json").unlink()
    process = run_main(*SHORT, f"--workdir={workdir}")
    lines = process.stdout.splitlines()
    assert lines[0] == ("checkpoint 27 is damaged (meta.json is damaged): set aside as 27.damaged1")
    assert lines[1] == f"going on from step 20 in {workdir}"
    assert process.stderr == ""
    first, second = arrays(finished[0], 27), arrays(workdir, 27)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    assert rows(workdir) == rows(finished[0])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.model.width=0.125", "has config.model.width=0.0625, not 0.125"),
        ("--config.batch_size=64", "has config.batch_size=32, not 64"),
        ("--config.data.eval_split=train", "has config.data.eval_split=test, not train"),
    ],
)
def test_a_workdir_of_another_run_is_refused_and_left_alone(finished, run_main, override, message):
    workdir, _ = finished
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"}
    error = failed(run_main(*SHORT, f"--workdir={workdir}", override, check=False))
    assert message in error
    assert "take another --workdir" in error
    after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before


def test_a_run_starts_from_another_and_says_so(finished, run_main, tmp_path):
    """And leaves nothing behind where the weights do not fit."""
    workdir, _ = finished
    options = (f"--config.init_from={workdir}", f"--workdir={tmp_path}/run")
    process = run_main(*SHORT, *options, "--config.model.kernel_5x5=3", check=False)
    assert process.returncode == 1
    first, *others = process.stderr.splitlines()
    assert first.startswith(
        f"error: the weights in {workdir}/checkpoints/27 do not fit the network"
    )
    assert "  params/inception_3a/5x5/kernel: [5,5,1,2], not [3,3,1,2]" in others
    assert not (tmp_path / "run").exists()
    process = run_main(*SHORT, *options, "--config.data.mean=(1.0,2.0,3.0)")
    assert process.stderr == ""
    assert process.stdout.splitlines()[:2] == [
        f"from {workdir}: googlenet, images of 16 pixels, std (64.0, 64.0, 64.0)",
        f"new run in {tmp_path}/run",
    ]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["data"]["mean"] == [1.0, 2.0, 3.0]


def test_what_is_not_finite_stops_at_its_step_and_keeps_the_last_good(finished, run_main, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    longer = (f"--workdir={workdir}", *SHORT, "--config.epochs=1.2", "--config.schedule.rate=1e30")
    error = failed(run_main(*longer, check=False))
    # 27 steps of 54: the cosine is at half of its height
    assert "training param_norm became inf at step 28 (rate 5e+29); checkpoint 27 is good" in error
    assert rows(workdir) == rows(finished[0])
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir())[-1] == "27"
    assert verify(workdir / "checkpoints" / "27") is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.data.image_size=7"], "images of 7 pixels are too small for GoogLeNet: set"),
        (
            ["--config.model.modules=4a", "--config.model.auxiliary_heads=true"],
            "too small for the auxiliary heads: set",
        ),
        (["--config.batch_size=33"], "config.batch_size=33 is not divisible by 2 devices x 1 acc"),
        (["--config.accumulation=5"], "take 30, or another multiple of 10"),
        (["--config.mesh.model=3"], "config.mesh.model=3 cannot lay out 2 devices"),
        (
            ["--config.compile_cache=pyproject.toml/x"],
            "cannot write to config.compile_cache pyproject.toml/x: Not a directory; take another",
        ),
        (["--config.epochs=1", "--config.profile=45:47"], "end of the run at step 45: take a STOP"),
        (["--config.data.name=digit"], "unknown data set 'digit'"),
        (["--config.data.name=mnist"], "data set mnist is not in "),
        (["--config.data.eval_split=validation"], "digits has no split 'validation'"),
        (
            ["--workdir=pyproject.toml/run"],
            "cannot write to workdir pyproject.toml/run: Not a directory",
        ),
    ],
)
def test_what_cannot_run_is_one_line_and_makes_nothing(run_main, tmp_path, overrides, message):
    workdir = tmp_path / "run"
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    process = run_main(f"--workdir={workdir}", *overrides, env=two, check=False)
    assert message in failed(process)
    assert not workdir.exists()


def test_a_full_disk_is_one_line(finished, tmp_path):
    """A limit on the size of files stands in for a full disk: any user may set it.

    The finished run has left the same programs in the compile cache, where no more may be written.
    """
    process = subprocess.run(
        [
            "bash",
            "-c",
            f'ulimit -f 10; exec {sys.executable} -m inception_jax.main "$@"',
            "_",
            *SMALL,
            *SHORT,
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "could not save checkpoint 10 to " in failed(process)


def test_two_runs_never_share_a_workdir(finished, run_main):
    workdir, _ = finished
    with open(workdir / ".lock", "w") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        process = run_main(*SHORT, f"--workdir={workdir}", check=False)
    assert f"another run is writing to {workdir}" in failed(process)

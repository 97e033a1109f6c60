"""Jobs of Slurm: arguments arrive as they were typed, and jobs are queued again as they should."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from dry import AWKWARD, CONFIG, WAITING, check_shell, dry_run, files, main_job, shell

from launch import slurm


@pytest.mark.parametrize("bucket", [(), ("--bucket=gs://some-bucket/runs",)])
def test_slurm(tmp_path, bucket):
    options = ("--nodes=2", "--gpus_per_node=4", "--partition=gpu", "--time=1-00:00:00", *bucket)
    workdir = tmp_path / "first"
    printed = dry_run(slurm, *AWKWARD, *options, f"--workdir={workdir}")
    ((path, script),) = files(printed).items()
    assert shell(tmp_path, printed, "sbatch") == [["sbatch", path]]
    assert (workdir / "slurm.sh").read_text() == script
    assert re.findall("^#SBATCH (.*)$", script, re.M) == [
        *("--job-name=first", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4"),
        *("--cpus-per-gpu=8", "--partition=gpu", "--time=1-00:00:00"),
        *(f"--output={workdir}/slurm-%j.log", "--open-mode=append", "--signal=B:USR1@120"),
        "--requeue",
    ]
    *_, command = shell(tmp_path, script, "srun")
    assert command[0] == "srun"
    if bucket:
        assert command[1:3] == ["bash", "-c"]
        check_shell(command[3])
        python = sys.executable
        text = command[3].replace(python, "python")
        for rank, copying in (("0", True), ("1", False)):
            *_, started = shell(tmp_path, f"export SLURM_PROCID={rank}\n{text}", "python")
            copied = f"{bucket[0]}{workdir}"
            assert (copied in started) == copying
            started = [part for part in started if part != copied]
            assert main_job(started, workdir) == [*AWKWARD, WAITING, f"--workdir={workdir}"]
    else:
        assert main_job(command, workdir) == [*AWKWARD, WAITING, f"--workdir={workdir}"]


# Of Slurm, as its manual has it: srun kills what it runs if it gets SIGTERM itself, and scancel
# sends a signal to that and not to the batch script. What is run saves when it gets SIGTERM.
SLURM = {
    "srun": """
        bash -c 'trap "touch saved; exit 143" TERM; echo $$ >step; kill -USR1 $1
            for _ in {1..300}; do sleep 0.1; done' run "$TO_SIGNAL" &
        trap 'kill -KILL "$(cat step)"' TERM
        wait $!; exit $?""",
    "scancel": '[ "$*" = "--signal=TERM 1" ] && kill -TERM "$(cat step)"',
    "scontrol": 'echo "scontrol $*" >>seen',
    "sleep": 'if [ "$1" = 600 ]; then echo "sleep $1" >>seen; else exec /bin/sleep "$1"; fi',
}


@pytest.fixture
def batch(tmp_path):
    """Returns batch(srun) -> (exit code, what was called) of the script, by stand-ins."""

    def run(srun=SLURM["srun"]):
        printed = dry_run(slurm, CONFIG, f"--workdir={tmp_path}/first")
        (script,) = files(printed).values()
        script = script.replace(f"cd {ROOT}\n", "export TO_SIGNAL=$$\n")
        (tmp_path / "bin").mkdir()
        for name, text in (SLURM | {"srun": srun}).items():
            (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        finished = subprocess.run(
            ["bash", "-c", script],
            env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "1"},
            cwd=tmp_path,
            check=False,
            timeout=60,
        )
        seen = tmp_path / "seen"
        return finished.returncode, seen.read_text() if seen.exists() else ""

    return run


def test_a_slurm_job_whose_time_is_nearly_over_saves_and_is_queued_again(batch, tmp_path):
    assert batch() == (0, "scontrol requeue 1\n")
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("code", "called"), [(0, ""), (1, ""), (143, "sleep 600\n")], ids=["end", "failure", "taken"]
)
def test_a_slurm_job_that_ends_by_itself_is_not_queued_again(batch, code, called):
    """Nor is one that was cancelled; what was preempted is queued by Slurm."""
    assert batch(f"exit {code}") == (code, called)


def test_slurm_in_a_container(tmp_path):
    """Commas are Pyxis's own, and in the folders of a sweep's trials."""
    workdir = tmp_path / "some" / "model.branches=1x1,pool"
    data = "--config.data.dir=/sets"
    printed = dry_run(slurm, CONFIG, data, "--container=i:1", f"--workdir={workdir}")
    *_, command = shell(tmp_path, next(iter(files(printed).values())), "srun")
    assert command[:4] == [
        *("srun", "--container-image=i:1", f"--container-mounts={ROOT},{workdir.parent},/sets"),
        f"--container-workdir={ROOT}",
    ]
    assert command[4] == "python3"
    assert main_job(command, workdir) == [CONFIG, data, WAITING, f"--workdir={workdir}"]

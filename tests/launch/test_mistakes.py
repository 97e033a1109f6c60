"""What cannot be launched is told in a line."""

import pytest
from conftest import ROOT
from dry import CLOUD, CONFIG

from launch import gke, local, slurm, tpu


@pytest.mark.parametrize(
    ("launcher", "arguments", "told"),
    [
        (local, ("--workdir=x", "--config=configs/digit.py"), "configs/digit.py does not exist"),
        (local, (CONFIG, "--workdir=x", "--config.model.lnr=1"), "did you mean config.model.lrn?"),
        (local, (CONFIG, "--workdir=x", "--config.epochs=-1"), "config.epochs"),
        (local, (CONFIG,), "no --workdir given"),
        (local, (CONFIG, "--workdir=x", "--num_processes=0"), "--num_processes=0: it must be 1"),
        (local, (CONFIG, "--workdir=x", "--num_proceses=2"), "did you mean --num_processes?"),
        (local, (CONFIG, "--workdir=x", "--bucket=b"), "--bucket=b is no bucket"),
        (slurm, (CONFIG, "--workdir=x", "--nodes=0"), "--nodes=0: it must be 1 or more"),
        (slurm, (CONFIG, "--workdir=x", "--partition=a b"), "--partition=a b: sbatch reads"),
        (slurm, (CONFIG, "--workdir=a b"), "--workdir=a b: sbatch reads"),
        (slurm, (CONFIG, "--workdir=a%j"), "--workdir=a%j: sbatch reads"),
        (slurm, (CONFIG, "--workdir=a,b/c", "--container=i"), "Pyxis mounts no folder with ,"),
        (tpu, (CONFIG, *CLOUD, "--workdir=a[b]", "--zone=z"), "--workdir=a[b]: gcloud looks for"),
        (gke, (CONFIG, *CLOUD, "--cluster=c"), "--cluster=c is for --xpk"),
        (
            gke,
            (CONFIG, *CLOUD, "--topology=v5e:2x2", "--num_slices=2"),
            "--num_slices=2: GKE joins slices of several hosts only, which v5e:2x2 is not",
        ),
        (tpu, (CONFIG, *CLOUD), "no --zone given"),
        (tpu, (CONFIG, *CLOUD[1:], "--zone=z"), "no --name given"),
        (tpu, (CONFIG, *CLOUD, "--name=A_b", "--zone=z"), "--name='A_b': it must be of a-z"),
        (gke, (CONFIG, *CLOUD, "--topology=v5e:5x5"), "v5e:5x5 is unknown: take one of v5e:1x1"),
        (gke, (CONFIG, *CLOUD, "--topology=cpu:2"), "cpu:2 is no TPU"),
        (gke, (CONFIG, *CLOUD, "--workdir=/x"), "it must be a folder in gs://some-bucket"),
        (gke, (CONFIG, *CLOUD, "--xpk"), "no --cluster given"),
        (gke, (f"--config={ROOT}/configs/digits.py", *CLOUD), "only what is in"),
    ],
)
def test_mistakes_are_told_in_a_line(launcher, arguments, told, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert launcher.main(["launch", *arguments, "--dry_run"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("launcher", "arguments", "program"),
    [
        (slurm, ("--workdir=x",), "sbatch"),
        (gke, CLOUD, "kubectl"),
        (tpu, (*CLOUD, "--zone=z"), "gcloud"),
        (gke, (*CLOUD, "--xpk", "--cluster=c"), "xpk"),
    ],
)
def test_a_tool_that_is_not_installed_is_told(launcher, arguments, program, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "")
    assert launcher.main(["launch", CONFIG, *arguments]) == 1
    _, error = capsys.readouterr()
    assert error.startswith(f"error: {program} is not installed here")
    assert error.count("\n") == 1

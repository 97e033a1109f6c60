"""Queued resources of Cloud TPU and what their hosts do: every argument arrives as it was typed."""

import os
import re
import subprocess

import pytest
from dry import AWKWARD, CLOUD, CONFIG, WAITING, dry_run, files, main_job, shell

from launch import tpu


def test_cloud_tpu(tmp_path):
    printed = dry_run(tpu, *AWKWARD, *CLOUD, "--zone=us-west4-a", "--spot", "--project=p")
    ((path, script),) = files(printed).items()
    create, look, state, delete = shell(tmp_path, printed, "gcloud")
    assert create == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "first"),
        *("--zone=us-west4-a", "--project=p", "--node-id=first"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"),
        *(f"--metadata-from-file=startup-script={path}", "--spot"),
    ]
    assert look[1:] == ["storage", "ls", "gs://some-bucket/a folder/runs/first/"]
    where = ["--zone=us-west4-a", "--project=p"]
    assert state[4:] == ["list", "--format=json", *where]
    assert delete[4:] == ["delete", "first", "--force", "--quiet", *where]
    workdir = "/mnt/bucket/a folder/runs/first"
    programs = ("gcsfuse", "docker", "gcloud", "mkdir", "tee", "cp")
    seen = [
        each for each in shell(tmp_path, script, *programs) if each[0] not in ("mkdir", "tee", "cp")
    ]
    *_, gcsfuse, login, pull, remove, docker = seen
    assert gcsfuse == [
        *("gcsfuse", "--implicit-dirs", "--enable-streaming-writes=false"),
        *("--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0"),
        *("-o", "allow_other", "some-bucket", "/mnt/bucket"),
    ]
    assert login == ["gcloud", "auth", "configure-docker", "us-docker.pkg.dev", "--quiet"]
    image = "us-docker.pkg.dev/p/r/i:1"
    assert pull == ["docker", "pull", "--quiet", image]
    assert remove == ["docker", "rm", "--force", "inception_jax"]
    at = docker.index("python")
    assert docker[:at] == [
        *("docker", "run", "--name", "inception_jax", "--privileged", "--network", "host"),
        *("--stop-timeout", "60", "--volume", "/mnt/bucket:/mnt/bucket", image),
    ]
    assert main_job(docker, workdir) == [*AWKWARD, WAITING, f"--workdir={workdir}"]


@pytest.mark.parametrize(
    ("topology", "accelerator", "runtime"),
    [  # as Cloud TPU's pages list them
        ("v4:2x2x2", "v4-16", "tpu-ubuntu2204-base"),
        ("v5e:1x1", "v5litepod-1", "v2-alpha-tpuv5-lite"),
        ("v5p:2x2x2", "v5p-16", "v2-alpha-tpuv5"),
        ("v6e:16x16", "v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_names_of_tpus_and_of_their_runtimes(topology, accelerator, runtime, tmp_path):
    printed = dry_run(tpu, CONFIG, *CLOUD, "--zone=z", f"--topology={topology}")
    create, *_ = shell(tmp_path, printed, "gcloud")
    names = {f"--accelerator-type={accelerator}", f"--runtime-version={runtime}"}
    assert names <= set(create)
    assert "--spot" not in create


def test_several_slices_of_cloud_tpu(tmp_path):
    options = ("--num_slices=2", "--topology=v5p:2x2x2", "--zone=z")
    create, *_ = shell(tmp_path, dry_run(tpu, CONFIG, *CLOUD, *options), "gcloud")
    assert {"--node-count=2", "--node-prefix=first", "--accelerator-type=v5p-16"} <= set(create)
    assert "--node-id=first" not in create


@pytest.fixture
def host(tmp_path):
    """Returns host(**programs) -> (exit code, what was left in gave_up.txt, log in the bucket).

    The startup script is run with the programs given, as lines of sh.
    """
    told, bucket = tmp_path / "gave_up.txt", tmp_path / "bucket"
    programs = tmp_path / "bin"
    programs.mkdir()
    copied = "storage cp - gs://some-bucket/a folder/runs/first/gave_up.txt"

    def run(**given):
        printed = dry_run(tpu, CONFIG, *CLOUD, "--zone=z")
        script = next(iter(files(printed).values())).replace("/mnt/bucket", str(bucket))
        every = {
            "gcloud": f'if [ "$*" = "{copied}" ]; then cat >{told}; fi',
            "mountpoint": "exit 1",
            "gcsfuse": "exit 0",
            "sleep": "exec /bin/sleep 0.1",
        }
        for name, text in (every | given).items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        path = {"PATH": f"{programs}:{os.environ['PATH']}"}
        finished = subprocess.run(["bash", "-c", script], env=path, check=False, timeout=60)
        why = told.read_text() if told.exists() else ""
        logs = sorted((bucket / "a folder/runs/first").glob("*.log"))
        return finished.returncode, why, [log.read_text() for log in logs]

    return run


@pytest.mark.parametrize("code", [0, 3, 143])
def test_what_a_run_says_itself_is_the_end_of_a_host(host, code):
    """Finished, given up, stopped: by launch.until_finished."""
    assert host(docker=f'[ "$1" != run ] || {{ echo "a word"; exit {code}; }}') == (
        *(code, ""),
        ["a word\n"],
    )


@pytest.mark.parametrize("code", [1, 125, 137])
def test_a_container_that_never_works_gives_the_tpus_back(host, code):
    """As of an image without this code; else they would wait for a run that never comes."""
    ended, told, logs = host(docker=f'[ "$1" != run ] || {{ echo "a word"; exit {code}; }}')
    assert ended == code
    assert told.endswith(f": the container ended with exit code {code}, 3 times\n")
    assert logs == [3 * "a word\n"]


def test_a_container_that_fails_once_is_run_again(host, tmp_path):
    once = f"if [ ! -e {tmp_path}/failed ]; then touch {tmp_path}/failed; exit 137; fi"
    assert host(docker=f'[ "$1" != run ] || {{ {once}; }}')[:2] == (0, "")
    assert (tmp_path / "failed").exists()


def test_a_log_that_is_not_copied_ends_nothing(host):
    assert host(docker="exit 0", cp="exit 1") == (0, "", [])


@pytest.mark.parametrize("program", ["gcsfuse", "docker"])
def test_a_host_that_cannot_begin_gives_the_tpus_back(host, program):
    """As where there is no such bucket or image: told by gcloud, which needs no mounted bucket."""
    ended, told, _ = host(**{program: "exit 9"})
    assert ended == 9
    assert re.search(r"line \d+ of the startup script failed\n$", told)


def test_what_fails_for_a_while_is_tried_again(host, tmp_path):
    once = f"if [ ! -e {tmp_path}/failed ]; then touch {tmp_path}/failed; exit 9; fi"
    assert host(gcsfuse=once, docker="exit 0")[:2] == (0, "")
    assert (tmp_path / "failed").exists()

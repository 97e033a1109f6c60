"""What launchers would run, run with stand-ins: every argument arrives as it was typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import ROOT

from launch import gke, local, slurm, tpu

SHELLCHECK = Path(sys.executable).with_name("shellcheck")  # the environment's, active or not
CONFIG = "--config=configs/digits.py"
AWKWARD = (
    CONFIG,
    '--config.data.dir=/a b/it\'s "quoted" $HOME $(date) `date` \\n %s #',
    "--config.init_from=two\nlines",
    '--config.optim.rate_factors=((".*bias", 2.0), (".*", 1.0))',
    "--config.model.lrn=true",
)
CLOUD = (
    *("--name=first", "--topology=v5e:4x4", "--image=us-docker.pkg.dev/p/r/i:1"),
    *("--bucket=gs://some-bucket/a folder", "--workdir=runs/first"),
)
# Says what it was started with, in place of any program.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""


@pytest.fixture
def shell(tmp_path):
    """Returns shell(text, *programs) -> what those programs were started with by a script."""

    def run(text, *programs):
        check_shell(text)
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for program in programs:
            (folder / program).write_text(STAND_IN)
            (folder / program).chmod(0o755)
        seen = tmp_path / "seen"
        path = f"{folder}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-c", text],
            env={"PATH": path, "SEEN": str(seen), "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"},
            cwd=tmp_path,
            check=True,
        )
        return [json.loads(line) for line in seen.read_text().splitlines()]

    return run


@pytest.fixture
def dry_run(capsys, monkeypatch):
    """Returns dry_run(launcher, *arguments) -> what it prints."""
    monkeypatch.chdir(ROOT)

    def run(launcher, *arguments):
        code = launcher.main(["launch", *arguments, "--dry_run"])
        out, error = capsys.readouterr()
        assert (code, error) == (0, ""), error
        return out

    return run


def check_shell(text):
    """Runs shellcheck; arguments are to stay as typed, $ and all, which SC2016 doubts."""
    command = [SHELLCHECK, "--shell=bash", "--exclude=SC2016", "-"]
    checked = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def main_job(command, workdir):
    """The arguments of the main job behind launch.until_finished, which is checked."""
    at = command.index("--")
    assert command[at - 3 : at] == ["-m", "launch.until_finished", f"--workdir={workdir}"]
    assert command[at + 2 : at + 4] == ["-m", "inception_jax.main"]
    return command[at + 4 :]


def files(printed):
    """What a dry run writes, by name."""
    found = re.findall(r"cat > (\S+) <<'END_OF_FILE'\n(.*?)^END_OF_FILE$", printed, re.S | re.M)
    return dict(found)


WAITING = "--config.cluster.start_timeout=1800"


def test_several_processes_here(dry_run, shell, tmp_path, monkeypatch):
    python = tmp_path / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    printed = dry_run(local, *AWKWARD, f"--workdir={tmp_path}/a b", "--num_processes", "3")
    seen = shell(printed, "python")
    assert len(seen) == 3
    for number, command in enumerate(sorted(seen, key=lambda command: command[-1])):
        head, address, *others = command[:-3], *command[-3:]
        assert head == ["python", "-m", "inception_jax.main", *AWKWARD, f"--workdir={tmp_path}/a b"]
        assert re.fullmatch(r"--coordinator_address=localhost:\d+", address)
        assert others == ["--num_processes=3", f"--process_id={number}"]


@pytest.mark.parametrize("value", ["workdir", "bucket=x", "dry_run", "num_processes"])
def test_values_are_not_taken_for_the_launchers_flags(dry_run, shell, tmp_path, monkeypatch, value):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    arguments = ("--config", "configs/digits.py", "--config.data.dir", value, "--config.seed", "3")
    printed = dry_run(local, *arguments, "--workdir", "x")
    (command,) = shell(printed, "python")
    expected = (CONFIG, f"--config.data.dir={value}", "--config.seed=3", "--workdir=x")
    assert command[3:] == [*expected]


def test_one_process_needs_no_address(dry_run, tmp_path):
    printed = dry_run(local, CONFIG, f"--workdir={tmp_path}")
    assert printed.count("\n") == 1
    assert "coordinator" not in printed


@pytest.mark.parametrize("bucket", [(), ("--bucket=gs://some-bucket/runs",)])
def test_slurm(dry_run, shell, tmp_path, bucket):
    options = ("--nodes=2", "--gpus_per_node=4", "--partition=gpu", "--time=1-00:00:00", *bucket)
    workdir = tmp_path / "first"
    printed = dry_run(slurm, *AWKWARD, *options, f"--workdir={workdir}")
    ((path, script),) = files(printed).items()
    assert shell(printed, "sbatch") == [["sbatch", path]]
    assert (workdir / "slurm.sh").read_text() == script
    assert re.findall("^#SBATCH (.*)$", script, re.M) == [
        *("--job-name=first", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4"),
        *("--cpus-per-gpu=8", "--partition=gpu", "--time=1-00:00:00"),
        *(f"--output={workdir}/slurm-%j.log", "--open-mode=append", "--signal=B:USR1@120"),
        "--requeue",
    ]
    *_, command = shell(script, "srun")
    assert command[0] == "srun"
    if bucket:
        assert command[1:3] == ["bash", "-c"]
        check_shell(command[3])
        python = sys.executable
        text = command[3].replace(python, "python")
        for rank, copying in (("0", True), ("1", False)):
            *_, started = shell(f"export SLURM_PROCID={rank}\n{text}", "python")
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
def batch(dry_run, tmp_path):
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


def test_slurm_in_a_container(dry_run, shell, tmp_path):
    """Commas are Pyxis's own, and in the folders of a sweep's trials."""
    workdir = tmp_path / "some" / "model.branches=1x1,pool"
    data = "--config.data.dir=/sets"
    printed = dry_run(slurm, CONFIG, data, "--container=i:1", f"--workdir={workdir}")
    *_, command = shell(next(iter(files(printed).values())), "srun")
    assert command[:4] == [
        *("srun", "--container-image=i:1", f"--container-mounts={ROOT},{workdir.parent},/sets"),
        f"--container-workdir={ROOT}",
    ]
    assert command[4] == "python3"
    assert main_job(command, workdir) == [CONFIG, data, WAITING, f"--workdir={workdir}"]


def test_cloud_tpu(dry_run, shell):
    printed = dry_run(tpu, *AWKWARD, *CLOUD, "--zone=us-west4-a", "--spot", "--project=p")
    ((path, script),) = files(printed).items()
    create, look, state, delete = shell(printed, "gcloud")
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
    seen = [each for each in shell(script, *programs) if each[0] not in ("mkdir", "tee", "cp")]
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
def test_names_of_tpus_and_of_their_runtimes(dry_run, shell, topology, accelerator, runtime):
    printed = dry_run(tpu, CONFIG, *CLOUD, "--zone=z", f"--topology={topology}")
    create, *_ = shell(printed, "gcloud")
    names = {f"--accelerator-type={accelerator}", f"--runtime-version={runtime}"}
    assert names <= set(create)
    assert "--spot" not in create


@pytest.fixture
def host(dry_run, tmp_path):
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


def test_several_slices_of_cloud_tpu(dry_run, shell):
    options = ("--num_slices=2", "--topology=v5p:2x2x2", "--zone=z")
    create, *_ = shell(dry_run(tpu, CONFIG, *CLOUD, *options), "gcloud")
    assert {"--node-count=2", "--node-prefix=first", "--accelerator-type=v5p-16"} <= set(create)
    assert "--node-id=first" not in create


def expanded(text):
    """As Kubernetes reads a command: $$ is a $, and $(NAME) of a known variable its value."""
    return re.sub(r"\$(\$|\(\w+\))", lambda m: "$" if m[1] == "$" else "EXPANDED", text)


@pytest.fixture(scope="module")
def jobset_schema():
    """As published in kubernetes-sigs/jobset, config/components/crd, under Apache-2.0."""
    definition = yaml.safe_load((ROOT / "tests/launch/jobset.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    assert version["name"] == "v1alpha2"
    return version["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize(
    ("topology", "slices", "accelerator", "hosts", "chips"),
    [
        ("v5e:4x4", 3, "tpu-v5-lite-podslice", 4, 4),
        ("v5e:1x1", 1, "tpu-v5-lite-podslice", 1, 1),
        ("v5p:2x2x2", 3, "tpu-v5p-slice", 2, 4),
        ("v6e:16x16", 2, "tpu-v6e-slice", 64, 4),
        ("v6e:2x4", 1, "tpu-v6e-slice", 2, 4),
        ("v4:2x2x1", 1, "tpu-v4-podslice", 1, 4),
    ],
)
def test_gke(dry_run, shell, jobset_schema, topology, slices, accelerator, hosts, chips):
    options = (f"--topology={topology}", f"--num_slices={slices}", "--service_account=writer")
    printed = dry_run(gke, *AWKWARD, *CLOUD, *options)
    ((path, text),) = files(printed).items()
    assert shell(printed, "kubectl") == [["kubectl", "apply", "--filename", path]]
    manifest = yaml.safe_load(text)
    strict(jobset_schema)
    jsonschema.validate(manifest, jobset_schema)
    assert manifest["metadata"] == {
        "name": "first",
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == slices
    one = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    kubernetes_validate.validate(one | replicated["template"], "1.33", strict=True)
    spec = replicated["template"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (hosts, hosts)
    assert (spec["completionMode"], spec["backoffLimit"]) == ("Indexed", 0)
    assert spec["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    pod = spec["template"]["spec"]
    (container,) = pod.pop("containers")
    (volume,) = pod.pop("volumes")
    assert pod == {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 300,
        "serviceAccountName": "writer",
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
        },
    }
    assert volume["csi"] == {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {
            "bucketName": "some-bucket",
            "mountOptions": "implicit-dirs,write:enable-streaming-writes:false,"
            "metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0",
        },
    }
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/bucket"}]
    assert container["image"] == "us-docker.pkg.dev/p/r/i:1"
    assert container["securityContext"] == {"privileged": True}
    assert container["resources"] == {"limits": {"google.com/tpu": chips}}
    workdir = "/mnt/bucket/a folder/runs/first"
    command = [expanded(part) for part in container["command"]]
    assert main_job(command, workdir) == [*AWKWARD, WAITING, f"--workdir={workdir}"]


def strict(schema):
    """Makes a schema refuse what it does not know, as the API server does when told to."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
            if schema is not None and "metadata" in schema["properties"]:
                schema["properties"]["metadata"] = {"type": "object"}
        for value in schema.values():
            strict(value)
    elif isinstance(schema, list):
        for value in schema:
            strict(value)


def test_only_a_run_that_gave_up_is_not_started_again(dry_run):
    """By its own exit code, which neither a traceback nor SIGTERM has."""
    manifest = yaml.safe_load(next(iter(files(dry_run(gke, CONFIG, *CLOUD)).values())))
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 1000
    (failing,) = policy["rules"]
    assert failing["action"] == "FailJobSet"
    assert failing["onJobFailureReasons"] == ["PodFailurePolicy"]
    (slices,) = manifest["spec"]["replicatedJobs"]
    (rule,) = slices["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "main", "operator": "In", "values": [3]}


def test_a_misspelt_field_of_a_manifest_is_caught(dry_run, jobset_schema):
    manifest = yaml.safe_load(next(iter(files(dry_run(gke, CONFIG, *CLOUD)).values())))
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    strict(jobset_schema)
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(manifest, jobset_schema)


def test_xpk(dry_run, shell):
    (command,) = shell(dry_run(gke, *AWKWARD, *CLOUD, "--xpk", "--cluster=c"), "xpk")
    *options, last = command
    assert options == [
        *("xpk", "workload", "create", "--workload=first", "--cluster=c"),
        *("--tpu-type=v5litepod-16", "--num-slices=1"),
        *("--docker-image=us-docker.pkg.dev/p/r/i:1", "--max-restarts=1000"),
        "--termination-grace-period-seconds=300",
    ]
    inner = last.removeprefix("--command=")
    *_, started = shell(inner, "python")
    workdir = "/mnt/bucket/a folder/runs/first"
    assert main_job(started, workdir) == [*AWKWARD, WAITING, f"--workdir={workdir}"]


def test_a_timeout_that_is_given_stays(dry_run):
    given = "--config.cluster.start_timeout=60"
    printed = dry_run(gke, CONFIG, given, *CLOUD)
    assert given in printed
    assert WAITING not in printed


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

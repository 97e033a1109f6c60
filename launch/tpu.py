"""Runs the main job on Cloud TPU, by queued resources, until it is finished.

python -m launch.tpu --name=first --topology=v5e:4x4 --zone=us-west4-a --spot --image=IMAGE \\
    --bucket=gs://my-bucket --config=configs/imagenet_pod.py --workdir=runs/first

Asks for the TPUs, which run the job on each of their hosts as soon as they are there, and watches.
What was preempted is asked for again, and the run goes on; when it is finished, or fails again and
again, the TPUs are given back. What hosts say is in DIR/*.log, a minute late. Ctrl-C stops
watching only: the same line goes on watching.
"""

import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags

from inception_jax import process
from inception_jax.errors import UserError
from inception_jax.plan import topology
from launch import bucket, cloud, job
from launch.processes import STOPPED
from launch.until_finished import GAVE_UP, HOPELESS

FLAGS_HELP = """\
  --zone=ZONE               that has such TPUs
  --project=NAME            gcloud's own if not given
  --spot                    cheaper, and may be taken away at any time
  --runtime_version=NAME    of the TPU's hosts; one that fits the topology if not given
"""
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
GONE = ("FAILED", "SUSPENDED")
SECONDS = 60  # between looks, and between copies of what hosts say
ATTEMPTS = 3  # of Cloud TPU or of a host in a row; what fails then does not pass
PATIENCE = 30  # looks at active hosts that leave nothing in the bucket
SECONDS_TO_SAVE = 60


@process.command(__doc__, job.HELP + cloud.FLAGS_HELP + FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    asked = read(argv)
    text = startup(asked)
    path = Path(f"{asked.flags.name}-startup.sh")
    if asked.flags.dry_run:
        print(job.file_shown(path, text))
        print(job.shown(create(asked, path)))
        print(f"# every {SECONDS} s, until the first of these lists results.json or {GAVE_UP}:")
        print(job.shown(["gcloud", "storage", "ls", _folder(asked)]))
        print(job.shown(_gcloud(asked, "list", "--format=json")))
        print(f"# as soon as it is {' or '.join(GONE)}, and create it again; and at the end:")
        print(job.shown(_delete(asked)))
        return
    job.need("gcloud")
    check_bucket(asked)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / path
        path.write_text(text)
        watch(asked, create(asked, path))


def read(argv: list[str]) -> job.Job:
    """Reads the command line and checks it; raises a UserError."""
    asked = job.read(argv, _define, (*cloud.NEEDED, "zone")).for_latecomers()
    cloud.check(asked)
    return asked


def check_bucket(asked: job.Job) -> None:
    """Raises UserError if folders are not renamed at once; what may not be looked at passes."""
    name = f"gs://{cloud.bucket_name(asked)}"
    command = ["gcloud", "storage", "buckets", "describe", name, "--raw", "--format=json"]
    described = subprocess.run(command, check=False, capture_output=True, text=True)
    if described.returncode:
        return
    if not json.loads(described.stdout).get("hierarchicalNamespace", {}).get("enabled"):
        raise UserError(
            f"{name} has no hierarchical namespace, without which a checkpoint can be seen half"
            " renamed: gcloud storage buckets create makes one with --uniform-bucket-level-access"
            " --enable-hierarchical-namespace"
        )


def watch(
    asked: job.Job, creation: list[str], wait: Callable[[], None] = lambda: time.sleep(SECONDS)
) -> None:
    """Asks for TPUs until the run is finished, and gives them back.

    Args:
      asked: the job.
      creation: from create.
      wait: between two looks.

    Raises:
      UserError: the run failed again and again, or the TPUs, or gcloud did at first.
    """
    name, folder = asked.flags.name, _folder(asked)
    files = _files(asked)
    if "results.json" in files:
        job.say(f"{name}: finished before; to go on with more, remove {folder}results.json")
    elif GAVE_UP in files and not _state(asked)[0]:  # an earlier attempt, whose end was told
        job.run(["gcloud", "storage", "rm", folder + GAVE_UP], capture_output=True)
        files.remove(GAVE_UP)
    told, failed, silent = None, 0, 0
    while not {"results.json", GAVE_UP} & files and failed < ATTEMPTS:
        try:
            state, why = _attend(asked, creation)
            if state != told:
                job.say(f"{name}: {state or 'asked for'}{why and f', as {why}'}")
                failed = {"FAILED": failed + 1, "ACTIVE": 0}.get(state, failed)
                told = state
            silent = silent + 1 if state == "ACTIVE" and not files else 0
            if silent == PATIENCE:
                job.say(f"{name}: its hosts have left nothing in {folder} yet: look at one of them")
        except UserError as error:
            if told is None:
                raise
            job.say(f"{name}: {error}")  # and look again, as the network may be back then
        wait()
        with _told_only(name):
            files = _files(asked)
    _give_back(asked, wait)
    where = f"its TPUs are given back; see {folder}"
    if failed == ATTEMPTS:
        raise UserError(f"{name} could not be had, {ATTEMPTS} times in a row: see above for why")
    if "results.json" not in files:
        raise UserError(f"{name} failed again and again, and {where}{GAVE_UP} and *.log there")
    if told is not None:
        job.say(f"{name}: finished, and {where}")


def create(asked: job.Job, startup_script: Path) -> list[str]:
    """The command that asks for the TPUs."""
    own = asked.flags
    generation, _ = topology.parse(own.topology)
    nodes = [f"--node-id={own.name}"]
    if own.num_slices > 1:
        nodes = [f"--node-count={own.num_slices}", f"--node-prefix={own.name}"]
    return [
        *_gcloud(asked, "create", own.name),
        *nodes,
        f"--accelerator-type={cloud.accelerator_type(asked)}",
        f"--runtime-version={own.runtime_version or RUNTIMES[generation]}",
        f"--metadata-from-file=startup-script={startup_script}",
        *(["--spot"] if own.spot else []),
    ]


def startup(asked: job.Job) -> str:
    """What every host runs when it has come up."""
    registry, slash, _ = asked.flags.image.partition("/")
    options = [
        f"--{name}={value}" if group == "write" else f"--{group}-{name}={value}"
        for group, each in cloud.MOUNT.items()
        for name, value in each.items()
    ]
    return _SCRIPT.format(
        bucket=shlex.quote(cloud.bucket_name(asked)),
        mounted=cloud.MOUNTED,
        options=" ".join(options),
        registry=shlex.quote(registry if slash and "." in registry else ""),
        image=shlex.quote(asked.flags.image),
        seconds=SECONDS_TO_SAVE,
        between=SECONDS,
        attempts=ATTEMPTS,
        known=f"0 | {HOPELESS} | {STOPPED}",  # what launch.until_finished ends with
        command=job.shown(cloud.until_finished(asked)),
        workdir=shlex.quote(cloud.mounted(asked)),
        gave_up=shlex.quote(_folder(asked) + GAVE_UP),
    )


_SCRIPT = """\
#!/usr/bin/env bash
set -Eeuo pipefail
bucket={bucket}
registry={registry}
image={image}
workdir={workdir}

give_up() {{
  echo "$(hostname): $1" | gcloud storage cp - {gave_up}
}}
trap 'give_up "line $LINENO of the startup script failed"' ERR

again() {{  # what may fail for a while
  for _ in 1 2 3 4; do
    if "$@"; then return; fi
    sleep 15
  done
  "$@"
}}

install_gcsfuse() {{
  source=https://packages.cloud.google.com/apt
  key=/usr/share/keyrings/cloud.google.asc
  again curl --silent --show-error --fail --output "$key" "$source/doc/apt-key.gpg"
  echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release --codename --short) main" \
    >/etc/apt/sources.list.d/gcsfuse.list
  again apt-get -o DPkg::Lock::Timeout=600 --quiet update
  again apt-get -o DPkg::Lock::Timeout=600 --quiet --yes install gcsfuse
}}
command -v gcsfuse >/dev/null || install_gcsfuse
mkdir -p {mounted}
mountpoint --quiet {mounted} ||
  again gcsfuse --implicit-dirs {options} -o allow_other "$bucket" {mounted}

mkdir -p "$workdir"
if [ -n "$registry" ]; then
  gcloud auth configure-docker "$registry" --quiet
fi
again docker pull --quiet "$image"

# What is said goes into the bucket as whole files.
log=$(mktemp)
kept="$workdir/$(hostname)-$(date +%Y%m%dT%H%M%S).log"
keep() {{
  cp "$log" "$kept" || true
}}
while sleep {between}; do keep; done >/dev/null 2>&1 &
copying=$!
for _ in $(seq {attempts}); do
  docker rm --force inception_jax >/dev/null 2>&1 || true
  code=0
  docker run --name inception_jax --privileged --network host --stop-timeout {seconds} \\
    --volume {mounted}:{mounted} "$image" \\
    {command} 2>&1 | tee --append "$log" || code=$?
  case "$code" in {known}) break ;; esac
  sleep {between}
done
kill "$copying" || true
keep
case "$code" in
  {known}) ;;
  *) give_up "the container ended with exit code $code, {attempts} times" ;;
esac
exit "$code"
"""


def _gcloud(asked, verb, *arguments):
    own = asked.flags
    where = [f"--zone={own.zone}", *([f"--project={own.project}"] if own.project else [])]
    return ["gcloud", "compute", "tpus", "queued-resources", verb, *arguments, *where]


def _delete(asked):
    return _gcloud(asked, "delete", asked.flags.name, "--force", "--quiet")


def _attend(asked, creation):
    """Deletes what was taken away, and asks for TPUs where there are none.

    Returns:
      The state that was found, and why it failed; empty strings where there was none.
    """
    state, why = _state(asked)
    if state in GONE:
        job.run(_delete(asked), capture_output=True)
    elif not state:
        job.run(creation, capture_output=True)
    return state, why


def _give_back(asked, wait):
    """Deletes the queued resource if it is there, with some patience, as it costs money."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if _state(asked)[0]:
                job.run(_delete(asked), capture_output=True)
            return
        except UserError as error:
            if attempt == ATTEMPTS:
                raise UserError(
                    f"{asked.flags.name} has ended, but its TPUs may still be there ({error}): type"
                    f" {job.shown(_delete(asked))}"
                ) from None
            wait()


def _state(asked):
    """Of the queued resource, and why it failed; empty strings where there is none."""
    listed = job.run(_gcloud(asked, "list", "--format=json"), capture_output=True)
    for resource in json.loads(listed.stdout or "[]"):
        if resource["name"].rpartition("/")[2] == asked.flags.name:
            state = resource["state"]
            error = state.get("failedData", {}).get("error", {})
            return state["state"], " ".join(error.get("message", "").split())
    return "", ""


def _folder(asked):
    """The run's folder, as the bucket has it."""
    return f"{asked.flags.bucket.rstrip('/')}/{asked.workdir.rstrip('/')}/"


def _files(asked):
    """What is in the run's folder; nothing, as long as there is none."""
    listed = bucket.told("ls", _folder(asked))
    return {line.rstrip("/").rpartition("/")[2] for line in listed.splitlines()}


@contextlib.contextmanager
def _told_only(name):
    """Says what fails for a while, as a network that is away."""
    try:
        yield
    except UserError as error:
        job.say(f"{name}: {error}")


def _define(values):
    cloud.define(values)
    for name in ("zone", "project", "runtime_version"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_boolean("spot", False, "", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""Runs the main job on Cloud TPU, by queued resources, until it is finished.

python -m launch.tpu --name=first --topology=v5e:4x4 --zone=us-west4-a --spot --image=IMAGE \\
    --bucket=gs://my-bucket --config=configs/imagenet_pod.py --workdir=runs/first

Asks for the TPUs, which run the job on each of their hosts as soon as they are there, and watches.
What was preempted is asked for again, and the run goes on; when it is finished, or fails again and
again, the TPUs are given back. The bucket has what hosts say, in DIR/HOST.log. Ctrl-C stops
watching only: the same line goes on watching.
"""

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
from launch import cloud, job
from launch.until_finished import GAVE_UP

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
SECONDS = 60  # between looks
SECONDS_TO_SAVE = 60


@process.command(__doc__, job.HELP + cloud.FLAGS_HELP + FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    asked = job.read(argv, _define, (*cloud.NEEDED, "zone")).for_latecomers()
    generation, shape = cloud.check(asked)
    text = startup(asked)
    path = Path(f"{asked.flags.name}-startup.sh")
    if asked.flags.dry_run:
        print(job.file_shown(path, text))
        print(job.shown(create(asked, generation, shape, path)))
        print(f"# every {SECONDS} s, until the first of these lists results.json or {GAVE_UP}:")
        print(job.shown(_look(asked)))
        print(job.shown(_gcloud(asked, "list", "--format=json")))
        print(f"# as soon as it is {' or '.join(GONE)}, and create it again; and at the end:")
        print(job.shown(_delete(asked)))
        return
    job.need("gcloud")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / path
        path.write_text(text)
        watch(asked, create(asked, generation, shape, path))


def watch(
    asked: job.Job, creation: list[str], wait: Callable[[], None] = lambda: time.sleep(SECONDS)
) -> None:
    """Asks for TPUs until the run is finished, and gives them back.

    Args:
      asked: the job.
      creation: from create.
      wait: between two looks.

    Raises:
      UserError: the run failed again and again, or gcloud did at first.
    """
    name = asked.flags.name
    _quietly(["gcloud", "storage", "rm", _folder(asked) + GAVE_UP])  # of an earlier attempt
    told = None
    while not (ended := {"results.json", GAVE_UP} & _files(asked)):
        begun = told is not None
        try:
            state = _state(asked)
            if state != told:
                job.say(f"{name}: {state or 'asked for'}")
                told = state
            if state in GONE:
                job.run(_delete(asked), capture_output=True)
            elif not state:
                job.run(creation, capture_output=True)
        except UserError as error:
            if not begun:
                raise
            job.say(f"{name}: {error}")  # and look again, as the network may be back then
        wait()
    if _state(asked):
        job.run(_delete(asked), capture_output=True)
    where = f"its TPUs are given back; see {_folder(asked)}"
    if GAVE_UP in ended:
        raise UserError(f"{name} failed again and again, and {where}{GAVE_UP} and *.log there")
    job.say(f"{name}: finished, and {where}")


def create(asked: job.Job, generation: str, shape: str, startup_script: Path) -> list[str]:
    """The command that asks for the TPUs."""
    own = asked.flags
    nodes = [f"--node-id={own.name}"]
    if own.num_slices > 1:
        nodes = [f"--node-count={own.num_slices}", f"--node-prefix={own.name}"]
    return [
        *_gcloud(asked, "create", own.name),
        *nodes,
        f"--accelerator-type={cloud.accelerator_type(generation, shape)}",
        f"--runtime-version={own.runtime_version or RUNTIMES[generation]}",
        f"--metadata-from-file=startup-script={startup_script}",
        *(["--spot"] if own.spot else []),
    ]


def startup(asked: job.Job) -> str:
    """What every host runs when it has come up."""
    registry, slash, _ = asked.flags.image.partition("/")
    return _SCRIPT.format(
        bucket=shlex.quote(cloud.bucket_name(asked)),
        mounted=cloud.MOUNTED,
        registry=shlex.quote(registry if slash and "." in registry else ""),
        image=shlex.quote(asked.flags.image),
        seconds=SECONDS_TO_SAVE,
        command=job.shown(cloud.until_finished(asked)),
        workdir=shlex.quote(cloud.mounted(asked)),
        gave_up=GAVE_UP,
        log=f'{shlex.quote(cloud.mounted(asked))}/"$(hostname)".log',
    )


_SCRIPT = """\
#!/usr/bin/env bash
set -euo pipefail
bucket={bucket}
registry={registry}
image={image}

if ! command -v gcsfuse >/dev/null; then
  source=https://packages.cloud.google.com/apt
  key=/usr/share/keyrings/cloud.google.asc
  curl --silent --show-error --fail --output "$key" "$source/doc/apt-key.gpg"
  echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release --codename --short) main" \\
    >/etc/apt/sources.list.d/gcsfuse.list
  apt-get update --quiet
  apt-get install --quiet --yes gcsfuse
fi
mkdir -p {mounted}
# With whole files what is flushed is in the bucket; else a file is there once it is closed.
mountpoint --quiet {mounted} ||
  gcsfuse --implicit-dirs --enable-streaming-writes=false -o allow_other "$bucket" {mounted}

mkdir -p {workdir}
if [ -n "$registry" ]; then
  gcloud auth configure-docker "$registry" --quiet
fi
docker rm --force inception_jax 2>/dev/null || true
code=0
docker run --name inception_jax --privileged --network host --stop-timeout {seconds} \\
  --volume {mounted}:{mounted} "$image" \\
  {command} 2>&1 | tee --append {log} || code=$?
if [ "$code" -ge 125 ] && [ "$code" -le 127 ]; then  # docker's own, as of a wrong image
  echo "docker run ended with exit code $code" >{workdir}/{gave_up}
fi
exit "$code"
"""


def _gcloud(asked, verb, *arguments):
    own = asked.flags
    where = [f"--zone={own.zone}", *([f"--project={own.project}"] if own.project else [])]
    return ["gcloud", "compute", "tpus", "queued-resources", verb, *arguments, *where]


def _delete(asked):
    return _gcloud(asked, "delete", asked.flags.name, "--force", "--quiet")


def _state(asked):
    """Of the queued resource, or an empty string where there is none."""
    listed = job.run(_gcloud(asked, "list", "--format=json"), capture_output=True)
    for resource in json.loads(listed.stdout or "[]"):
        if resource["name"].rpartition("/")[2] == asked.flags.name:
            return resource["state"]["state"]
    return ""


def _folder(asked):
    """The run's folder, as the bucket has it."""
    return f"{asked.flags.bucket.rstrip('/')}/{asked.workdir.rstrip('/')}/"


def _look(asked):
    return ["gcloud", "storage", "ls", _folder(asked)]


def _files(asked):
    """What is in the run's folder; nothing, as long as there is none."""
    return {line.rpartition("/")[2] for line in _quietly(_look(asked)).splitlines()}


def _quietly(command):
    """What a command prints, which may fail."""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def _define(values):
    cloud.define(values)
    for name in ("zone", "project", "runtime_version"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_boolean("spot", False, "", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

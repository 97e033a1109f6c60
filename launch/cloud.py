"""What Cloud TPU and GKE have in common: slices, the container image, the bucket as a folder."""

import math
import posixpath
import re

from absl import flags

from inception_jax.errors import UserError
from inception_jax.plan import topology
from inception_jax.plan.chips import CHIPS
from launch import bucket, job

MOUNTED = "/mnt/bucket"
# Options of Cloud Storage FUSE, by their groups. With whole files what is flushed is in the bucket;
# else a file is there once it is closed. Without a cache a host sees what another has written.
MOUNT = {
    "write": {"enable-streaming-writes": "false"},
    "metadata-cache": {"ttl-secs": "0", "negative-ttl-secs": "0"},
}
NEEDED = ("name", "image", "bucket", "topology")
FLAGS_HELP = """\
  --name=NAME               of the job
  --topology=v5e:4x4        the slice of TPUs, as the plan command has it; a wrong one lists all
  --num_slices=N            of them; 1 if not given
  --image=IMAGE             the container, built by launch/Dockerfile.tpu
  --bucket=gs://BUCKET/FOLDER
                            is mounted on all hosts; DIR is a folder in it, as in runs/first. It
                            needs a hierarchical namespace, in which folders are renamed at once
"""


def define(values: flags.FlagValues) -> None:
    """Adds the flags."""
    for name in NEEDED:
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_integer("num_slices", 1, "", flag_values=values)


def check(asked: job.Job) -> None:
    """Checks the flags, and that the job's config and folder are where it will run.

    Raises:
      UserError: one of them will not do.
    """
    own = asked.flags
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", own.name):
        raise UserError(
            f"--name={own.name!r}: it must be of a-z, 0-9 and -, begin with a letter, not end with"
            " -, and have 40 characters at most"
        )
    bucket.check(own.bucket)
    if own.num_slices < 1:
        raise UserError(f"--num_slices={own.num_slices}: it must be 1 or more")
    if topology.parse(own.topology)[0] == "cpu":
        raise UserError(f"--topology={own.topology} is no TPU; launch.local runs on this machine")
    if asked.workdir.startswith(("/", "gs:")) or ".." in asked.workdir.split("/"):
        raise UserError(
            f"--workdir={asked.workdir}: it must be a folder in {own.bucket}, as in runs/first"
        )
    if re.search(r"[*?#\[\]\n]", own.bucket + asked.workdir):
        raise UserError(
            f"--workdir={asked.workdir}: gcloud looks for other names where one has * ? # [ or ]"
        )
    job.within(asked.source)


def chips(shape: str) -> int:
    """How many a slice has."""
    return math.prod(map(int, shape.split("x")))


def accelerator_type(asked: job.Job) -> str:
    """A slice by Cloud TPU's name for it, which counts cores of v4 and v5p and chips of others."""
    generation, shape = topology.parse(asked.flags.topology)
    named = {"v5e": "v5litepod"}.get(generation, generation)
    return f"{named}-{CHIPS[generation].cores * chips(shape)}"


def mounted(asked: job.Job) -> str:
    """The run's folder as its hosts see it."""
    _, _, folder = asked.flags.bucket.removeprefix("gs://").partition("/")
    return posixpath.join(MOUNTED, folder, asked.workdir)


def bucket_name(asked: job.Job) -> str:
    """The bucket without the folder."""
    return asked.flags.bucket.removeprefix("gs://").partition("/")[0]


def until_finished(asked: job.Job) -> list[str]:
    """What runs on each host."""
    workdir = mounted(asked)
    again = ["python", "-m", "launch.until_finished", f"--workdir={workdir}"]
    return [*again, "--", *asked.command(workdir)]

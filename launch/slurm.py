"""Submits the main job to Slurm: GPUs of one or several nodes, a process a node.

python -m launch.slurm --nodes=2 --gpus_per_node=8 --time=24:00:00 \\
    --config=configs/imagenet.py --workdir=/shared/runs/imagenet

Two minutes before its time is over the job saves and queues itself, until it is finished; where it
is preempted, Slurm does. All nodes need this folder, its Python environment and DIR, as on a
shared disk. Accounts and the like are given by variables of sbatch, as SBATCH_ACCOUNT.
"""

import re
import shlex
import sys
from pathlib import Path

from absl import flags

from inception_jax import process
from inception_jax.errors import UserError
from launch import bucket, job
from launch.processes import STOPPED

FLAGS_HELP = """\
  --name=NAME               of the job; DIR's last part if not given
  --nodes=N                 1 if not given
  --gpus_per_node=N         8 if not given
  --cpus_per_gpu=N          to read and decode images; 8 if not given
  --partition=NAME          the cluster's default if not given
  --time=D-HH:MM:SS         that a stretch may take; the partition's limit if not given
  --container=IMAGE         run in it, where the cluster has Pyxis (srun --container-image)
  --bucket=gs://BUCKET/FOLDER
                            keeps a copy there, in FOLDER/DIR, and fetches it where it is ahead
"""
SECONDS_TO_SAVE = 120
SECONDS_TO_BE_TAKEN = 600


@process.command(__doc__, job.HELP + FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    asked = read(argv)
    workdir = Path(asked.workdir).absolute()
    path = workdir / "slurm.sh"
    text = script(asked, workdir)
    submit = ["sbatch", str(path)]
    if asked.flags.dry_run:
        print(f"mkdir -p {shlex.quote(str(workdir))}")
        print(job.file_shown(path, text))
        print(job.shown(submit))
        return
    job.need("sbatch")
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    job.run(submit)


def read(argv: list[str]) -> job.Job:
    """Reads the command line and checks it; raises a UserError."""
    asked = job.read(argv, _define).for_latecomers()
    for name in ("nodes", "gpus_per_node", "cpus_per_gpu"):
        if asked.flags[name].value < 1:
            raise UserError(f"--{name}={asked.flags[name].value}: it must be 1 or more")
    for name in ("name", "partition", "time", "workdir"):
        if re.search(r"""[\s"'\\#%]""", asked.flags[name].value):
            raise UserError(
                f"--{name}={asked.flags[name].value}: sbatch reads no spaces, quotes, \\, # or % in"
                " it"
            )
    if asked.flags.bucket:
        bucket.check(asked.flags.bucket)
    return asked


def script(asked: job.Job, workdir: Path) -> str:
    """What sbatch is given."""
    own = asked.flags
    options = {
        "job-name": own.name or workdir.name,
        "nodes": own.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": own.gpus_per_node,
        "cpus-per-gpu": own.cpus_per_gpu,
        "partition": own.partition,
        "time": own.time,
        "output": workdir / "slurm-%j.log",
        "open-mode": "append",
        "signal": f"B:USR1@{SECONDS_TO_SAVE}",
    }
    lines = [f"#SBATCH --{name}={v}" for name, v in options.items() if v]
    container = [f"--container-image={own.container}"] if own.container else []
    if container:
        container += [f"--container-mounts={_mounts(asked, workdir)}"]
        container += [f"--container-workdir={job.ROOT}"]
    python = "python3" if container else sys.executable
    again = [python, "-m", "launch.until_finished", f"--workdir={workdir}"]
    main_job = asked.command(workdir, python)
    if not own.bucket:
        run = job.shown(["srun", *container, *again, "--", *main_job])
    else:  # one copy is enough
        to = bucket.folder(own.bucket, asked.workdir)
        copying = job.shown([*again, f"--bucket={to}", "--", *main_job])
        alone = job.shown([*again, "--", *main_job])
        each = f'if [ "$SLURM_PROCID" = 0 ]; then exec {copying}; else exec {alone}; fi'
        run = job.shown(["srun", *container, "bash", "-c", each])
    return _SCRIPT.format(
        options="\n".join(lines),
        root=shlex.quote(str(job.ROOT)),
        run=run,
        stopped=STOPPED,
        patience=SECONDS_TO_BE_TAKEN,
    )


_SCRIPT = """\
#!/usr/bin/env bash
{options}
#SBATCH --requeue
set -euo pipefail
cd {root}

# When the time is nearly over. By scancel, as srun kills what it runs when it gets SIGTERM itself.
over=
trap 'over=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

{run} &
step=$!
code=0
wait "$step" || code=$?
if [ -n "$over" ]; then  # which ended the wait
  code=0
  wait "$step" || code=$?
fi
if [ "$code" = {stopped} ]; then
  if [ -n "$over" ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
  fi
  sleep {patience}  # preempted or cancelled: Slurm takes the nodes, and queues what it preempted
fi
exit "$code"
"""


def _mounts(asked, workdir):
    """What a container sees of the disks, as Pyxis takes it: the code, the runs, the data."""
    # the folder above, as those of sweeps have commas in their names
    folders = [str(job.ROOT), str(workdir.parent)]
    if (asked.config.data.dir or "").startswith("/"):
        folders.append(asked.config.data.dir)
    for folder in folders:
        if "," in folder or ":" in folder:
            raise UserError(f"--container: Pyxis mounts no folder with , or : in it: {folder}")
    return ",".join(folders)


def _define(values):
    for name in ("name", "partition", "time", "container", "bucket"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_integer("nodes", 1, "", flag_values=values)
    flags.DEFINE_integer("gpus_per_node", 8, "", flag_values=values)
    flags.DEFINE_integer("cpus_per_gpu", 8, "", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

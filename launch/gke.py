"""Submits the main job to TPUs of a GKE cluster, as a JobSet or through xpk.

python -m launch.gke --name=first --topology=v5e:4x4 --image=IMAGE --bucket=gs://my-bucket \\
    --config=configs/imagenet_pod.py --workdir=runs/first

A preempted job starts again and goes on. The bucket is mounted with the cluster's Cloud Storage
FUSE driver. A JobSet that has ended keeps its name: kubectl delete jobset NAME before the same line
goes on with more.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from absl import flags

from inception_jax import process
from inception_jax.errors import UserError
from inception_jax.plan import topology
from launch import cloud, job
from launch.until_finished import HOPELESS

FLAGS_HELP = """\
  --service_account=NAME    of Kubernetes, which may write to the bucket; default if not given
  --xpk                     create a workload with xpk instead; the bucket has to be attached to its
                            cluster at /mnt/bucket (xpk storage attach)
  --cluster=NAME            for xpk
"""
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
CHIPS_A_HOST = 4
SECONDS_TO_SAVE = 300


@process.command(__doc__, job.HELP + cloud.FLAGS_HELP + FLAGS_HELP)
def main(argv: list[str]) -> None:
    """Runs the command line."""
    asked = read(argv)
    if asked.flags.xpk:
        command = xpk_command(asked)
        if asked.flags.dry_run:
            print(job.shown(command))
        else:
            job.run(command)
        return
    text = yaml.safe_dump(manifest(asked), sort_keys=False, width=1000)
    path = Path(f"{asked.flags.name}.yaml")
    if asked.flags.dry_run:
        print(job.file_shown(path, text))
        print(job.shown(["kubectl", "apply", "--filename", str(path)]))
        return
    job.need("kubectl")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / path
        path.write_text(text)
        job.run(["kubectl", "apply", "--filename", str(path)])


def read(argv: list[str]) -> job.Job:
    """Reads the command line and checks it; raises a UserError."""
    asked = job.read(argv, _define, cloud.NEEDED).for_latecomers()
    own = asked.flags
    cloud.check(asked)
    if own.xpk and not own.cluster:
        raise UserError("no --cluster given; see --help")
    if own.cluster and not own.xpk:
        raise UserError(
            f"--cluster={own.cluster} is for --xpk: kubectl takes the cluster of its context"
        )
    if own.num_slices > 1 and _hosts(own) == 1:
        raise UserError(
            f"--num_slices={own.num_slices}: GKE joins slices of several hosts only, which"
            f" {own.topology} is not"
        )
    return asked


def manifest(asked: job.Job) -> dict[str, Any]:
    """The JobSet."""
    own = asked.flags
    generation, shape = topology.parse(own.topology)
    hosts = _hosts(own)
    container = {
        "name": "main",
        "image": own.image,
        # Kubernetes would put variables in for $(NAME); $$ is a $.
        "command": [part.replace("$", "$$") for part in cloud.until_finished(asked)],
        "securityContext": {"privileged": True},  # to lock as much memory as the chips map
        "resources": {"limits": {"google.com/tpu": min(cloud.chips(shape), CHIPS_A_HOST)}},
        "volumeMounts": [{"name": "bucket", "mountPath": cloud.MOUNTED}],
    }
    options = [f"{group}:{k}:{v}" for group, each in cloud.MOUNT.items() for k, v in each.items()]
    volume = {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {
            "bucketName": cloud.bucket_name(asked),
            "mountOptions": ",".join(["implicit-dirs", *options]),
        },
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SECONDS_TO_SAVE,
        "serviceAccountName": own.service_account,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[generation],
            "cloud.google.com/gke-tpu-topology": shape,
        },
        "containers": [container],
        "volumes": [{"name": "bucket", "csi": volume}],
    }
    one_slice = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # a host that is gone takes all with it, and the JobSet begins anew
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "main",
                        "operator": "In",
                        "values": [HOPELESS],
                    },
                }
            ]
        },
        "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": own.name,
            "annotations": {  # a slice a node pool
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": 1000,  # each is a preemption
                "rules": [
                    {
                        "name": "gaveup",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": own.num_slices, "template": {"spec": one_slice}}
            ],
        },
    }


def xpk_command(asked: job.Job) -> list[str]:
    """The same by xpk, which makes the manifest."""
    own = asked.flags
    return [
        *("xpk", "workload", "create"),
        f"--workload={own.name}",
        f"--cluster={own.cluster}",
        f"--tpu-type={cloud.accelerator_type(asked)}",
        f"--num-slices={own.num_slices}",
        f"--docker-image={own.image}",
        "--max-restarts=1000",
        f"--termination-grace-period-seconds={SECONDS_TO_SAVE}",
        f"--command={job.shown(cloud.until_finished(asked))}",
    ]


def _hosts(own):
    """Of a slice, in a pool of machines with CHIPS_A_HOST chips, or with the one that it has."""
    return max(cloud.chips(topology.parse(own.topology)[1]) // CHIPS_A_HOST, 1)


def _define(values):
    cloud.define(values)
    flags.DEFINE_string("service_account", "default", "", flag_values=values)
    flags.DEFINE_boolean("xpk", False, "", flag_values=values)
    flags.DEFINE_string("cluster", "", "", flag_values=values)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

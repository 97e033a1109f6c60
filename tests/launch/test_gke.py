"""Manifests of GKE, held to the published schemas: every argument arrives as it was typed."""

import re

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import ROOT
from dry import AWKWARD, CLOUD, CONFIG, WAITING, dry_run, files, main_job, shell

from launch import gke


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
def test_gke(jobset_schema, topology, slices, accelerator, hosts, chips, tmp_path):
    options = (f"--topology={topology}", f"--num_slices={slices}", "--service_account=writer")
    printed = dry_run(gke, *AWKWARD, *CLOUD, *options)
    ((path, text),) = files(printed).items()
    assert shell(tmp_path, printed, "kubectl") == [["kubectl", "apply", "--filename", path]]
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


def test_only_a_run_that_gave_up_is_not_started_again():
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


def test_a_misspelt_field_of_a_manifest_is_caught(jobset_schema):
    manifest = yaml.safe_load(next(iter(files(dry_run(gke, CONFIG, *CLOUD)).values())))
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    strict(jobset_schema)
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(manifest, jobset_schema)


def test_xpk(tmp_path):
    (command,) = shell(tmp_path, dry_run(gke, *AWKWARD, *CLOUD, "--xpk", "--cluster=c"), "xpk")
    *options, last = command
    assert options == [
        *("xpk", "workload", "create", "--workload=first", "--cluster=c"),
        *("--tpu-type=v5litepod-16", "--num-slices=1"),
        *("--docker-image=us-docker.pkg.dev/p/r/i:1", "--max-restarts=1000"),
        "--termination-grace-period-seconds=300",
    ]
    inner = last.removeprefix("--command=")
    *_, started = shell(tmp_path, inner, "python")
    workdir = "/mnt/bucket/a folder/runs/first"
    assert main_job(started, workdir) == [*AWKWARD, WAITING, f"--workdir={workdir}"]


def test_a_timeout_that_is_given_stays():
    given = "--config.cluster.start_timeout=60"
    printed = dry_run(gke, CONFIG, given, *CLOUD)
    assert given in printed
    assert WAITING not in printed

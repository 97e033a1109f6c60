"""Which process this is, as Cloud TPU, GKE, Slurm, Open MPI or a person tell it."""

import http.server
import threading

import pytest
from jax._src.clusters import cloud_tpu_cluster, cluster

from inception_jax.cluster import Cluster, find
from inception_jax.errors import UserError

NOTHING = (None, None, None)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """The variables of what may run these tests."""
    for name in (
        "SLURM_JOB_ID",
        "SLURM_STEP_NUM_NODES",
        "OMPI_MCA_orte_hnp_uri",
        "KUBERNETES_SERVICE_HOST",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def on_tpu(monkeypatch):
    """As on a machine with TPUs."""
    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)


def set_all(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_laptop_is_no_cluster():
    assert find(*NOTHING, timeout=1) is None


def test_what_a_person_gives_counts(monkeypatch):
    set_all(monkeypatch, **SLURM)
    assert find("10.0.0.1:1234", 4, 3, timeout=1) == Cluster("10.0.0.1:1234", 4, 3)
    assert find("[fd00::1]:1234", 2, 0, timeout=1) == Cluster("[fd00::1]:1234", 2, 0)


def test_one_process_is_no_cluster(monkeypatch):
    assert find("localhost:1234", 1, 0, timeout=1) is None
    set_all(monkeypatch, **SLURM)
    assert find(None, 1, None, timeout=1) is None
    set_all(monkeypatch, **SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert find(*NOTHING, timeout=1) is None


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[03-06]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_slurm(monkeypatch):
    """A process for each GPU, as jax has it; ports follow from the job's number."""
    set_all(monkeypatch, **SLURM)
    assert find(*NOTHING, timeout=1) == Cluster(f"gpu03:{2**16 - 2**12 + 3}", 8, 5, [1])


def test_slurm_jobs_on_one_node_do_not_share_ports(monkeypatch):
    """Each takes its port and the one below; consecutive numbers are usual."""
    taken = set()
    for job in range(3000, 3000 + 2048):
        set_all(monkeypatch, **SLURM | {"SLURM_JOB_ID": str(job)})
        port = int(find(*NOTHING, timeout=1).address.rpartition(":")[2])
        taken |= {port - 1, port}
    assert len(taken) == 2 * 2048
    assert max(taken) < 2**16


def test_one_process_a_node_has_all_its_gpus(monkeypatch):
    set_all(monkeypatch, **SLURM, SLURM_STEP_NUM_NODES="4")
    assert find(*NOTHING, timeout=1).devices == [1]
    set_all(monkeypatch, SLURM_NTASKS="4", SLURM_PROCID="2", SLURM_LOCALID="0")
    assert find(*NOTHING, timeout=1)[1:] == (4, 2, None)


def test_open_mpi(monkeypatch):
    uri = "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"
    set_all(monkeypatch, OMPI_MCA_orte_hnp_uri=uri, OMPI_COMM_WORLD_SIZE="2")
    set_all(monkeypatch, OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_LOCAL_RANK="0")
    found = find(*NOTHING, timeout=1)
    assert (found.count, found.index, found.devices) == (2, 1, [0])
    assert found.address.startswith("10.96.0.1:")


def test_gke(monkeypatch, on_tpu):
    set_all(monkeypatch, TPU_SKIP_MDS_QUERY="1", TPU_WORKER_ID="2")
    set_all(monkeypatch, TPU_WORKER_HOSTNAMES="localhost,host-1,host-2,host-3")
    set_all(monkeypatch, MEGASCALE_NUM_SLICES="1", MEGASCALE_SLICE_ID="0")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "")
    assert find(*NOTHING, timeout=1) == Cluster("localhost:8482", 4, 2)


def test_slices_of_gke(monkeypatch, on_tpu):
    set_all(monkeypatch, TPU_SKIP_MDS_QUERY="1", TPU_WORKER_ID="1")
    set_all(monkeypatch, TPU_WORKER_HOSTNAMES="host-2,host-3")
    set_all(monkeypatch, MEGASCALE_NUM_SLICES="2", MEGASCALE_SLICE_ID="1")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "localhost:8080")
    assert find(*NOTHING, timeout=1) == Cluster("localhost:8482", 4, 3)


METADATA = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "x:0:127.0.0.1,x:1:10.0.0.2",
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'",
}


@pytest.fixture
def metadata_server(monkeypatch):
    """What a machine of Cloud TPU asks about itself."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = METADATA.get(self.path.rpartition("/")[2])
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write((found or "").encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_cloud_tpu(monkeypatch, on_tpu, metadata_server):
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    assert find(*NOTHING, timeout=1) == Cluster("127.0.0.1:8482", 2, 1)


def test_what_cannot_be_found_out_is_told(monkeypatch, on_tpu):
    set_all(monkeypatch, TPU_SKIP_MDS_QUERY="1", TPU_WORKER_ID="none")
    set_all(monkeypatch, TPU_WORKER_HOSTNAMES="localhost,host-1", MEGASCALE_NUM_SLICES="1")
    set_all(monkeypatch, MEGASCALE_COORDINATOR_ADDRESS="", MEGASCALE_SLICE_ID="0")
    with pytest.raises(UserError, match=r"could not find out which process this is \(invalid lit"):
        find(*NOTHING, timeout=1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("localhost:1234", 4, None), "belong together: give all three"),
        ((None, 4, None), "belong together: give all three"),
        (("localhost", 4, 0), "--coordinator_address=localhost: it must be HOST:PORT"),
        (("localhost:http", 4, 0), "it must be HOST:PORT"),
        (("localhost:1", 4, 0), "it must be HOST:PORT"),
        (("localhost:70000", 4, 0), "it must be HOST:PORT"),
        (("localhost:1234", 4, 4), "--process_id=4 of --num_processes=4: it must be from 0 to 3"),
        (("localhost:1234", 4, -1), "--process_id=-1 of --num_processes=4: it must be from 0 to 3"),
        (("localhost:1234", 0, 0), "--process_id=0 of --num_processes=0"),
    ],
)
def test_what_does_not_fit_together_is_told(given, told):
    with pytest.raises(UserError) as raised:
        find(*given, timeout=1)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)

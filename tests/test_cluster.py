"""Real processes, as on several hosts: the same numbers as in one, and runs that outlive deaths.

Four processes, unless said otherwise, which talk through gloo.
"""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SMALL, arrays, free_port, newest, rows
from PIL import Image

pytestmark = pytest.mark.slow

OPTIONS = (
    *SMALL,
    "--config.model.width=0.25",
    "--config.epochs=1",
    "--config.eval.every_steps=16",
    "--config.checkpoint.every_steps=10",
    "--config.log_every_steps=1",
)
STEPS = 45


class Cluster:
    """The main job in several processes."""

    def __init__(self, log, *options, processes=4, devices=1, folders=(ROOT,) * 4):
        self.members = []
        port = free_port()
        for index in range(processes):
            place = (
                f"--coordinator_address=localhost:{port}",
                f"--num_processes={processes}",
                f"--process_id={index}",
            )
            script = ROOT / "tests/log_batches.py"
            command = (script, f"{log}.{index}", *OPTIONS, *options, *place)
            self.members.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    cwd=folders[index],
                    env=os.environ
                    | {
                        "PYTHONPATH": str(ROOT),
                        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                    },
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for member in self.members:
            member.kill()
            member.communicate()

    def wait_for(self, ready):
        deadline = time.monotonic() + 600
        while not ready():
            ended = [member.poll() for member in self.members]
            assert ended == [None] * len(ended), self.end(0)
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def worker(self, index):
        """The process number of a worker: its supervisor has no other child."""
        pid = self.members[index].pid
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return int(file.read())

    def end(self, seconds=600):
        """Waits until all have ended; returns exit codes, standard outputs and errors."""
        ends = [member.communicate(timeout=seconds) for member in self.members]
        return [m.returncode for m in self.members], [e[0] for e in ends], [e[1] for e in ends]


def run(log, *options, **layout):
    """Runs to the end, where all is well; returns what process 0 said."""
    with Cluster(log, *options, **layout) as cluster:
        codes, out, error = cluster.end()
        assert (set(codes), set(error)) == ({0}, {""}), error
        assert set(out[1:]) == {""}  # process 0 alone speaks
        return out[0]


def trained(workdir, step):
    """Whether a step is in the log."""
    log = workdir / "metrics.jsonl"
    return log.exists() and log.read_bytes().count(b'"train"') >= step


def batches(log):
    """The examples of every step's global batch, from the shares of all processes."""
    shares = {}
    for path in sorted(log.parent.glob(f"{log.name}.*")):
        for line in map(json.loads, path.read_text().splitlines()):
            if line["kind"] == "training":
                images = list(zip(line["epoch"], line["example"], line["image"], strict=True))
                shares.setdefault(line["step"], {})[path.suffix] = images
    return {step: [*itertools.chain(*parts.values())] for step, parts in shares.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of an undisturbed run and the log of its batches."""
    folder = tmp_path_factory.mktemp("whole")
    out = run(folder / "log", f"--workdir={folder}/run")
    assert out.startswith(f"new run in {folder}/run\n")
    return folder / "run", folder / "log"


def assert_same_end(workdir, whole):
    """Bit for bit, and row for row."""
    first, second = arrays(whole, STEPS), arrays(workdir, STEPS)
    assert first.keys() == second.keys()
    assert len(first) > 70
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name
    assert rows(workdir) == rows(whole)
    assert [row["step"] for row in rows(whole) if row["kind"] == "train"] == [*range(1, STEPS + 1)]


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory):
    """The workdir of a run of which a process was killed, and which then was told to go."""
    folder = tmp_path_factory.mktemp("stopped")
    workdir = folder / "run"
    with Cluster(folder / "log", f"--workdir={workdir}") as cluster:
        cluster.wait_for(lambda: newest(workdir) >= 10 and trained(workdir, 13))
        began = time.monotonic()
        os.kill(cluster.worker(2), signal.SIGKILL)
        codes, _, error = cluster.end(60)
        assert time.monotonic() - began < 60
    assert codes == [1] * 4
    reason = f"error: process 2 of 4 on {socket.gethostname()} was killed by SIGKILL\n"
    assert error == [reason] * 4

    with Cluster(folder / "log", f"--workdir={workdir}") as cluster:
        cluster.wait_for(lambda: trained(workdir, 22))
        cluster.members[3].terminate()
        codes, out, error = cluster.end(60)
    assert (codes, error) == ([0] * 4, [""] * 4)
    step = newest(workdir)
    assert out[0].startswith(f"going on from step 10 in {workdir}\n")
    assert f"\nstopped by SIGTERM at step {step}, which is saved; go on with" in out[0]
    assert out[1:3] == ["", ""]
    assert out[3].startswith("SIGTERM: stopping all processes after this step; a second signal")
    assert 22 <= step < STEPS
    return workdir, step


def test_killed_and_told_to_go_a_run_ends_bit_for_bit_as_if_undisturbed(stopped, whole, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    out = run(tmp_path / "log", f"--workdir={tmp_path}/run")
    assert out.startswith(f"going on from step {stopped[1]} in {tmp_path}/run\n")
    assert_same_end(tmp_path / "run", whole[0])


def test_fewer_hosts_go_back_to_the_same_step_and_on_with_the_same_global_batches(
    stopped, whole, tmp_path
):
    """The newest checkpoint has a flipped bit; which process could say so of its own part?"""
    workdir, step = tmp_path / "run", stopped[1]
    shutil.copytree(stopped[0], workdir)
    files = (workdir / "checkpoints" / str(step)).rglob("d/*")
    damaged = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    out = run(tmp_path / "log", f"--workdir={workdir}", processes=2, devices=2)
    assert f"going on from step 20 in {workdir}\n" in out
    told = rf"checkpoint {step} is damaged \(.* is damaged\): set aside as {step}.damaged1\n"
    assert re.search(told, out)
    expected, found = batches(whole[1]), batches(tmp_path / "log")
    assert list(expected) == list(range(STEPS))
    assert found == {number: expected[number] for number in range(20, STEPS)}
    losses = [[r["loss"] for r in rows(at) if "loss" in r] for at in (workdir, whole[0])]
    assert min(losses[1]) < 0.8 * max(losses[1])
    np.testing.assert_allclose(*losses, rtol=0.02)  # float32, summed in another order


def test_hosts_that_do_not_share_the_workdir_are_told(tmp_path):
    """A relative one, started from other folders."""
    config = f"--config={ROOT}/configs/digits.py"
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    options = (config, "--workdir=run")
    with Cluster(tmp_path / "log", *options, processes=2, devices=1, folders=folders) as cluster:
        codes, _, error = cluster.end()
    assert codes == [1, 1]
    told = (
        "--workdir=run is another folder for process 1 than for process 0: it has to be on a disk"
        " that all hosts share\n"
    )
    assert all(text.endswith(told) for text in error), error
    assert f"error: {told}" in error
    assert not (folders[0] / "run" / "checkpoints").exists()


def test_hosts_that_have_other_images_are_told(tmp_path):
    """They would make other batches, or a last step that some of them do not have."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for count, folder in zip((4, 5), folders, strict=True):
        for name in [f"train/{kind}/{n}.png" for kind in "ab" for n in range(count)]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16)).save(folder / name)
    options = (
        *(f"--config={ROOT}/configs/digits.py", f"--workdir={tmp_path}/run"),
        *(
            "--config.data.name=image_folder",
            "--config.data.dir=.",
            "--config.data.eval_split=train",
        ),
        "--config.batch_size=4",
    )
    with Cluster(tmp_path / "log", *options, processes=2, devices=1, folders=folders) as cluster:
        codes, _, error = cluster.end()
    assert codes == [1, 1]
    told = "process 1 has num_examples=10 in config.data.dir, process 0 8: all hosts need the same"
    assert all(told in text for text in error), error


# As published but for size and batch norm, so that nothing makes rounding grow.
NETWORK = (
    *("--config.model.modules=3a", "--config.model.width=0.125"),
    "--config.model.batch_norm=false",
    *("--config.schedule.rate=0.01", "--config.optim.weight_decay=0"),
)
FLOAT64 = "--config.model.dtype=float64"
FULLY_SHARDED = "--config.mesh.fully_sharded=true"
# Steps and overrides of each. Without weight decay the momentum after one step is the gradient.
RUNS = {
    "data_parallel": (20, FLOAT64),
    "fully_sharded": (20, FLOAT64, FULLY_SHARDED),
    "slices": (20, FLOAT64, FULLY_SHARDED, "--config.mesh.slices=2"),
    "gradients data_parallel": (1,),
    "gradients fully_sharded": (1, FULLY_SHARDED),
}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """By name of a run what one process and what four stored of it, each on eight devices."""
    return [compute(processes, tmp_path_factory.mktemp("computed")) for processes in (1, 4)]


def compute(processes, folder):
    port, members = free_port(), []
    runs = [
        word
        for name, (steps, *overrides) in RUNS.items()
        for word in ("--", folder / f"{name}.npz", steps, *NETWORK, *overrides)
    ]
    for index in range(processes):
        place = f"@localhost:{port},{processes},{index}" if processes > 1 else ""
        command = ("tests/on_devices.py", f"{8 // processes}{place}", *runs)
        members.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    try:
        assert [member.wait(900) for member in members] == [0] * processes
    finally:
        for member in members:
            member.kill()
    stored = {name: dict(np.load(folder / f"{name}.npz")) for name in RUNS}
    assert {name: values["devices"] for name, values in stored.items()} == dict.fromkeys(RUNS, 8)
    return stored


def assert_close(one, other, tolerance, only=""):
    """Relative to the largest value of each array."""
    assert one.keys() == other.keys()
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=tolerance)
    names = [n for n in one if n not in ("hlo", "devices", "losses", "shares") and only in n]
    assert len(names) >= 2 * (3 + 6 + 1)  # kernels and biases
    for name in names:
        scale = np.abs(one[name]).max()
        np.testing.assert_allclose(
            other[name], one[name], rtol=0, atol=tolerance * scale, err_msg=name
        )


@pytest.mark.parametrize("name", ["data_parallel", "fully_sharded"])
def test_four_processes_compute_in_float64_what_one_does(name, computed):
    one, four = (stored[name] for stored in computed)
    assert len(one["losses"]) == 20
    assert one["losses"][-1] != one["losses"][0]
    assert_close(one, four, 1e-9)


@pytest.mark.parametrize("name", ["data_parallel", "fully_sharded"])
def test_four_processes_have_the_loss_and_gradients_of_one(name, computed):
    assert_close(*(stored[f"gradients {name}"] for stored in computed), 1e-5, only="trace")


def test_two_slices_of_two_processes_compute_what_one_process_does(computed):
    """Parameters are split within slices, so that they never come from another."""
    one, four = computed[0]["fully_sharded"], computed[1]["slices"]
    assert_close(one, four, 1e-9)
    shares = dict(zip([n for n in four if "/" in n or n == "step"], four["shares"], strict=True))
    assert shares["params/loss3/classifier/kernel"] == 1 / 4  # not 1/8: each slice has them all

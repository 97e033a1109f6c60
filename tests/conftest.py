"""Set-up for all tests: quiet libraries, a compile cache, small configs."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Before jax and TensorFlow are imported, here and in the processes that tests start.
# A cache for each of pytest-xdist's processes: JAX writes its files in place, where another process
# might read half of one.
CACHE = ROOT / ".pytest_cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["TF_USE_LEGACY_KERAS"] = "1"
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

from configs import digits  # noqa: E402


@pytest.fixture
def config():
    """The digits recipe on the narrowest network, for tests that compile it."""
    config = digits.get_config()
    config.model.width = 0.0625  # 16 channels become 1
    config.model.modules = "3a,4a,5b"  # nine take thrice as long to compile
    config.batch_size = 32
    return config


@pytest.fixture
def x64():
    """Turns float64 on for one test."""
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


NARROW = (
    "--config=configs/digits.py",
    "--config.model.width=0.0625",
    "--config.batch_size=32",
    "--config.schedule.warmup_epochs=0",
)
SMALL = (*NARROW, "--config.model.modules=3a")


@pytest.fixture(scope="session")
def run_main():
    """Returns run(*arguments, base=SMALL, env={}) -> the finished process of the main job."""

    def run(*arguments, base=SMALL, env=None, check=True):
        process = start_main(*arguments, base=base, env=env)
        try:
            out, error = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            stop(process)
            raise
        if check and process.returncode:
            raise AssertionError(f"exit code {process.returncode}\n{out}\n{error}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    return run


def start_main(*arguments, base=SMALL, env=None):
    """Starts the main job on a tiny network; arguments override SMALL, or NARROW as the base."""
    return subprocess.Popen(
        [sys.executable, "-m", "inception_jax.main", *base, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def arrays(workdir, step):
    """Reads every array of a checkpoint, by path, without the code under test."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        # as NumPy arrays, since the devices that wrote it need not be here
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        stored = reader.restore(folder, restore_args=as_numpy)
    leaves, _ = jax.tree_util.tree_flatten_with_path(stored)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def rows(workdir):
    """Reads metrics.jsonl without what a clock measured."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    timed = ("time", "images_per_second", "data_wait", "device_wait", "host")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def free_port():
    """A port that is free, as is the one below it, beside those that connections are given."""
    while True:
        port = random.randrange(10_001, 32_768, 2)
        with (
            contextlib.suppress(OSError),
            socket.create_server(("", port)),
            socket.create_server(("", port - 1)),
        ):
            return port


def stop(process):
    """Leaves nothing behind of a process that hangs, else the tests after it fail as well."""
    process.kill()
    process.communicate()


def wait_until(process, ready, seconds=600):
    """Waits for ready(); returns False if the process ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        if ready():
            return True
        time.sleep(0.005)
    stop(process)
    raise AssertionError("nothing happened")


def newest(workdir):
    """Returns the step of the newest checkpoint, or 0."""
    folder = workdir / "checkpoints"
    steps = [int(p.name) for p in folder.glob("[0-9]*") if p.name.isdecimal()]
    return max(steps, default=0)

"""What processes tell each other, though one of them is late."""

import contextlib
import subprocess
import sys
import time

import pytest
from conftest import ROOT, free_port

GLOOS_PATIENCE = 30  # seconds


@pytest.mark.slow
def test_a_host_that_is_late_is_waited_for():
    """Others compile faster or read their files sooner; on CPU gloo would give up."""
    expected = {"gather": "[1, 2]", "compiled": "3.0"}
    with contextlib.ExitStack() as stack:
        pairs = {}
        for what in expected:
            address = f"localhost:{free_port()}"
            pairs[what] = [
                subprocess.Popen(
                    [sys.executable, ROOT / "tests/late_host.py", what, address, str(number)],
                    env={"PYTHONPATH": str(ROOT)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for number in range(2)
            ]
            for process in pairs[what]:
                stack.callback(process.kill)
        for pair in pairs.values():
            assert [process.stdout.readline() for process in pair] == ["ready\n"] * 2
        for early, _ in pairs.values():
            early.stdin.write("\n")
            early.stdin.flush()
        time.sleep(GLOOS_PATIENCE + 5)  # as long as a slow compilation
        for what, (early, late) in pairs.items():
            ends = [late.communicate("\n", timeout=120), early.communicate(timeout=120)]
            found = [out.splitlines()[-1:] for out, _ in ends]  # before it gloo tells of itself
            assert found == [[expected[what]]] * 2, ends

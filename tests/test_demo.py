"""The first thing that a newcomer does works, and reaches what README promises."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_googlenet_reads_digits(tmp_path):
    """The command of `make demo`, to its end; 0.97 leaves room for other machines' rounding."""
    process = subprocess.run(
        [
            *(sys.executable, "-m", "inception_jax.main"),
            *("--config=configs/digits.py", f"--workdir={tmp_path}"),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
        capture_output=True,
        text=True,
        timeout=1200,
        check=True,
    )
    assert process.stderr == ""
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["examples"] == 360
    assert results["top1"] >= 0.97

"""The table of chips, and the topologies that can be planned for."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from inception_jax.errors import UserError
from inception_jax.plan import topology
from inception_jax.plan.chips import CHIPS

needs_compiler = pytest.mark.skipif(
    not topology.FOLDER.exists(), reason="the TPU compiler is not here: make libtpu"
)


@pytest.mark.parametrize(
    ("name", "figures"),
    [  # bf16 TFLOP/s, memory in GiB, GB/s: the project's own notes of the data sheets
        ("v4", (275, 32, 1228)),
        ("v5e", (197, 16, 819)),
        ("v5p", (459, 95, 2765)),
        ("v6e", (918, 32, 1638)),
    ],
)
def test_figures_of_chips(name, figures):
    chip = CHIPS[name]
    assert (chip.flops / 1e12, chip.hbm / 2**30, chip.hbm_bandwidth / 1e9) == figures
    assert chip.source


def test_interconnects_are_in_one_direction():
    """Published as 1,600 Gbit/s; 1,200 and 800 GB/s both ways; six links of 50 GB/s."""
    assert CHIPS["v5e"].ici == 200e9
    assert CHIPS["v5p"].ici == 600e9
    assert CHIPS["v6e"].ici == 400e9
    assert CHIPS["v4"].ici == 300e9
    assert CHIPS["v5e"].dcn * 256 * 8 == 6.4e12


@needs_compiler
def test_the_compiler_knows_every_slice_that_is_listed():
    """Of two or three sides each; the chips of v4 and v5p are devices of two cores."""
    script = """
from inception_jax.plan import topology
from inception_jax.plan.chips import CHIPS
topology.prepare("v5e:2x2")
for name, chip in CHIPS.items():
    for shape in chip.slices:
        found = topology.devices(f"{name}:{shape}", 1)
        print(name, shape, len(found), found[0].core_on_chip)
print("two", len(topology.devices("v5e:2x2", 2)), topology.devices("v5e:2x2", 2)[-1].slice_index)
"""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    rows = [line.split() for line in process.stdout.splitlines()]
    assert len(rows) == sum(len(chip.slices) for chip in CHIPS.values()) + 1
    for _, shape, number, core in rows[:-1]:
        sides = [int(side) for side in shape.split("x")]
        product = 1
        for side in sides:
            product *= side
        assert (int(number), core) == (product, "0")
    assert rows[-1] == ["two", "8", "1"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("v5e:3x3", r"v5e:3x3 is unknown: take one of v5e:1x1\|2x2\|2x4"),
        ("v5e", r"v5e is unknown: take one of v5e:1x1"),
        ("v9:2x2", r"v9:2x2 is unknown: take one of v4:2x2x1.*v6e:.*or cpu:N"),
        ("cpu:0", r"cpu:0 is unknown: write cpu:N, N being 1 or more"),
        ("cpu", r"cpu is unknown: write cpu:N"),
        ("", r"is unknown: .*cpu:N"),
    ],
)
def test_what_is_unknown_is_told_with_what_is_known(given, told):
    with pytest.raises(UserError, match=told):
        topology.parse(given)


def test_a_missing_compiler_is_told_with_its_version(monkeypatch, tmp_path):
    monkeypatch.setattr(topology, "FOLDER", tmp_path)
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(topology.os, "environ", {})
    told = r"is not at .*: type make libtpu, or pip install --no-deps .* 'libtpu==\d+\.\d+"
    with pytest.raises(UserError, match=told):
        topology.prepare("v5e:2x2")
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/nowhere")
    with pytest.raises(UserError, match="is not at TPU_LIBRARY_PATH=/nowhere: type make"):
        topology.prepare("v5e:2x2")


def test_a_compiler_that_is_damaged_is_told_in_a_line(tmp_path):
    library = tmp_path / "libtpu.so"
    library.write_text("not one")
    process = subprocess.run(
        [
            *(sys.executable, "-m", "inception_jax.plan", "--config=configs/digits.py"),
            "--topology=v5e:2x2",
        ],
        env=os.environ | {"TPU_LIBRARY_PATH": str(library)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (process.returncode, process.stdout) == (1, "")
    told = "error: --topology=v5e:2x2: the TPU compiler cannot be used ("
    assert process.stderr.startswith(told)
    assert "type make libtpu, or pip install --no-deps --upgrade" in process.stderr
    assert process.stderr.count("\n") == 1

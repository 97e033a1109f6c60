"""One device or eight, however the state lies on them: the same numbers, few collectives, and
checkpoints that move between them."""

import functools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import NARROW, ROOT, arrays, rows

from inception_jax.plan.collectives import groups

FEW = ("--config.model.modules=3a,4a,4d,5b", "--config.batch_size=32")
# As published but for size: its stem, LRN, both auxiliary heads, dropout.
PUBLISHED = (
    *FEW,
    "--config.model.batch_norm=false",
    "--config.model.auxiliary_heads=true",
    "--config.model.small_stem=false",
    "--config.model.width=0.125",
    "--config.data.image_size=80",
    "--config.data.eval_resize=80",
    "--config.schedule.rate=0.01",
)
WITHOUT_DECAY = (*PUBLISHED, "--config.optim.weight_decay=0")
NOT_ARRAYS = ("hlo", "devices", "losses", "shares")
FULLY_SHARDED = "--config.mesh.fully_sharded=true"
# Two groups of four devices, which are two and two.
EVERYTHING = (FULLY_SHARDED, "--config.mesh.slices=2", "--config.mesh.model=2")


@pytest.fixture(scope="module")
def train_on(tmp_path_factory):
    """Returns run(devices, steps, *overrides) -> what tests/on_devices.py stored."""

    @functools.cache
    def run(devices, steps, *overrides):
        out = tmp_path_factory.mktemp("devices") / "out.npz"
        subprocess.run(
            [sys.executable, "tests/on_devices.py", str(devices), out, str(steps), *overrides],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            timeout=600,
        )
        stored = dict(np.load(out))
        assert stored["devices"] == devices
        return stored

    return run


def worst_difference(a, b):
    """The largest difference in any array, relative to that array's largest value."""
    assert a.keys() == b.keys()
    names = [name for name in a if name not in NOT_ARRAYS]
    assert len(names) > 120  # parameters and their momentum
    return max(np.max(np.abs(a[n] - b[n])) / max(np.max(np.abs(a[n])), 1e-30) for n in names)


def collectives(compiled, *kinds):
    """The collective operations of a compiled step."""
    return re.findall(rf"^.* = .*? (?:{'|'.join(kinds)})(?:-start)?\(.*$", compiled, re.M)


@pytest.mark.parametrize(
    "sharded",
    [
        pytest.param((), id="data_parallel"),
        pytest.param((FULLY_SHARDED,), id="fully_sharded", marks=pytest.mark.slow),
        pytest.param(EVERYTHING, id="all", marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_in_float64_do_not_depend_on_the_devices(sharded, train_on):
    overrides = (*PUBLISHED, "--config.model.dtype=float64")
    one, eight = train_on(1, 20, *overrides), train_on(8, 20, *overrides, *sharded)
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-9)
    assert one["losses"][-1] != one["losses"][0]
    assert worst_difference(one, eight) < 1e-9


def test_batch_norm_uses_the_statistics_of_the_global_batch(train_on):
    """At a rate that keeps rounding from growing past the bound, which batch norm amplifies."""
    overrides = (*FEW, "--config.model.dtype=float64", "--config.schedule.rate=0.001")
    one, eight = (train_on(devices, 20, *overrides) for devices in (1, 8))
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-9)
    assert worst_difference(one, eight) < 1e-9


@pytest.mark.parametrize("sharded", [(), (FULLY_SHARDED,)], ids=["data_parallel", "fully_sharded"])
def test_one_float32_step_has_the_same_loss_and_gradients_on_eight_devices(sharded, train_on):
    """Without weight decay the momentum after one step is the gradient."""
    one, eight = train_on(1, 1, *WITHOUT_DECAY), train_on(8, 1, *WITHOUT_DECAY, *sharded)
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    gradients = [name for name in one if "trace" in name]
    assert len(gradients) == 2 * (3 + 4 * 6 + 2 * 3 + 1)  # kernels and biases
    for name in gradients:
        scale = np.max(np.abs(one[name]))
        assert scale > 0
        np.testing.assert_allclose(eight[name], one[name], rtol=0, atol=1e-5 * scale, err_msg=name)


def test_gradients_cross_devices_in_one_all_reduce(train_on):
    compiled = str(train_on(8, 1, *WITHOUT_DECAY)["hlo"])
    assert len(collectives(compiled, "all-reduce")) == 1
    others = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    assert not collectives(compiled, *others)


def test_a_fully_sharded_state_lies_in_parts_of_an_eighth(train_on):
    """As far as the arrays that came out of a step go, in a network an eighth as wide."""
    stored = train_on(8, 1, *WITHOUT_DECAY, FULLY_SHARDED)
    sizes = {name: value.size for name, value in stored.items() if name not in NOT_ARRAYS}
    shares = dict(zip(sizes, stored["shares"], strict=True))
    for name in sizes:
        divisible = any(side % 8 == 0 for side in stored[name].shape)
        assert shares[name] == (1 / 8 if divisible else 1), name
    held = sum(size * shares[name] for name, size in sizes.items())
    assert 1 / 8 < held / sum(sizes.values()) < 0.3


def test_fully_sharded_each_parameter_is_gathered_once_and_gradients_summed_together(train_on):
    compiled = str(train_on(8, 1, *WITHOUT_DECAY, FULLY_SHARDED)["hlo"])
    parameters = 2 * (3 + 4 * 6 + 2 * 3 + 1)
    assert 2 * parameters / 3 < len(collectives(compiled, "all-gather")) <= parameters
    # one of the gradients, one for their norm and that of the parameters
    assert len(collectives(compiled, "all-reduce", "reduce-scatter")) <= 2 + parameters
    assert not collectives(compiled, "all-to-all", "collective-permute")


@pytest.mark.slow
def test_parameters_are_not_gathered_from_other_slices(train_on):
    """Over the slow network go gradients, which are summed, and what is as small."""
    compiled = str(train_on(8, 20, *PUBLISHED, "--config.model.dtype=float64", *EVERYTHING)["hlo"])
    gathers = collectives(compiled, "all-gather")
    assert gathers
    for line in gathers:
        written = re.search(r"replica_groups=(.*?), (use_global|dimensions)", line)[1]
        for group in groups(written, 8):
            assert len(set(group // 4)) == 1, line  # numbered slice by slice, of four devices each


def test_accumulation_keeps_every_row_on_its_device(train_on):
    """Splitting the batch into parts must move no image between devices."""
    overrides = (*PUBLISHED, "--config.accumulation=4")
    compiled = str(train_on(8, 1, *overrides)["hlo"])
    others = ("all-gather", "all-to-all", "collective-permute")
    assert not [name for name in others if re.search(rf"\b{name}(-start)?\(", compiled)]


def test_images_are_mixed_and_distorted_alike_on_eight_devices_and_in_parts(tmp_path):
    """Mixing is of the global batch: neither devices nor accumulation change an image's partner."""
    subprocess.run(
        [sys.executable, "tests/mix_on_devices.py", tmp_path / "out.npz"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        timeout=300,
    )
    stored = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(stored["eight_loss"], stored["one_loss"], rtol=1e-5)
    scale = np.abs(stored["one_kernel"]).max()
    assert scale > 0
    np.testing.assert_allclose(stored["eight_kernel"], stored["one_kernel"], atol=1e-5 * scale)
    compiled = str(stored["eight_hlo"])  # one image of each device moves
    assert not re.search(r"\b(all-gather|all-to-all)(-start)?\(", compiled)
    assert re.findall(r"= (f32\S+\])\S* collective-permute", compiled) == ["f32[1,16,16,3]"]


def on(devices):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def test_a_run_saved_on_8_devices_goes_on_on_2(run_main, tmp_path):
    """Restores bit for bit what 8 devices saved, and trains to the end on 2."""
    common = (
        *("--config=configs/digits.py:vgg11", "--config.model.batch_norm=true"),
        *("--config.checkpoint.every_steps=10", "--config.log_every_steps=1"),
    )
    run_main(f"--workdir={tmp_path}", "--config.epochs=0.44", *common, base=NARROW, env=on(8))
    saved = arrays(tmp_path, 20)
    first = rows(tmp_path)
    again = run_main(
        *(f"--workdir={tmp_path}", "--config.epochs=0.88", *common), base=NARROW, env=on(2)
    )
    assert f"going on from step 20 in {tmp_path}" in again.stdout
    megabytes = sum(value.nbytes for value in saved.values()) / 1e6
    layout = "2 devices, slice 1 x data 2 x model 1; parameters and all that is kept with them:"
    assert f"{layout} {megabytes:.1f} MB, {megabytes:.1f} MB on each\n" in again.stdout
    assert "config.epochs: 0.44 before, 0.88 now" in again.stdout
    for name, value in arrays(tmp_path, 20).items():
        np.testing.assert_array_equal(value, saved[name], err_msg=name)
    assert rows(tmp_path)[: len(first)] == first
    steps = [row["step"] for row in rows(tmp_path) if row["kind"] == "train"]
    assert steps == list(range(1, 41))

"""Images of more than one size in a run: what it leaves behind, and what a network cannot take."""

import json
import re
import shutil
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import arrays, rows
from flax import linen as nn

from configs import digits
from inception_jax import evaluate, models, process, program, sharding, train, validate
from inception_jax.console import Console
from inception_jax.errors import UserError
from inception_jax.models.layers import Logits

# The second epoch begins within step 45, so that of 24 pixels is from step 46 to 59.
FIELDS = {
    "data.train_sizes": (16, 24),
    "eval.sizes": (24,),
    "accumulation": 2,
    "batch_size": 32,
    "epochs": 1.3,
    "schedule.warmup_epochs": 0.0,
    "log_every_steps": 1,
    "eval.every_steps": 40,
    "checkpoint.every_steps": 50,
}
DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
NAMES = ("top1", "top5", "loss")


class Linear(nn.Module):
    """On the mean of each quarter of the image, or of all its pixels: which fits one size only."""

    num_classes: int
    flat: bool = False

    def check(self, image_size):
        if image_size < 8:
            raise UserError(f"{image_size} pixels: set config.data.image_size to 8 or more")

    @nn.compact
    def __call__(self, images_BHWC, train=False):
        batch, side = images_BHWC.shape[:2]
        if not self.flat:
            quarters = images_BHWC.reshape(batch, 2, side // 2, 2, side // 2, 3)
            images_BHWC = quarters.mean((2, 4))
        flat_BF = images_BHWC.reshape(batch, -1)
        return Logits(nn.Dense(self.num_classes, name="only")(flat_BF))


@pytest.fixture
def linear(monkeypatch):
    """Puts Linear in the place of every network."""
    monkeypatch.setattr(models, "build", lambda config, num_classes: Linear(num_classes))


def make_config(**fields):
    config = digits.get_config()
    config.update_from_flattened_dict(FIELDS | {"optim.decay_factors": ((".*", 0.0),)} | fields)
    config.optim.rate_factors = ((".*", 1.0),)
    validate.check(config)
    return config


def run(workdir, **fields):
    """Runs the main job in this process; returns results.json."""
    reached, results = train.train(make_config(**fields), workdir, lambda: None, Console())
    assert reached == 59
    assert results == json.loads((workdir / "results.json").read_text())
    return results


def evaluations(workdir):
    return [row for row in rows(workdir) if row["kind"] == "eval"]


def test_every_evaluation_is_repeated_at_further_sizes_and_told(linear, tmp_path, capsys):
    results = run(tmp_path)
    found = evaluations(tmp_path)
    assert [row["step"] for row in found] == [40, 59]
    told = []
    for row in found:
        for end, where in (("", ""), ("_24", "  at 24 pixels")):
            assert 0 <= row[f"top1{end}"] <= row[f"top5{end}"] <= 1
            top1, top5, loss = (f"{row[name + end]:.4f}" for name in NAMES)
            numbers = f"top-1 {top1}  top-5 {top5}  loss {loss}  (360 images){where}"
            told.append(f"step {row['step']}  epoch {row['epoch']:.1f}  evaluation: {numbers}")
        assert row["loss"] != row["loss_24"]
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "evaluation: " in line] == told
    assert results["best"]["top1"] == max(row["top1"] for row in found)
    table = out[out.index("Results") :]
    for shown, name in (("top-1", "top1"), ("top-5", "top5"), ("loss", "loss")):
        for end, where in (("", ""), ("_24", " at 24 pixels")):
            assert results[name + end] == found[-1][name + end]
            assert re.search(rf"^ *{shown}{where} +{results[name + end]:.4f}", table, re.M)


def test_the_numbers_of_a_size_are_those_of_the_network_at_that_size(linear, tmp_path):
    """One run's further size is another's own: the parameters are shared."""
    further = run(tmp_path / "a")
    options = {"data.image_size": 24, "data.eval_resize": 24, "eval.sizes": (16, 32)}
    own = run(tmp_path / "b", **options)
    assert [own[name] for name in NAMES] == [further[f"{name}_24"] for name in NAMES]
    assert [own[f"{name}_16"] for name in NAMES] == [further[name] for name in NAMES]
    assert own["loss_32"] not in (own["loss"], own["loss_16"])


def test_evaluating_a_finished_run_gives_its_results_to_the_last_digit(
    linear, tmp_path, capsys, monkeypatch
):
    """At every size, as JSON and as the table that the run has printed."""
    monkeypatch.setattr(process, "quiet", lambda: None)  # it is for whole processes
    results = run(tmp_path)
    before = capsys.readouterr().out
    files = sorted(tmp_path.rglob("*"))
    names = ["step", "examples", *NAMES, *(f"{name}_24" for name in NAMES)]
    assert evaluate.main(["evaluate", str(tmp_path), "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: results[name] for name in names}
    assert evaluate.main(["evaluate", str(tmp_path)]) == 0
    table, rows_before = (
        [line.split() for line in text.splitlines()]
        for text in (capsys.readouterr().out, before[before.index("Results") :])
    )
    for shown in ("top-5", "loss", "top-1 at 24 pixels", "top-5 at 24 pixels", "images evaluated"):
        (row,) = (row for row in table if " ".join(row[:-1]) == shown)
        assert row in rows_before
    assert ["checkpoint", "59"] in table
    assert sorted(tmp_path.rglob("*")) == files


def test_each_size_is_compiled_once_when_it_is_due(linear, tmp_path, monkeypatch):
    """And the time that this takes, here a thousand seconds, does not count as training."""
    compiled, make = [], program.make
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * len(compiled))
    monkeypatch.setattr(train, "time", clock)

    class Lowering:
        def __init__(self, jitted):
            self.lower = lambda state, batch: (
                compiled.append((batch["image"].shape[1], len(rows(tmp_path)))),
                jitted.lower(state, batch),
            )[1]

    def watched(*args, **options):
        made = make(*args, **options)
        return made._replace(train_step=Lowering(made.train_step))

    monkeypatch.setattr(program, "make", watched)
    results = run(tmp_path)
    assert results["images_per_second"] > 59 * 32 / 500
    logged = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert all(row["images_per_second"] > 32 / 500 for row in logged if row["kind"] == "train")
    assert results["wall_seconds"] > 2000
    assert compiled == [(16, 0), (24, 45 + 1)]  # rows of 45 steps and of an evaluation


@pytest.mark.parametrize("step", [40, 50])
def test_a_run_stopped_at_either_size_goes_on_to_the_same_end(step, linear, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    results = run(whole)
    shutil.copytree(whole, cut)
    cut_after(cut, step)
    capsys.readouterr()
    again = run(cut)
    assert f"going on from step {step} in" in capsys.readouterr().out
    assert rows(cut) == rows(whole)
    assert [again[name] for name in (*NAMES, "loss_24")] == [
        results[name] for name in (*NAMES, "loss_24")
    ]
    assert_same(cut, whole)


def cut_after(workdir, step):
    """Leaves of a finished run what was there at a checkpoint, and rows that came later."""
    (workdir / "results.json").unlink()
    for folder in (workdir / "checkpoints").glob("[0-9]*"):
        if int(folder.name) > step:
            shutil.rmtree(folder)


def assert_same(workdir, other):
    first, second = arrays(workdir, 59), arrays(other, 59)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.slow
def test_googlenet_learns_at_two_sizes_on_two_devices(run_main, tmp_path):
    """And goes on to the same end, with batch norm, dropout and accumulation."""
    options = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    options += ["--config.model.width=0.125", "--config.model.modules=3a,4a,5b"]
    options += ["--config.schedule.rate=0.05"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_main(*options, f"--workdir={whole}", env=DEVICES)
    losses = {row["step"]: row["loss"] for row in rows(whole) if row["kind"] == "train"}
    assert len(losses) == 59
    assert losses[1] > 2.0 > np.mean([losses[step] for step in range(50, 60)])
    last = evaluations(whole)[-1]
    assert min(last["top1"], last["top1_24"]) > 0.3  # 0.1 by chance
    assert all(row["loss"] != row["loss_24"] for row in evaluations(whole))
    shutil.copytree(whole, cut)
    cut_after(cut, 40)
    process = run_main(*options, f"--workdir={cut}", env=DEVICES)
    assert process.stdout.startswith(f"going on from step 40 in {cut}")
    assert rows(cut) == rows(whole)
    assert_same(cut, whole)


def refused(config):
    """The line that refuses a config once its network is known."""
    with pytest.raises(UserError) as caught:
        program.make(config, sharding.make_mesh(config.mesh), num_examples=99, num_classes=10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("field", ["data.train_sizes", "eval.sizes"])
def test_a_network_whose_parameters_fit_one_size_is_refused_others(field, monkeypatch):
    monkeypatch.setattr(models, "build", lambda _, num_classes: Linear(num_classes, flat=True))
    others = {"data.train_sizes": (16,), "eval.sizes": ()}
    for size in (20, 6):  # larger, and too small for any network, where no least size would help
        told = refused(make_config(**others | {field: (size,)}))
        assert told == (
            f"config.{field}: {size} pixels will not do, as the network's fully connected layers"
            f" fit images of 16 pixels only: leave {size} out"
        )
    config = make_config(**others)
    mesh = sharding.make_mesh(config.mesh)
    program.make(config, mesh, num_examples=99, num_classes=10)


@pytest.mark.parametrize("field", ["data.train_sizes", "eval.sizes"])
def test_a_size_that_is_too_small_is_told_with_its_own_field(field, linear):
    told = refused(make_config(**{field: (6,)}))
    assert told == f"6 pixels: set config.{field} to 8 or more"


def test_auxiliary_heads_are_refused_where_they_are_trained_only(config):
    """They flatten one place at 96 pixels, four at 128; in evaluation there are none."""
    config.update(model={"auxiliary_heads": True, "small_stem": False})
    config.data.image_size = config.data.eval_resize = 96
    config.data.train_sizes, config.eval.sizes = (96, 128), (64, 160)
    assert refused(config) == (
        "config.data.train_sizes: 128 pixels will not do, as the network's fully connected layers"
        " fit images of 96 pixels only: set config.model.auxiliary_heads=False"
    )
    mesh = sharding.make_mesh(config.mesh)
    config.data.train_sizes = ()
    made = program.make(config, mesh, num_examples=99, num_classes=10)
    assert list(made.eval_batch) == [96, 64, 160]  # the heads need 79
    config.model.auxiliary_heads = False
    config.data.train_sizes = (128, 96)
    made = program.make(config, mesh, num_examples=99, num_classes=10)
    shapes = {size: batch["image"] for size, batch in made.train_batch.items()}
    assert {size: leaf.shape for size, leaf in shapes.items()} == {
        128: (32, 128, 128, 3),
        96: (32, 96, 96, 3),
    }
    assert all(leaf.dtype == jnp.uint8 for leaf in jax.tree.leaves(shapes))

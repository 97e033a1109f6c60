"""What a plan is put together from, with a stand-in for the compiler."""

import math

import jax
import pytest
from conftest import ROOT

from inception_jax import config as config_lib
from inception_jax.errors import UserError
from inception_jax.plan import planner, weigh
from inception_jax.plan.weigh import Memory, Step

ARGUMENTS = (
    *(f"--config={ROOT}/configs/digits.py", "--config.model.width=0.0625"),
    "--config.model.modules=3a",
)
AVAILABLE = 1000


@pytest.fixture
def plan(monkeypatch):
    """Returns plan(*arguments, find_batch) -> Report of a step that takes 10 bytes an image of a
    part, and 100 for its state; plan.tried are the batches that it was compiled for."""
    tried, parts = [], []

    def compiled(prog, size, available):
        images = prog.train_batch[size]["label"].shape[0]
        tried.append(images)
        memory = Memory(100, 0, 10 * images // parts[-1], 0, available)
        return Step(size, images, memory, 10, 1, 1, [])

    monkeypatch.setattr(weigh, "weigh", compiled)
    monkeypatch.setattr(weigh, "available", lambda device: AVAILABLE)

    def run(*arguments, find_batch=False):
        _, config = config_lib.parse(["plan", *ARGUMENTS, *arguments])
        parts.append(config.accumulation)
        return planner.plan("digits", config, "v5e:1x1", jax.devices()[:1], find_batch)

    run.tried = tried
    return run


def test_the_largest_batch_is_one_that_the_layout_allows(plan):
    """90 images of a part fit; of 8 a chip 88, of 16 a chip in two parts 176."""
    report = plan("--config.batch_size=8", find_batch=True)
    assert (report.batch_size, report.too_large) == (88, 96)
    report = plan("--config.batch_size=16", "--config.accumulation=2", find_batch=True)
    assert (report.batch_size, report.too_large) == (176, 192)
    assert report.total_steps == math.ceil(1437 * 30 / 176)  # of the recipe with this batch


def test_sizes_of_images_that_take_turns_are_compiled_once_each(plan):
    sizes = "--config.data.train_sizes=(16,32)"
    report = plan("--config.batch_size=8", sizes)
    assert [step.image_size for step in report.steps] == [16, 32]
    assert plan.tried == [8, 8]
    assert all(needed > 0 for needed in report.needed)
    assert report.needed[1] > 3 * report.needed[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("--config.batch_size=400",),
            "digits does not fit on v5e:1x1: a chip needs 0.00 GiB and has 0.00, 0.00 too few; in"
            " proportion config.batch_size=90 or config.accumulation=5 would do; --find_batch",
        ),
        (
            ("--config.batch_size=400", "--config.accumulation=2"),
            "config.batch_size=180 or config.accumulation=5 would do",
        ),
    ],
)
def test_what_would_fit_is_told(plan, arguments, told):
    """In parts of 90 images at most, of which 400 has none, but of 80."""
    with pytest.raises(UserError) as error:
        plan(*arguments)
    assert told in str(error.value)


def test_what_never_fits_is_told(plan, monkeypatch):
    monkeypatch.setattr(weigh, "available", lambda device: 100)
    with pytest.raises(UserError, match=r"not even with 8 images a step: take more chips"):
        plan("--config.batch_size=8", find_batch=True)
    with pytest.raises(UserError, match=r"more chips may do, or config\.mesh\.fully_sharded=True"):
        plan("--config.batch_size=8")

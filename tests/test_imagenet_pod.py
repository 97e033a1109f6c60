"""The recipe for pods: what it says of each batch, and that it trains."""

import json

import pytest
from conftest import ROOT

from configs import imagenet_pod
from inception_jax import optim, validate
from inception_jax.errors import UserError

RECIPE = f"--config={ROOT}/configs/imagenet_pod.py"


@pytest.mark.parametrize("batch", [4096, 8192, 16384, 32768])
@pytest.mark.parametrize("name", ["lars", "lamb", "sgd"])
def test_each_variant_is_a_whole_recipe(name, batch):
    config = imagenet_pod.get_config(f"{name},{batch}")
    validate.check(config)
    assert (config.optim.name, config.batch_size) == (name, batch)
    steps_per_epoch = 1_281_167 / batch
    total = int(90 * steps_per_epoch)
    schedule = optim.make_schedule(config.schedule, steps_per_epoch, total)
    top = round(config.schedule.warmup_epochs * steps_per_epoch)
    assert float(schedule(top)) == pytest.approx(config.schedule.rate, rel=1e-3)
    assert float(schedule(total - 1)) < 1e-3 * config.schedule.rate


@pytest.mark.parametrize(
    ("variant", "rate", "warmup"),
    [
        ("lars", 10.0, 5.0),
        ("lars,32768", 32.0, 14.0),
        ("lamb,4096", 0.01414214, 2.5),
        ("lamb,32768", 0.04, 20.0),
        ("sgd,8192", 3.2, 5.0),
    ],
)
def test_rates_are_the_published_ones(variant, rate, warmup):
    schedule = imagenet_pod.get_config(variant).schedule
    assert (schedule.rate, schedule.warmup_epochs) == (pytest.approx(rate), warmup)


@pytest.mark.parametrize("variant", ["adam", "lars,", "lars,100", "8192", "lars,8192,1"])
def test_what_it_does_not_have_is_told(variant):
    with pytest.raises(UserError, match=r"has no variant .*: it has lars, lamb, sgd, each"):
        imagenet_pod.get_config(variant)


def test_it_trains_in_bfloat16_over_blocks_of_pixels(run_main, tmp_path):
    """On small images; the network, its optimiser and its precision are the recipe's."""
    process = run_main(
        *(RECIPE, "--config.data.name=digits", "--config.data.eval_split=test"),
        *("--config.data.image_size=32", "--config.data.eval_resize=32"),
        *("--config.batch_size=479", "--config.epochs=1", "--config.eval.batch_size=360"),
        f"--workdir={tmp_path}",
    )
    assert process.stderr == ""
    results = json.loads((tmp_path / "results.json").read_text())
    model = results["config"]["model"]
    assert (model["dtype"], model["space_to_depth"]) == ("bfloat16", True)
    assert results["examples"] == 360
    assert results["step"] == 3

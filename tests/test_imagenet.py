"""The published recipe on ImageNet: how to get the set, and the whole way on a miniature of it."""

import io
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from miniature_imagenet import images, make
from PIL import Image

from configs import imagenet
from inception_jax import config as config_lib
from inception_jax.data import datasets, prepare
from inception_jax.errors import UserError

RECIPE = "configs/imagenet.py"
TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
SITE = "https://image-net.org/download-images"
TRAIN_IMAGES, VALIDATION_IMAGES = 12, 10


def python(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def line(process):
    """Asserts that a process failed with one line for its user, and returns the line."""
    assert process.returncode == 1
    assert process.stdout == ""
    lines = process.stderr.splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def pixels(encoded):
    image = np.asarray(Image.open(io.BytesIO(encoded)))
    return image.shape, image.tobytes()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """A folder with the two official tars in small, and the (pixels, label) of both splits."""
    folder = tmp_path_factory.mktemp("tars")
    made = make(folder, TRAIN_IMAGES, VALIDATION_IMAGES)
    content = {
        split: Counter((pixels(data), names[name].label) for name, data in images(folder, split))
        for split, names in made.items()
    }
    return folder, content


@pytest.fixture(scope="module")
def prepared(miniature, tmp_path_factory):
    """What the prepare command made of the tars: its folder, and the finished process."""
    folder = tmp_path_factory.mktemp("tfds")
    flags = (f"--manual_dir={miniature[0]}", f"--data_dir={folder}")
    return folder, python("-m", "inception_jax.data.prepare", "imagenet2012", *flags)


def test_without_imagenet_the_first_run_says_what_to_download_and_the_command_after(tmp_path):
    arguments = (f"--config={RECIPE}", f"--config.data.dir={tmp_path}", f"--workdir={tmp_path}/run")
    told = line(python("-m", "inception_jax.main", *arguments))
    assert f"imagenet2012 is not in {tmp_path}" in told
    assert f"download {' and '.join(TARS)} from {SITE} into {tmp_path}/downloads/manual" in told
    assert f"`python -m inception_jax.data.prepare imagenet2012 --data_dir={tmp_path}`" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("there", [(), TARS[:1], TARS[1:]], ids=["none", "train", "validation"])
def test_preparing_without_a_tar_names_it_and_the_folder(there, by_hand, tmp_path, capfd):
    """TFDS would go on without it and leave the split out."""
    folder = tmp_path / "elsewhere" if by_hand else tmp_path / "sets" / "downloads" / "manual"
    folder.mkdir(parents=True)
    for name in there:
        (folder / name).touch()
    flags = [f"--data_dir={tmp_path}/sets", *([f"--manual_dir={folder}"] if by_hand else [])]
    assert prepare.main(["prepare", "imagenet2012", *flags]) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    missing = [name for name in TARS if name not in there]
    assert printed.err.startswith(f"error: {folder} lacks {' and '.join(missing)}: download")
    assert SITE in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "sets" / "imagenet2012").exists()


def test_the_official_tars_are_prepared_without_a_word_but_where_they_are(prepared):
    folder, process = prepared
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].startswith(f"imagenet2012 is in {folder}/imagenet2012/")
    assert process.stderr == ""


def test_what_is_prepared_needs_its_tars_no_more(prepared, tmp_path, capfd):
    flags = [f"--data_dir={prepared[0]}", f"--manual_dir={tmp_path}"]
    assert prepare.main(["prepare", "imagenet2012", *flags]) == 0
    assert capfd.readouterr().out.startswith(f"imagenet2012 is in {prepared[0]}")


@pytest.mark.parametrize(
    ("share", "told"),
    [(0, "TAR is no tar, or an empty or damaged one"), (0.6, "an archive in FOLDER is cut short")],
    ids=["empty", "cut"],
)
def test_a_tar_that_was_not_downloaded_to_its_end_is_told(share, told, miniature, tmp_path, capfd):
    for name in TARS:
        whole = (miniature[0] / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    flags = [f"--data_dir={tmp_path}/sets", f"--manual_dir={tmp_path}"]
    assert prepare.main(["prepare", "imagenet2012", *flags]) == 1
    error = capfd.readouterr().err
    assert told.replace("TAR", f"{tmp_path}/{TARS[0]}").replace("FOLDER", str(tmp_path)) in error
    assert error.count("\n") == 1


def test_every_image_of_the_tars_is_read_with_its_official_label(miniature, prepared):
    config = imagenet.get_config().data
    config.dir = str(prepared[0])
    data = datasets.load(config)
    assert data.num_classes == 1000
    for source, split in ((data.train, "train"), (data.eval, "validation")):
        examples = (source.read(index) for index in range(len(source)))
        found = Counter((pixels(encoded), label) for encoded, label in examples)
        assert found == miniature[1][split]
    assert {label for _, label in miniature[1]["train"]} >= {0, 999}
    assert (len(data.train), len(data.eval)) == (TRAIN_IMAGES, VALIDATION_IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["", ":poly"], ids=["paper", "poly"])
def test_the_published_recipe_trains_and_is_evaluated(variant, prepared, tmp_path):
    process = python(
        *("-m", "inception_jax.main", f"--config={RECIPE}{variant}", f"--workdir={tmp_path}"),
        *(f"--config.data.dir={prepared[0]}", "--config.model.width=0.0625"),
        *("--config.batch_size=4", "--config.eval.batch_size=4", "--config.log_every_steps=1"),
        *("--config.epochs=1", "--config.schedule.every_epochs=0.5"),
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["step"], results["epoch"]) == (3, 1)
    assert results["examples"] == VALIDATION_IMAGES
    config = results["config"]
    assert config["data"]["image_size"] == 224
    as_published = dict.fromkeys(config["model"]) | {"name": "googlenet"}
    assert config["model"] == as_published | {"width": 0.0625, "dtype": "float32"}
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [row["rate"] for row in rows if row["kind"] == "train"]
    t = np.arange(3) / 3
    expected = 0.01 * (1 - t) ** 0.5 if variant else 0.01 * 0.96 ** np.floor(2 * t)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    # log 1000 of an untrained network
    assert all(abs(row["loss"] - np.log(1000)) < 1 for row in rows if row["kind"] == "eval")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "zfnet", "vgg16", "sppnet"])
def test_the_other_networks_train_by_their_own_recipes(name, prepared, tmp_path):
    process = python(
        *("-m", "inception_jax.main", f"--config={RECIPE}:{name}", f"--workdir={tmp_path}"),
        *(f"--config.data.dir={prepared[0]}", "--config.model.width=0.0625"),
        *("--config.batch_size=4", "--config.eval.batch_size=4", "--config.log_every_steps=1"),
        *("--config.epochs=2", "--config.schedule.every_epochs=1", "--config.data.std=(64,64,64)"),
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["step"], results["examples"]) == (6, VALIDATION_IMAGES)
    assert ("top5_180" in results) == (name == "sppnet")
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["main_loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 6
    # log 1000 of an untrained network, or more where first biases of 1 spread the logits
    assert np.log(1000) - 1 < losses[0] < 10


def test_an_unknown_variant_names_those_there_are():
    with pytest.raises(UserError) as caught:
        config_lib.load(f"{ROOT}/{RECIPE}:nosuch")
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith("configs/imagenet.py has no variant 'nosuch': it has googlenet, poly,")
    assert all(name in told for name in imagenet.RECIPES)


def test_the_variants_are_those_that_were_published():
    """Szegedy et al. 2014, section 6; BVLC/caffe, solver.prototxt and quick_solver.prototxt."""
    paper, poly = imagenet.get_config(), imagenet.get_config("poly")
    assert config_lib.load(f"{ROOT}/{RECIPE}").to_dict() == paper.to_dict()
    assert imagenet.get_config("googlenet").to_dict() == paper.to_dict()
    assert config_lib.load(f"{ROOT}/{RECIPE}:poly").to_dict() == poly.to_dict()

    schedule = paper.schedule
    assert (schedule.name, schedule.factor, schedule.every_epochs) == ("step", 0.96, 8)
    assert (poly.schedule.name, poly.schedule.power) == ("poly", 0.5)
    assert (paper.average.name, poly.average.name) == ("exponential", "none")
    for config, iterations in ((paper, 10e6), (poly, 2.4e6)):
        epochs = iterations * 32 / 1_281_167
        assert config.epochs == pytest.approx(epochs, rel=0.002)
        assert (config.batch_size, config.schedule.rate) == (32, 0.01)
        assert config.schedule.warmup_epochs == 0
        optim = config.optim
        assert (optim.name, optim.momentum, optim.momentum_form) == ("sgd", 0.9, "caffe")
        assert optim.weight_decay == 2e-4
        assert (config.data.name, config.data.eval_split) == ("imagenet2012", "validation")

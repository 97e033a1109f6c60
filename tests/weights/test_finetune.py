"""From a public file to a network for one's own images, by the commands that README shows."""

import json
import subprocess
import sys
from itertools import product

import graphs
import numpy as np
import onnx
import pytest
from conftest import ROOT, arrays
from PIL import Image
from sklearn.linear_model import LogisticRegression

COLOURS = {"blue": (60, 90, 200), "green": (70, 190, 80), "red": (200, 70, 60)}
SIZES = {"train": 32, "val": 16}


def run(*arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout


def paint(folder):
    """Stripes of a class's colour, more or less, and of some grey, in any direction; with noise."""
    rng = np.random.default_rng(0)
    for (split, count), (name, colour) in product(SIZES.items(), COLOURS.items()):
        (folder / split / name).mkdir(parents=True)
        for number in range(count):
            height, width = rng.integers(200, 300, 2)
            y, x = np.mgrid[:height, :width]
            angle, wide = rng.uniform(0, np.pi), rng.uniform(10, 40)
            stripes = (x * np.cos(angle) + y * np.sin(angle)) // wide % 2 == 0
            tone = np.array(colour) + rng.normal(0, 15, 3)
            image = np.where(stripes[..., None], tone, rng.integers(0, 255))
            image = np.clip(image + rng.normal(0, 25, image.shape), 0, 255).astype(np.uint8)
            kind = ("jpg", "png", "webp")[number % 3]
            Image.fromarray(image).save(folder / split / name / f"{number}.{kind}")


def features(model, folder, split):
    """What the graph's last pooling gives for each image's centre, by onnxruntime and Pillow."""
    (pooling,) = (node for node in model.graph.node if node.op_type == "AveragePool")
    images, labels = [], []
    for label, name in enumerate(COLOURS):
        for path in sorted((folder / split / name).iterdir()):
            image = Image.open(path).convert("RGB")
            sides = [round(256 * side / min(image.size)) for side in image.size]
            left, top = ((side - 224) // 2 for side in sides)
            image = image.resize(sides).crop((left, top, left + 224, top + 224))
            images.append(np.asarray(image, np.float32) - np.float32([123, 117, 104]))
            labels.append(label)
    (maps,) = graphs.run(model, np.stack(images)[..., ::-1], [pooling])
    return maps.reshape(len(labels), -1), labels


@pytest.mark.slow
def test_imported_weights_learn_a_folder_of_images_and_frozen_layers_stay(tmp_path):
    """As well as a logistic regression on what the graph makes of the images elsewhere."""
    weights, images, workdir = (tmp_path / name for name in ("weights", "images", "run"))
    model = graphs.load("googlenet")
    onnx.save(model, tmp_path / "a.onnx")
    paint(images)
    out = run("inception_jax.weights", tmp_path / "a.onnx", "--model=googlenet", f"--out={weights}")
    assert "6,998,552 parameters, 1,000 classes, from a.onnx" in out
    out = run(
        *("inception_jax.main", "--config=configs/finetune.py", f"--config.init_from={weights}"),
        *(f"--config.data.dir={images}", f"--workdir={workdir}", "--config.epochs=8"),
        *("--config.schedule.rate=3e-4", "--config.optim.freeze=('(conv|inception_[34]).*',)"),
    )
    assert "new: loss3/classifier, for 3 classes instead of 1000" in out
    results = json.loads((workdir / "results.json").read_text())
    assert results["class_names"] == list(COLOURS)
    assert results["examples"] == SIZES["val"] * len(COLOURS)

    regression = LogisticRegression(C=0.01, max_iter=5000)
    expected = regression.fit(*features(model, images, "train")).score(
        *features(model, images, "val")
    )
    assert expected > 0.97  # chance is 0.33
    assert results["top1"] > 0.97

    before, after = arrays(weights, 0), arrays(workdir, results["step"])
    kept = {name for name in before if before[name].tobytes() == after[name].tobytes()}
    trained = {name for name in before if "inception_5" in name or "classifier" in name}
    assert kept == before.keys() - trained
    assert len(kept) == 2 * (57 - 2 * 6)

    told = json.loads(run("inception_jax.evaluate", workdir, "--format=json"))
    assert {k: told[k] for k in ("top1", "loss")} == {k: results[k] for k in ("top1", "loss")}

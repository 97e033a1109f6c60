"""Every network learns some digits as its recipe in configs/digits.py builds it."""

import jax
import numpy as np
import pytest

from configs import digits
from inception_jax import models, program, sharding

CASES = [  # name, fields
    ("alexnet", {"variant": "grouped"}),
    ("alexnet", {"variant": "single_tower"}),
    ("zfnet", {}),
    ("zfnet512", {}),
    ("vgg11", {}),
    ("vgg11", {"batch_norm": True}),
    ("vgg13", {}),
    ("vgg16", {}),
    ("vgg19", {}),
    ("sppnet", {"base": "zf5"}),
    ("sppnet", {"base": "overfeat7"}),
    ("googlenet", {"modules": "4a"}),  # all nine, and other forms, in test_googlenet.py
]


def test_every_network_is_here_and_in_the_recipe():
    assert {name for name, _ in CASES} == set(digits.IMAGE_SIZES) == set(models.NAMES)


def some_digits(side):
    """32 training images with a few of each class, as large as the network needs."""
    from sklearn import datasets

    data = datasets.load_digits()
    place = np.arange(side) * 8 // side
    grey = np.round(data.images[:32, place][:, :, place] * (255 / 16)).astype(np.uint8)
    return {
        "image": np.repeat(grey[..., None], 3, axis=-1),
        "label": data.target[:32].astype(np.int32),
        "epoch": np.zeros(32, np.int32),
        "example": np.arange(32, dtype=np.int32),
    }


@pytest.mark.parametrize("name, fields", CASES)
def test_every_parameter_learns_and_the_loss_falls(name, fields):
    """From 2.3, chance, to below 1. A layer built but not connected keeps its first weights."""
    config = digits.get_config(name)
    config.model.update(fields | {"dropout": 0.0})
    config.batch_size = 32
    config.epochs = 1000.0  # of one step each: the rate is as good as constant
    config.schedule.update({"rate": 1e-3 if name == "googlenet" else 3e-4, "warmup_epochs": 0.0})
    config.optim.update({"name": "adamw", "weight_decay": 0.0})  # moved by their gradients only

    mesh = sharding.make_mesh(config.mesh)
    run = program.make(config, mesh, num_examples=32, num_classes=10)
    step = run.train_step.lower(run.state, run.train_batch[config.data.image_size]).compile(
        compiler_options={"xla_backend_optimization_level": 0}
    )
    batch = sharding.place_batch(some_digits(config.data.image_size), mesh)
    state = run.init()
    first = jax.tree.map(np.array, state.params)
    losses = []
    while len(losses) < 60 and (not losses or losses[-1] > 1):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if len(losses) == 1:
            moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first, state.params)
            for path, change in jax.tree_util.tree_leaves_with_path(moved):
                assert change > 0, jax.tree_util.keystr(path)
    assert losses[0] > 2 and losses[-1] < 1, losses  # of NaN neither holds

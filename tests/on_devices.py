"""Trains a small GoogLeNet on so many virtual devices and stores what came out; run by tests.

python tests/on_devices.py DEVICES RUN [-- RUN ...]
python tests/on_devices.py DEVICES@ADDRESS:PORT,HOSTS,NUMBER RUN [-- RUN ...]

A RUN is OUT.npz STEPS [--config.FIELD=VALUE ...]. The second is one of several hosts, each with so
many devices; the first of them stores.
"""

import itertools
import os
import sys

devices, *words = sys.argv[1:]
devices, _, cluster = devices.partition("@")
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from inception_jax import config as config_lib  # noqa: E402
from inception_jax import hosts, program, sharding  # noqa: E402
from inception_jax.checkpoint import describe  # noqa: E402
from inception_jax.data import datasets, order, pipeline  # noqa: E402


def train(out, steps, *overrides):
    _, config = config_lib.parse(["on_devices", "--config=configs/digits.py", *overrides])
    jax.config.update("jax_enable_x64", config.model.dtype == "float64")
    data = datasets.load(config.data)
    mesh = sharding.make_mesh(config.mesh)
    prog = program.make(config, mesh, num_examples=len(data.train), num_classes=data.num_classes)
    state, losses = hosts.compiled(prog.init)(), []
    batch = prog.train_batch[config.data.image_size]
    train_step = hosts.compiled(prog.train_step, prog.state, batch)
    for batch in pipeline.training(
        data.train,
        order.training(len(data.train), config.batch_size, config.seed),
        sharding.local_rows(config.batch_size, mesh),
        range(int(steps)),
        config.data,
        config.seed,
    ):
        del batch["due"]
        state, metrics = train_step(state, sharding.place_batch(batch, mesh))
        losses.append(metrics["loss"].item())

    names = describe(state)
    leaves = jax.tree.leaves(state)
    shares = [leaf.addressable_shards[0].data.size / leaf.size for leaf in leaves]
    if cluster:
        leaves = multihost_utils.process_allgather(leaves, tiled=True)
    if jax.process_index() == 0:
        np.savez(
            out,
            losses=losses,
            hlo=train_step.as_text(),
            devices=jax.device_count(),
            shares=shares,  # of each array, on a device
            **dict(zip(names, leaves, strict=True)),
        )


if cluster:
    address, count, number = cluster.split(",")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(count), int(number))
for separates, run in itertools.groupby(words, "--".__eq__):
    if not separates:
        train(*run)

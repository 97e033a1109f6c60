"""Trains a linear model for a step on mixed images, on one device and on eight; run by tests.

python tests/mix_on_devices.py OUT.npz
"""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from configs import digits
from inception_jax import sharding, step
from inception_jax.data import device
from inception_jax.models.layers import Logits

config = digits.get_config()
config.data.update({"mirror": True, "brightness": 0.5, "contrast": 0.5, "lighting": 0.1})
config.data.update({"erasing": 0.5, "mixup": 0.2, "cutmix": 1.0, "randaugment_layers": 1})
rng = np.random.default_rng(0)
batch = {
    "image": rng.integers(256, size=(32, 16, 16, 3), dtype=np.uint8),
    "label": rng.integers(10, size=32).astype(np.int32),
    "epoch": np.full(32, 2, np.int32),
    "example": np.arange(100, 132, dtype=np.int32),
}


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return Logits(nn.Dense(10, param_dtype=jnp.float32)(x.reshape(len(x), -1)), ())


def train(devices, accumulation):
    mesh = jax.make_mesh(
        (devices, 1),
        ("data", "model"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )
    everywhere, split = sharding.replicated(mesh), sharding.over_batch(mesh)
    model, optimizer = Linear(), optax.sgd(1.0)
    update = step.make_train_step(
        model,
        optimizer,
        device.make_preprocess(config.data, 0),
        schedule=lambda t: 1.0,
        seed=0,
        auxiliary_weight=0.0,
        label_smoothing=0.0,
        accumulation=accumulation,
        mix=device.make_mix(config.data, 0),
    )
    update = jax.jit(
        update,
        in_shardings=(everywhere, split),
        out_shardings=everywhere,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    state = step.init_state(step.init_variables(model, 16, 0), optimizer)
    compiled = update.lower(state, batch).compile()
    state = jax.device_put(state, everywhere)
    after, metrics = compiled(state, sharding.place_batch(batch, mesh))
    return {
        "loss": metrics["loss"],
        "kernel": after.params["Dense_0"]["kernel"] - state.params["Dense_0"]["kernel"],
        "hlo": compiled.as_text(),
    }


results = {"one": train(1, 1), "eight": train(8, 4)}
np.savez(sys.argv[1], **{f"{k}_{name}": v for k, r in results.items() for name, v in r.items()})

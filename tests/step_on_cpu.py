"""Runs training steps on virtual devices and tells what they took; run by tests.

python tests/step_on_cpu.py DEVICES --config=... -> JSON: a device's memory in bytes, its flops.
"""

import json
import os
import sys

devices, *arguments = sys.argv[1:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from inception_jax import config as config_lib  # noqa: E402
from inception_jax import program, sharding  # noqa: E402


def resident(field):
    """Of this process now (VmRSS), or at most since the last reset (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


_, config = config_lib.parse(["step_on_cpu", *arguments])
mesh = sharding.make_mesh(config.mesh)
prog = program.make(config, mesh, num_examples=1437, num_classes=10)
shapes = prog.train_batch[config.data.image_size]
state = prog.init()
batch = sharding.place_batch({n: np.ones(x.shape, x.dtype) for n, x in shapes.items()}, mesh)
step = prog.train_step.lower(state, batch).compile()
held = [x for tree in (state, batch) for x in jax.tree.leaves(tree)]
on_first = sum(x.addressable_shards[0].data.nbytes for x in held)
jax.block_until_ready(held)
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # VmHWM begins anew
before = resident("VmRSS")
state, _ = jax.block_until_ready(step(state, batch))
temporaries, flops = resident("VmHWM") - before, step.cost_analysis()["flops"]
print(json.dumps({"held": on_first, "temporaries": temporaries, "flops": flops}))

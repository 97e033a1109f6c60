"""Computes with another process as soon as a line comes; run by tests.

python tests/late_host.py gather|compiled ADDRESS:PORT NUMBER
"""

import sys

import jax

what, address, number = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, int(number))

from jax.sharding import PartitionSpec as P  # noqa: E402

from inception_jax import hosts  # noqa: E402

assert jax.device_count() == 2  # which makes them known to each other
print("ready", flush=True)
sys.stdin.readline()
if what == "gather":
    print(hosts.gather(int(number) + 1))
else:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mine = jax.numpy.ones(1) * (int(number) + 1)
    both = jax.make_array_from_single_device_arrays(
        (2,), jax.sharding.NamedSharding(mesh, P("data")), [mine]
    )
    total = jax.jit(jax.numpy.sum, out_shardings=jax.sharding.NamedSharding(mesh, P()))
    print(hosts.compiled(total, both)(both))

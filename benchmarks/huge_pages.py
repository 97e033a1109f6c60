"""A recipe's training step on CPU, with glibc's huge pages and without.

    python -m benchmarks.huge_pages --config=configs/fashion_mnist.py

XLA on CPU takes the memory of a step anew each time, a hundred MB and more, and the system hands it
out and clears it page by page. Every run is a process of its own, the two kinds in turn; the ratio
is what counts.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from inception_jax import config as config_lib
from inception_jax import process, validate

ROUNDS, WARM_UP, STEPS = 3, 3, 20
TUNABLES = "glibc.malloc.hugetlb=1"


@process.command(__doc__, config_lib.HELP)
def main(argv: list[str]) -> None:
    """Prints the medians and their ratio."""
    _, config = config_lib.parse(argv)
    validate.check(config)
    process.quiet()
    if "HUGE_PAGES_CHILD" in os.environ:
        print(images_per_second(config))
        return
    speeds = {"": [], TUNABLES: []}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(ROUNDS):
            for tunables, measured in speeds.items():
                env = {"HUGE_PAGES_CHILD": "1", "GLIBC_TUNABLES": tunables}
                env |= {"JAX_COMPILATION_CACHE_DIR": cache}
                child = [sys.executable, "-m", "benchmarks.huge_pages", *argv[1:]]
                done = subprocess.run(
                    child, env=os.environ | env, stdout=subprocess.PIPE, check=True
                )
                measured.append(float(done.stdout))
    without, with_pages = map(statistics.median, speeds.values())
    print(f"images/s in training steps, medians of {ROUNDS} processes")
    print(f"  4 KB pages                              {without:8.0f}")
    print(f"  GLIBC_TUNABLES={TUNABLES}   {with_pages:8.0f}   x {with_pages / without:.2f}")


def images_per_second(config) -> float:
    """Runs a recipe's own training step on random images, after some steps to warm up."""
    import jax
    import numpy as np

    from inception_jax import program, sharding

    mesh = sharding.make_mesh(config.mesh)
    run = program.make(config, mesh, num_examples=60_000, num_classes=10)
    shapes = next(iter(run.train_batch.values()))  # of the first epoch
    rng = np.random.default_rng(0)
    high = {"image": 256, "label": 10, "epoch": 1, "example": 60_000}
    batch = {
        name: rng.integers(high[name], size=leaf.shape).astype(leaf.dtype)
        for name, leaf in shapes.items()
    }
    batch, state = sharding.place_batch(batch, mesh), run.init()
    train_step = run.train_step.lower(run.state, shapes).compile()
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            jax.block_until_ready(state)
            start = time.perf_counter()
        state, _ = train_step(state, batch)
    jax.block_until_ready(state)
    return STEPS * config.batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

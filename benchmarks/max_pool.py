"""Max pooling on this machine: XLA's gradient against the one kept by position.

    python -m benchmarks.max_pool

Times forward and gradient together, alternating between the two, and prints medians and their
ratio. Only the ratio says anything beyond this machine.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from inception_jax.models import layers

# batch, side, channels, window, stride: inside 3a, before 4a, and the same of the digits recipe
CASES = ((32, 28, 192, 3, 1), (32, 28, 480, 3, 2), (64, 8, 48, 3, 1), (64, 16, 48, 3, 2))
REPEATS = 15


def main() -> None:
    """Prints one line per case."""
    print(f"{jax.devices()[0].device_kind}; medians of {REPEATS}, in ms")
    print("batch x side x channels  pool  by position  XLA's  ratio")
    for batch, side, channels, window, stride in CASES:
        x_BHWC = jax.nn.relu(jax.random.normal(jax.random.key(0), (batch, side, side, channels)))
        padding = ((1, 1), (1, 1)) if stride == 1 else ((0, 1), (0, 1))
        functions = [
            compile_gradient(form, x_BHWC, window, stride, padding)
            for form in (layers._max_pool_by_position, layers._max_pool_xla)
        ]
        times = [[], []]
        for _ in range(REPEATS):
            for function, taken in zip(functions, times, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(function(x_BHWC))
                taken.append(1000 * (time.perf_counter() - start))
        ours, xla = map(statistics.median, times)
        shape = f"{batch} x {side}x{side} x {channels}"
        print(f"{shape:24} {window}/{stride}  {ours:11.1f}  {xla:5.1f}  {xla / ours:5.1f}")


def compile_gradient(form, x_BHWC, window, stride, padding):
    """Compiles the gradient of a sum over the pooled maximum, and runs it once."""

    def loss(x):
        return jnp.sum(jnp.sin(form(x, window, stride, padding)))

    function = jax.jit(jax.grad(loss)).lower(x_BHWC).compile()
    jax.block_until_ready(function(x_BHWC))
    return function


if __name__ == "__main__":
    main()

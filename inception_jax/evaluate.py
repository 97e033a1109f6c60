"""Exact evaluation: every image of the split counts once, whatever the batch and the devices."""

from collections.abc import Callable, Iterable

import jax


def evaluate(
    eval_step: Callable, state, batches: Iterable[dict[str, jax.Array]], examples: int
) -> dict[str, float]:
    """Sums eval_step over batches.

    Args:
      eval_step: (state, batch) -> sums, as made by step.make_eval_step.
      state: a TrainState.
      batches: padded global batches with `valid`, on the devices.
      examples: how many images the split has.

    Returns:
      top1, top5 (shares in [0, 1]), loss (mean cross entropy) and examples.

    Raises:
      RuntimeError: the batches did not hold every image once.
    """
    totals = {"top1": 0, "top5": 0, "loss": 0.0, "examples": 0}
    for batch in batches:
        sums = jax.device_get(eval_step(state, batch))
        totals = {name: total + sums[name].item() for name, total in totals.items()}
    if totals["examples"] != examples:
        raise RuntimeError(f"counted {totals['examples']} images of {examples}")
    result = {name: totals[name] / examples for name in ("top1", "top5", "loss")}
    return result | {"examples": examples}

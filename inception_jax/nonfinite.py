"""Training steps whose loss or gradient is not finite: left out on the device, counted on the host.

The host reads metrics one step late, when the next step has begun. So the device drops the update
itself, and the host tells it, and ends the run where it happens too often in a row.
"""

import math

import jax
import jax.numpy as jnp
import optax

WORDS = {"loss": "the loss", "grad_norm": "the gradient's norm"}


def unless(metrics: dict[str, jax.Array], new, old):
    """Takes what an update has made, or what was before it where one of WORDS is not finite.

    The counts from which schedules are read advance in any case, so that later steps have the rates
    of an undisturbed run. Those of moments stay with the moments.

    Args:
      metrics: of the step; scalars.
      new, old: trees of one structure, the optimiser's state among them.
    """
    finite = jnp.isfinite(jnp.stack([metrics[name] for name in WORDS])).all()

    def is_count(node):
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda new, old: new if is_count(new) else jnp.where(finite, new, old),
        new,
        old,
        is_leaf=is_count,
    )


def found(row: dict[str, float]) -> dict[str, str]:
    """What of a step's metrics is not finite, the first of WORDS; values as text, for JSON."""
    for name in WORDS:
        if not math.isfinite(row[name]):
            return {"what": name, "value": str(row[name])}
    return {}

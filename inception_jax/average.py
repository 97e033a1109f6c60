"""Polyak averaging: the mean of the parameters over training, which is what evaluation uses.

Polyak & Juditsky 1992; the paper, section 6, says that it was used and not in which form. Running
statistics of batch norm are averaged with the parameters that they belong to.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from inception_jax.errors import UserError

Update = Callable[[Any, jax.Array, Any], Any]


def start(variables: Any) -> dict[str, Any]:
    """An average before its first update.

    Returns:
      mean, what evaluation uses, and lost, what rounding has kept out of it so far.
    """
    return {
        "mean": jax.tree.map(jnp.copy, variables),
        "lost": jax.tree.map(jnp.zeros_like, variables),
    }


def make_update(config: ConfigDict, steps_per_epoch: Fraction, total_steps: int) -> Update | None:
    """Makes update(average, step, variables) -> average, or None where there is to be none.

    With n updates since the average began, p_1 .. p_n the variables after each of them:
      plain        sum of p_k, divided by n
      exponential  sum of decay^(n-k) p_k, divided by the sum of the weights
    Until it begins, the average is the variables themselves.

    Late in a long run each update changes the mean by less than float32's last digit. What a sum
    loses is therefore kept and added with the next one (Kahan 1965).

    Args:
      config: `config.average`.
      steps_per_epoch: exact.
      total_steps: updates in the whole run.

    Raises:
      UserError: it would begin at the end of the run or later.
    """
    if config.name == "none":
        return None
    begin = round(Fraction(str(config.start_epochs)) * steps_per_epoch)
    if begin >= total_steps:
        raise UserError(
            f"config.average.start_epochs={config.start_epochs} is not before the end of the run,"
            f" step {total_steps}: the average would have no steps; lower it, or set"
            " config.average.name=none"
        )

    def weight(n):
        """Of the newest variables."""
        if config.name == "plain":
            return 1.0 / n
        # 1 - decay^n, exact in float32 for small n, too
        return (1 - config.decay) / -jnp.expm1(n * math.log(config.decay))

    def update(average, step, variables):
        n = step - begin
        newest = weight(jnp.asarray(jnp.maximum(n, 1), float))

        def add(mean, lost, variable):
            change = newest.astype(mean.dtype) * (variable - mean - lost) + lost
            total = mean + change
            left = change - (total - mean)
            return jnp.where(n <= 1, variable, total), jnp.where(n <= 1, 0, left)

        pairs = jax.tree.map(add, average["mean"], average["lost"], variables)
        mean, lost = jax.tree.transpose(
            jax.tree.structure(variables), jax.tree.structure((0, 0)), pairs
        )
        return {"mean": mean, "lost": lost}

    return update

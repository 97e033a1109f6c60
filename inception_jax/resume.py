"""What may differ between a stored run and the config that is to go on with it."""

import json

from inception_jax.config import flatten
from inception_jax.errors import UserError

# A change of these would make another network, or another sequence of examples or updates.
FIXED = (
    "seed",
    "batch_size",
    "model.name",
    "model.auxiliary_heads",
    "model.batch_norm",
    "model.width",
    "model.small_stem",
    "data.name",
    "data.train_split",
    "optim.momentum_form",
)


def compare(meta: dict, config, num_classes: int, workdir) -> list[str]:
    """Lists what differs from the stored config, a line each.

    Args:
      meta: of the checkpoint.
      config: the given ConfigDict.
      num_classes: of the given data.
      workdir: for messages.

    Raises:
      UserError: a difference that cannot be resumed.
    """
    stored = dict(flatten(meta["config"]))
    given = dict(flatten(json.loads(config.to_json_best_effort())))
    differing = [name for name in given | stored if given.get(name) != stored.get(name)]
    for name in differing:
        if name in FIXED:
            raise UserError(
                f"the run in {workdir} has config.{name}={stored.get(name)}, not"
                f" {given.get(name)}: take another --workdir, or set it back"
            )
    if meta["num_classes"] != num_classes:
        raise UserError(
            f"the run in {workdir} has {meta['num_classes']} classes, the data {num_classes}:"
            " take another --workdir"
        )
    return [
        f"config.{name}: {stored.get(name)} before, {given.get(name)} now" for name in differing
    ]

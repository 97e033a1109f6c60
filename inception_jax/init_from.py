"""What a config takes over from `config.init_from`, a folder of imported weights or another run's.

Before anything is checked, and without jax; the arrays follow in transfer.py.
"""

import os
from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from configs.googlenet import FREE_FIELDS, MODEL_FIELDS
from inception_jax import config as config_lib
from inception_jax import models
from inception_jax.errors import UserError

# What weights are worth nothing without, and how it is told.
ADOPTED = {
    "model.name": "{}",
    "model.width": "",
    **{f"model.{name}": "" for name in MODEL_FIELDS if name not in FREE_FIELDS},
    "data.image_size": "images of {} pixels",
    "data.eval_resize": "",
    "data.mean": "mean {}",
    "data.std": "std {}",
}


def adopt(config: ConfigDict, keep: Collection[str], workdir: Path | None = None) -> str | None:
    """Gives a config the fields that belong to the weights of its init_from.

    Args:
      config: changed in place; not yet checked.
      keep: names of fields to leave alone, as the command line sets them.
      workdir: a run that was begun from the same weights there serves where these are gone.

    Returns:
      A line that tells what was taken, or None where there is nothing to start from.

    Raises:
      UserError: the folder has no config, or one of another kind of network.
    """
    folder = config.get("init_from")
    if not folder or not isinstance(folder, str):  # what is wrong with it, validate.check tells
        return None
    if os.path.isfile(os.path.expanduser(folder)):
        raise UserError(
            f"config.init_from={folder} is a file: make a folder of it with `python -m"
            f" inception_jax.weights {folder} --model=NAME --out=DIR`"
        )
    try:
        stored = _config_of(folder, workdir)
        config_lib.choose("model.name", stored.model.name, models.NAMES)
    except UserError as error:
        raise UserError(f"config.init_from={folder}: {error}") from None
    values, fields = dict(config_lib.flatten(stored)), dict(config_lib.flatten(config))
    taken = {name: values[name] for name in ADOPTED if name in fields and name not in keep}
    config.update_from_flattened_dict(taken)
    told = [ADOPTED[name].format(value) for name, value in taken.items() if ADOPTED[name]]
    return f"from {folder}: {', '.join(told)}"


def _config_of(folder, workdir):
    gone = not os.path.isfile(os.path.join(os.path.expanduser(folder), "config.json"))
    if gone and workdir and (workdir / "config.json").is_file():
        begun = config_lib.read(str(workdir))
        if begun.init_from == folder:
            return begun
    return config_lib.read(folder)

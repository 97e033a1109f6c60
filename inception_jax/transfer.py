"""Parameters and batch statistics of a stored network, for another one that is like it."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax import checkpoint
from inception_jax.errors import UserError

_HEAD = re.compile(r"(?:params|batch_stats)/(loss[12])/.*")
_CLASSIFIER = re.compile(r"params/(loss[123]/classifier|fc8)/(?:kernel|bias)")


def newest(folder: str) -> tuple[checkpoint.Found, list[str]]:
    """Chooses the newest whole checkpoint of a folder; changes nothing.

    Returns:
      It, and a line for each newer one that is damaged.

    Raises:
      UserError: there is none.
    """
    found, damaged = checkpoint.Checkpoints(Path(folder).expanduser(), keep=1).find_newest()
    if found is None:
        raise UserError(f"{folder} has no checkpoint: let its run save one, or take another folder")
    return found, [
        f"checkpoint {bad.name} in {folder} is damaged ({problem}): taking {found.step}"
        for bad, problem in damaged.items()
    ]


def read(
    found: checkpoint.Found, variables: dict[str, Any], num_classes: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads what a network can use of a checkpoint; averaged, where there is an average.

    Args:
      found: from newest.
      variables: params and batch_stats of the network, trees of ShapeDtypeStructs.
      num_classes: K of the network.

    Returns:
      Arrays by their names in `variables`, and a line for each layer that is new or left out:
      classifiers where K is another, auxiliary heads that only one side has.

    Raises:
      UserError: anything else is missing, too much or of another shape; a line for each.
    """
    names, lines = _match(found, variables, num_classes)
    stored = checkpoint.read(found, names.values())
    return {name: stored[there] for name, there in names.items()}, lines


def _match(found, variables, num_classes):
    """The stored name of every array to take, and what becomes of the others."""
    stored = found.meta["arrays"]
    mean = "average/mean/" if any(name.startswith("average/mean/") for name in stored) else ""
    there = {
        name.removeprefix(mean): _shape(array)
        for name, array in stored.items()
        if name.startswith((f"{mean}params/", f"{mean}batch_stats/"))
    }
    here = {name: _shape(array) for name, array in checkpoint.describe(variables).items()}
    before = found.meta["num_classes"]
    taken, lines, misfits = {}, [], []
    for name in sorted(here.keys() | there.keys()):
        head, classifier = _HEAD.fullmatch(name), _CLASSIFIER.fullmatch(name)
        if head and head[1] not in _heads(there):
            lines.append(f"new: {head[1]}, which the weights do not have")
        elif head and head[1] not in _heads(here):
            lines.append(f"left out: {head[1]}, which the network does not have")
        elif classifier and before != num_classes:
            lines.append(f"new: {classifier[1]}, for {num_classes} classes instead of {before}")
        elif here.get(name) == there.get(name):
            taken[name] = mean + name
        else:
            misfits.append(f"  {name}: {there.get(name, 'none')}, not {here.get(name, 'none')}")
    if misfits:
        raise UserError(
            f"the weights in {found.folder} do not fit the network, {len(misfits)} arrays differ:"
            " leave config.model and config.data.image_size as they are there\n"
            + "\n".join(misfits)
        )
    return taken, list(dict.fromkeys(lines))


def _shape(array):
    return array[array.index("[") :]


def _heads(names):
    return {found[1] for found in map(_HEAD.fullmatch, names) if found}

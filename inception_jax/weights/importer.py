"""From a file of any known format to a folder with a checkpoint."""

import functools
import json
import math
from pathlib import Path

import jax

from inception_jax import workdir
from inception_jax.checkpoint import Checkpoints
from inception_jax.errors import UserError
from inception_jax.weights import files, mapping, topology, torchvision


def convert_file(path: Path, name: str, out: Path, preprocessing: str | None) -> str:
    """Reads public weights and writes a checkpoint of them, of a network that takes RGB.

    Args:
      path: of the file.
      name: the network that it holds, of models.NAMES.
      out: the folder to make: config.json, and the checkpoint of step 0 with params and
        batch_stats.
      preprocessing: of mapping.PREPROCESSING; None where the file tells.

    Returns:
      What was written, in words.

    Raises:
      UserError: whatever the user can mend; nothing is written then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: take another --out, or remove it")
    if preprocessing not in (None, *mapping.PREPROCESSING):
        known = ", ".join(mapping.PREPROCESSING)
        raise UserError(f"--preprocessing is {preprocessing!r}; known: {known}")
    content = _told(path, files.read, path)
    is_graph = not isinstance(content, dict)
    layout = topology if is_graph else torchvision
    if name not in layout.NAMES:
        what = "an ONNX graph" if is_graph else "tensors by torchvision's names"
        raise UserError(
            f"{path} holds {what}, which can be read for {', '.join(layout.NAMES)}, not for {name}"
        )
    found, expected, problems = _told(path, _examine, layout, content, name)
    if problems:
        fits = next((n for n in layout.NAMES if n != name and not _fails(layout, content, n)), None)
        hint = f"; it fits --model={fits}" if fits else ""
        lines = "".join(f"\n  {line}" for line in problems)
        raise UserError(f"{path} is not {name}{hint}:{lines}")
    preprocessing = preprocessing or found.preprocessing
    if preprocessing is None:
        raise UserError(
            f"{path} does not tell what input it expects: set --preprocessing to"
            f" {', '.join(mapping.PREPROCESSING)}; see --help"
        )
    pixels = mapping.PREPROCESSING[preprocessing]
    variables = mapping.convert(found, expected, pixels)
    config = found.config
    config.data.image_size = found.image_size
    config.data.eval_resize = max(256, found.image_size)
    config.data.mean, config.data.std = pixels.mean, pixels.std
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    told = f"{name}, {count:,} parameters, {found.num_classes:,} classes, from {path.name}"
    _write(out, variables, config, found.num_classes, told)
    return (
        f"{told}\n"
        f"takes RGB images of {found.image_size} pixels, minus {pixels.mean}, divided by"
        f" {pixels.std}\n"
        f"is in {out}: --config.init_from={out} starts from it"
    )


def _told(path, function, *arguments):
    """Calls a function; whatever damage of the file makes it raise becomes a UserError."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} is damaged, or not what it seems ({told})") from None


def _examine(layout, content, name):
    found = layout.find(content, name)
    try:
        expected = mapping.shapes(found.config.model, found.num_classes, found.image_size)
    except UserError as error:
        return found, {}, [*found.problems, str(error)]
    return found, expected, mapping.problems(found, expected)


def _fails(layout, content, name):
    return bool(_examine(layout, content, name)[-1])


def _write(out, variables, config, num_classes, told):
    """Writes what a run's workdir has, as far as there is any."""
    config_json = json.loads(config.to_json_best_effort())
    meta = {"step": 0, "config": config_json, "num_classes": num_classes, "source": told}
    with workdir.hold(out):
        checkpoints = Checkpoints(out, keep=1)
        save = functools.partial(checkpoints.save, 0, variables, meta, best=None)
        save()
        checkpoints.finish(save)
        workdir.write_json(out / "config.json", config_json)

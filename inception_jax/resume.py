"""What may differ between a stored run and the config that is to go on with it."""

import json
from typing import Any

from configs.googlenet import FREE_FIELDS, MODEL_FIELDS
from inception_jax import models
from inception_jax.config import BEFORE, flatten
from inception_jax.errors import UserError

# A change of these would make another network, another sequence of examples, another meaning of
# what the optimiser or the average has stored, or evaluations that cannot be compared with the
# earlier ones.
FIXED = (
    "seed",
    "init_from",
    "batch_size",
    "model.name",
    "model.dtype",
    "model.width",
    *(f"model.{name}" for name in MODEL_FIELDS if name not in FREE_FIELDS),
    "data.name",
    "data.train_split",
    "data.eval_split",
    "data.eval_resize",
    "data.image_size",
    "data.train_sizes",
    "data.mean",
    "data.std",
    "eval.sizes",
    "optim.name",
    "optim.momentum_form",
    "optim.betas",
    "average.name",
    "average.decay",
    "average.start_epochs",
)


def compare(meta: dict, config, facts: dict[str, int | list[str]], workdir) -> list[str]:
    """Lists what differs from the stored config, a line each.

    Args:
      meta: of the checkpoint.
      config: the given ConfigDict.
      facts: num_classes, num_examples and, if known, class_names of the given data; meta has those
        of the stored.
      workdir: for messages.

    Raises:
      UserError: a difference that cannot be resumed.
    """
    if "source" in meta:
        raise UserError(
            f"{workdir} holds imported weights, not a run: start one from them with"
            f" --config.init_from={workdir} and another --workdir"
        )
    stored = BEFORE | _spelt_out(meta["config"])
    given = _spelt_out(json.loads(config.to_json_best_effort()))
    differing = [name for name in given | stored if given.get(name) != stored.get(name)]
    for name in differing:
        if name in FIXED:
            raise UserError(
                f"the run in {workdir} has config.{name}={stored.get(name)}, not"
                f" {given.get(name)}: take another --workdir, or set it back"
            )
    for name, found in numbered(facts).items():
        before = numbered(meta).get(name, found)  # stored before there were names
        if before != found:
            raise UserError(
                f"the run in {workdir} has {name}={before}, the data {found}: take another"
                " --workdir, or the data of before"
            )
    return [
        f"config.{name}: {stored.get(name)} before, {given.get(name)} now" for name in differing
    ]


def numbered(facts: dict[str, Any]) -> dict[str, int | str]:
    """The facts with each class's name by itself, so that a message has the one that differs."""
    names = facts.get("class_names", ())
    return {
        **{name: facts[name] for name in ("num_classes", "num_examples")},
        **{f"class_names[{label}]": name for label, name in enumerate(names)},
    }


def _spelt_out(config):
    """All fields by name, those of the network that are None as what was published."""
    fields = dict(flatten(config))
    name = fields["model.name"]
    published = models.published(name) if name in models.NAMES else {}
    for field in MODEL_FIELDS:
        if fields.get(f"model.{field}") is None:
            value = published.get(field)
            fields[f"model.{field}"] = list(value) if isinstance(value, tuple) else value
    return fields

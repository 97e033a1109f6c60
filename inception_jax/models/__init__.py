"""The networks by name. Importing this imports none of them, nor jax."""

import dataclasses
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from inception_jax.errors import UserError


class Entry(NamedTuple):
    """Where a network is, and the attributes that its name stands for."""

    path: str
    attributes: Mapping[str, Any] = MappingProxyType({})


NAMES = {
    "alexnet": Entry("inception_jax.models.alexnet:AlexNet"),
    "zfnet": Entry("inception_jax.models.zfnet:ZFNet"),
    "zfnet512": Entry("inception_jax.models.zfnet:ZFNet512"),
    "vgg11": Entry("inception_jax.models.vgg:VGG", {"depth": 11}),
    "vgg13": Entry("inception_jax.models.vgg:VGG", {"depth": 13}),
    "vgg16": Entry("inception_jax.models.vgg:VGG", {"depth": 16}),
    "vgg19": Entry("inception_jax.models.vgg:VGG", {"depth": 19}),
    "sppnet": Entry("inception_jax.models.sppnet:SPPNet"),
    "googlenet": Entry("inception_jax.models.googlenet:GoogLeNet"),
}


def published(name: str) -> dict[str, Any]:
    """What the fields of `config.model` that are None stand for, of the network of that name."""
    return {field.name: field.default for field in dataclasses.fields(_network(NAMES[name]))}


def build(model_config, num_classes: int):
    """Makes the flax module that `config.model` describes.

    Args:
      model_config: `name`, one of NAMES, and attributes of the module; those that are None stay as
        published.
      num_classes: K, of the data.

    Returns:
      A linen module: `module(images_BHWC, train) -> Logits`, with `check(image_size)`.

    Raises:
      UserError: an attribute is given that this network does not have.
    """
    entry = NAMES[model_config.name]
    network = _network(entry)
    given = {k: v for k, v in model_config.items() if k != "name" and v is not None}
    known = [
        name
        for name in model_config
        if name in network.__dataclass_fields__ and name not in {"name", *entry.attributes}
    ]
    for name in sorted(given.keys() - known):
        raise UserError(
            f"config.model.{name} is {given[name]!r}, but {model_config.name} has no such field:"
            f" set it to None; it has {', '.join(known)}"
        )
    return network(num_classes=num_classes, **given, **entry.attributes)


def _network(entry):
    module, cls = entry.path.split(":")
    return getattr(importlib.import_module(module), cls)

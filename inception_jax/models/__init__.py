"""The networks by name. Importing this imports none of them, nor jax."""

import importlib

NAMES = {"googlenet": "inception_jax.models.googlenet:GoogLeNet"}


def build(model_config, num_classes: int):
    """Makes the flax module that `config.model` describes.

    Args:
      model_config: `name`, one of NAMES, and the module's own attributes.
      num_classes: K, of the data.

    Returns:
      A linen module: `module(images_BHWC, train) -> Logits`, with `check(image_size)`.
    """
    module, cls = NAMES[model_config.name].split(":")
    attributes = {name: value for name, value in model_config.items() if name != "name"}
    return getattr(importlib.import_module(module), cls)(num_classes=num_classes, **attributes)

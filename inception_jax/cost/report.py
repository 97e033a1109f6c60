"""A network's layers with what follows from them."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ml_collections import ConfigDict

from configs.googlenet import MODEL_FIELDS
from inception_jax import models
from inception_jax.cost import count, table1
from inception_jax.cost.count import Layer

# Fields that change neither what the paper's Table 1 lists nor what it counts.
_BESIDE_TABLE_1 = (
    *("auxiliary_heads", "auxiliary_bins", "dropout", "auxiliary_dropout"),
    *("lrn", "lrn_k", "lrn_alpha", "batch_norm_epsilon"),
)


class Report:
    """What one config's network costs.

    Attributes:
      name: what it is called beside others.
      model: config.model.name.
      image_size: side of the image, in pixels.
      num_classes: K.
      layers: from count.layers.
      table_1: rows beside the paper's, of GoogLeNet only.
    """

    def __init__(self, name: str, config: ConfigDict, num_classes: int):
        self.name, self.model = name, config.model.name
        self.image_size, self.num_classes = config.data.image_size, num_classes
        self._module = models.build(config.model, num_classes)
        self._module.check(self.image_size)
        self.layers = count.layers(self._module, self.image_size)
        self.table_1: Sequence[table1.Row] = ()
        if self.model == "googlenet":
            self.table_1 = table1.compare(self.layers, self._is_published(config.model))

    def _is_published(self, model_config) -> bool:
        """Whether this is the network of the paper's Table 1, chosen by silence or by name."""
        published = models.published(self.model) | {"projection": True}
        return (model_config.width, self.image_size, self.num_classes) == (1, 224, 1000) and all(
            model_config[name] in (None, published[name])
            for name in MODEL_FIELDS.keys() & published.keys() - set(_BESIDE_TABLE_1)
        )

    @property
    def title(self) -> str:
        """The network, its input and its classes."""
        size = f"{self.image_size}x{self.image_size}"
        return f"{self.name}: {self.model}, an image of {size} pixels, {self.num_classes} classes"

    @property
    def evaluated(self) -> list[Layer]:
        """The layers that evaluation needs."""
        return [layer for layer in self.layers if not layer.training_only]

    @cached_property
    def _xla_flops(self):
        return count.xla_flops(self._module, self.image_size)

    def totals(self) -> dict[str, Any]:
        """Sums over the layers, for one image in evaluation, and XLA's own count beside them."""
        layers = self.evaluated
        valid = sum(layer.valid_multiply_adds for layer in layers)
        other: dict[str, int] = {}
        for layer in layers:
            kind = "biases and ReLU" if layer.kind in count.MULTIPLY_ADDS else layer.kind
            if layer.other_flops:
                other[kind] = other.get(kind, 0) + layer.other_flops
        return {
            "depth": max(layer.depth for layer in layers),
            "parameters": sum(layer.parameters for layer in layers),
            "training_parameters": sum(layer.parameters for layer in self.layers),
            "multiply_adds": sum(layer.multiply_adds for layer in layers),
            "training_multiply_adds": sum(layer.multiply_adds for layer in self.layers),
            "valid_multiply_adds": valid,
            "xla_flops": self._xla_flops,
            "xla_ratio": self._xla_flops / (2 * valid),
            "other_flops": other,
            "unexplained_flops": self._xla_flops - 2 * valid - sum(other.values()),
        }

    def blocks(self) -> dict[str, list[Layer]]:
        """The layers with weights by their first name: conv1, inception_3a, fc6."""
        blocks: dict[str, list[Layer]] = {}
        for layer in self.evaluated:
            if layer.weights:
                blocks.setdefault(layer.name.partition("/")[0], []).append(layer)
        return blocks

    def branches(self) -> dict[str, list[int]]:
        """Multiply-adds of each branch: those of its reduction, if any, and of what that feeds."""
        branches: dict[str, list[int]] = {}
        for layer in self.evaluated:
            if layer.multiply_adds:
                branches.setdefault(layer.name.removesuffix("_reduce"), []).append(
                    layer.multiply_adds
                )
        return branches

"""ONNX files: the graph, its constants, and weights that lie in files beside it."""

import os
from pathlib import Path
from typing import Any

import google.protobuf.message
import numpy as np
import onnx
from onnx import external_data_helper, helper, numpy_helper

from inception_jax.errors import UserError


class Graph:
    """A graph whose constants are known, wherever its exporter has put them.

    Attributes:
      producer: the node that makes a tensor, by the tensor's name.
      inputs: what has to be fed, with shapes; None where a dimension is free.
      outputs: names.
      origin: the exporter, as far as the file tells.
    """

    def __init__(self, model: onnx.ModelProto):
        graph = model.graph
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.inputs = {
            value.name: tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim)
            for value in graph.input
            if value.name not in self.initializers
        }
        self.outputs = [value.name for value in graph.output]
        self.nodes = list(graph.node)
        self.origin = model.producer_name
        self._constant: dict[str, bool] = {}

    def constant(self, name: str) -> bool:
        """Whether a tensor depends on no input."""
        if name not in self._constant:
            self._constant[name] = False  # what depends on itself is none
            node = self.producer.get(name)
            self._constant[name] = name in self.initializers or (
                node is not None and all(self.constant(each) for each in node.input if each)
            )
        return self._constant[name]

    def array(self, name: str) -> np.ndarray | None:
        """The value of a constant, or None where there is no such."""
        if not self.constant(name):
            return None
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        from onnx.reference import ReferenceEvaluator

        node = self.producer[name]
        inputs = {each: self.array(each) for each in node.input if each}
        outputs = ReferenceEvaluator(node, opsets=self._opsets).run(None, inputs)
        return outputs[list(node.output).index(name)]

    def leaves(self, name: str) -> set[str]:
        """What a tensor comes from: initializers, constants, inputs, names that nothing makes."""
        node = None if name in self.initializers else self.producer.get(name)
        if node is None or not any(node.input):
            return {name}
        return set().union(*(self.leaves(each) for each in node.input if each))


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def read(path: Path) -> Graph | None:
    """Opens a file, with the weights beside it.

    Returns:
      None if it is not ONNX.

    Raises:
      UserError: it is damaged, or its weights are not where they may be.
    """
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except google.protobuf.message.DecodeError:
        if path.suffix == ".onnx":
            raise UserError(f"{path} is damaged or cut short: download it again") from None
        return None
    if not model.graph.node:
        return None
    attributes_ = (each for node in model.graph.node for each in node.attribute)
    tensors = [*model.graph.initializer, *(each.t for each in attributes_ if each.HasField("t"))]
    for tensor in tensors:
        if external_data_helper.uses_external_data(tensor):
            _check_external(path, tensor)
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    return Graph(model)


def _check_external(path, tensor):
    """Raises UserError unless a tensor's data lie in a file of the folder, or below it."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    location = told.get("location", "")
    folder = path.parent.resolve()
    file = folder / location
    where = f"{path} keeps {tensor.name} in {location!r}"
    if os.path.isabs(location) or not file.resolve().is_relative_to(folder):
        raise UserError(f"{where}, outside its own folder, which is not read")
    if not location or not file.is_file():
        raise UserError(f"{where}, which is not there: put it beside the file")
    offset, size = int(told.get("offset", 0)), file.stat().st_size
    needed = np.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    length = int(told.get("length", needed))
    if length != needed or offset < 0 or offset + length > size:
        raise UserError(
            f"{where}, {needed:,} bytes from {offset:,} on, but that file has {size:,}: it is"
            " damaged or cut short"
        )

"""ONNX files: the graph, its constants, and weights that lie in files beside it."""

import math
import os
from pathlib import Path
from typing import Any

import google.protobuf.message
import numpy as np
import onnx
from onnx import external_data_helper, helper, numpy_helper

from inception_jax.errors import UserError

# Operations by which exporters hide weights. None makes more of little, but for ConstantOfShape.
FOLDED = (
    *("Constant", "ConstantOfShape", "Identity", "Cast"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
)
MOST_NUMBERS = 2**28  # of a constant; VGG's largest layer has 10^8


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
        self._leaves: dict[str, set[str]] = {}

    def constant(self, name: str) -> bool:
        """Whether a tensor depends on no input."""
        if name not in self._constant:
            self._constant[name] = False  # what depends on itself is none
            node = self.producer.get(name)
            self._constant[name] = name in self.initializers or (
                node is not None
                and node.op_type in FOLDED
                and all(self.constant(each) for each in node.input if each)
            )
        return self._constant[name]

    def array(self, name: str) -> np.ndarray | None:
        """The value of a constant, or None where there is no such.

        Raises:
          UserError: it cannot be computed.
        """
        if not self.constant(name):
            return None
        try:
            return self._compute(name)
        except UserError:
            raise
        except Exception as error:  # of a damaged graph NumPy and onnx raise anything
            told = " ".join(str(error).split())
            raise UserError(f"the tensor {name} cannot be computed: {told}") from None

    def _compute(self, name):
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        from onnx.reference import ReferenceEvaluator

        node = self.producer[name]
        inputs = {each: self.array(each) for each in set(node.input) if each}
        if node.op_type == "ConstantOfShape":
            (shape,) = inputs.values()
            if math.prod(map(int, shape)) > MOST_NUMBERS:
                raise UserError(f"the tensor {name} would have the shape {shape.tolist()}")
        outputs = ReferenceEvaluator(node, opsets=self._opsets).run(None, inputs)
        return outputs[list(node.output).index(name)]

    def leaves(self, name: str) -> set[str]:
        """What a tensor comes from: initializers, constants, inputs, names that nothing makes."""
        node = None if name in self.initializers else self.producer.get(name)
        if node is None or not any(node.input):
            return {name}
        if name not in self._leaves:
            self._leaves[name] = set().union(*(self.leaves(each) for each in node.input if each))
        return self._leaves[name]


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
    _check(path, model)
    attributes_ = (each for node in model.graph.node for each in node.attribute)
    tensors = [*model.graph.initializer, *(each.t for each in attributes_ if each.HasField("t"))]
    for tensor in tensors:
        if external_data_helper.uses_external_data(tensor):
            _check_external(path, tensor)
            try:
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            except onnx.checker.ValidationError as error:  # links, which onnx does not follow
                told = " ".join(str(error).split())
                raise UserError(f"{path}: {told}; put a copy of the data in its place") from None
    return Graph(model)


def _check(path, model):
    """Raises UserError where a node or a tensor is not as ONNX has them.

    By itself, since the whole check wants every initializer listed as an input in old files.
    """
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in model.opset_import}
    later = {name for node in model.graph.node for name in node.output}
    try:
        for node in model.graph.node:
            onnx.checker.check_node(node, context)
        for tensor in model.graph.initializer:
            if not external_data_helper.uses_external_data(tensor):
                onnx.checker.check_tensor(tensor, context)
        if any(node.domain not in ("", "ai.onnx") for node in model.graph.node):
            raise onnx.checker.ValidationError("it has operations of other domains than ONNX's")
        made = set()
        for node in model.graph.node:  # sorted, so no node can come of itself
            if later.intersection(node.input) - made:
                raise onnx.checker.ValidationError(f"{node.op_type} comes before its input")
            made.update(node.output)
        values = (*model.graph.initializer, *model.graph.input, *model.graph.output)
        names = [name for node in model.graph.node for name in (*node.input, *node.output)]
        if not all(isinstance(name, str) for name in (*names, *(value.name for value in values))):
            raise onnx.checker.ValidationError("names are no text")
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        told = " ".join(str(error).partition("==>")[0].split())
        raise UserError(f"{path} is damaged, or not valid ONNX: {told}") from None


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
    needed = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    offset, length = told.get("offset", "0"), told.get("length", str(needed))
    fits = offset.isdecimal() and int(offset) + needed <= file.stat().st_size
    if not fits or length != str(needed):
        raise UserError(
            f"{where}, {length} bytes from {offset} on, but needs {needed:,}, and that file has"
            f" {file.stat().st_size:,}: one of them is damaged or cut short"
        )

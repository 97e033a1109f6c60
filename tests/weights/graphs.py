"""Graphs that we did not write: the ONNX Model Zoo's, as the package `onnx` ships them.

That is without weights. They are filled with random ones, seeded, and run by onnxruntime.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
NETWORKS = {  # ours: theirs
    "alexnet": "bvlc_alexnet",
    "zfnet512": "zfnet512",
    "vgg19": "vgg19",
    "googlenet": "inception_v1",
}


def load(name):
    """A graph with weights that keep activations alive, of any batch and size of images."""
    model = onnx.load(LIGHT / f"light_{NETWORKS[name]}.onnx")
    model.ir_version = 4  # from which on initializers need not be inputs
    graph = model.graph
    shapes = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    rng = np.random.default_rng(0)
    fills = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    # biases too small for a ConstantOfShape are listed as they are, all of them 0
    values = {node.output[0]: shapes[node.input[0]] for node in fills}
    values |= {k: v.shape for k, v in shapes.items() if k.endswith("_b_0")}
    drop(graph, [node.input[0] for node in fills] + list(values))
    keep(graph, [node for node in graph.node if node.op_type != "ConstantOfShape"])
    for tensor, shape in values.items():
        array = rng.normal(size=[n for n in shape if n > 1])
        if array.ndim > 1:  # sums of 0, else the biases of positive maps drown the image
            axes = tuple(range(1, array.ndim))
            array = (array - array.mean(axes, keepdims=True)) * np.sqrt(2 / array[0].size)
        else:
            array = 0.1 * array
        array = array.reshape(shape).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(array, tensor))
    set_tensor(model, "OC2_DUMMY_1", lambda shape: np.array([-1, *shape[1:]]))
    for value in (*graph.input, *graph.output):
        size = value.type.tensor_type.shape.dim
        if value.name.endswith("data_0"):
            for axis, dimension in zip("BHW", (size[0], size[2], size[3]), strict=True):
                dimension.dim_param = axis
        elif value is graph.output[0]:
            size[0].dim_param = "B"
    return model


def drop(graph, names):
    """Removes initializers, and inputs of these names."""
    for field in (graph.initializer, graph.input):
        kept = [each for each in field if each.name not in names]
        del field[:]
        field.extend(kept)


def keep(graph, nodes):
    """Removes all other nodes."""
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


def set_tensor(model, name, change):
    """Replaces an initializer by a function of it."""
    for each in model.graph.initializer:
        if each.name == name:
            each.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(each)), name))


def layers(model):
    """The nodes of convolutions and fully connected layers, in order."""
    return [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]


def run(model, images_BHWC, nodes):
    """What nodes give for images: maps as BHWC."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    names = [node.output[0] for node in nodes]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    # nothing behind them, where flattened maps of another size would not fit
    last = max(i for i, node in enumerate(probe.graph.node) if node.output[0] in names)
    keep(probe.graph, probe.graph.node[: last + 1])
    read = {name for node in probe.graph.node for name in node.input}
    drop(probe.graph, [each.name for each in probe.graph.initializer if each.name not in read])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no word about what is unused
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options)
    (image,) = (v.name for v in session.get_inputs() if v.name.endswith("data_0"))
    feed = {image: np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2), np.float32)}
    results = session.run(names, feed)
    return [x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for x in results]

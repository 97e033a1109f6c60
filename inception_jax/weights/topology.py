"""ONNX graphs: layers are found by their order in the graph, and its geometry is read.

From the output back, since there the branches of an Inception module come apart in order, while
from the input all of them begin alike. Names of tensors are not looked at.
"""

import math

import numpy as np

from configs import imagenet
from inception_jax import models
from inception_jax.errors import UserError
from inception_jax.models import googlenet
from inception_jax.models.chain import Conv, Norm, Pool
from inception_jax.weights.mapping import Found, Tensor
from inception_jax.weights.onnx_file import Graph, attributes

NAMES = ("alexnet", "googlenet", "vgg11", "vgg13", "vgg16", "vgg19", "zfnet", "zfnet512")
BATCH_NORM = (  # in the order of the node's inputs
    "params/{}_bn/scale",
    "params/{}_bn/bias",
    "batch_stats/{}_bn/mean",
    "batch_stats/{}_bn/var",
)
PASSED_OVER = ("Dropout", "Identity")  # in evaluation they do nothing


class Unlike(Exception):
    """The graph has something else where the network has a certain layer."""


def find(graph: Graph, name: str) -> Found:
    """Looks for a network's layers.

    Args:
      graph: of a file.
      name: of NAMES.
    """
    config = imagenet.get_config(name)
    _read_variant(graph, name, config.model)
    walk = _Walk(graph)
    try:
        if name == "googlenet":
            _googlenet(walk)
        else:
            _chain(walk, models.build(config.model, 1000))
        walk.end()
    except Unlike as error:
        walk.problems.append(f"another architecture: {error}")
        unused = []
    else:
        unused = walk.unused()
    _write_geometry(walk, name, config.model)
    image_size = walk.image_size or config.data.image_size
    if walk.mean_window:
        side = models.build(config.model, 1000).map_sizes(image_size)["5"]
        if walk.mean_window < side:
            walk.problems.append(
                f"the mean is of {walk.mean_window} pixels a side, not of all {side} of the map"
            )
    return Found(
        config=config,
        num_classes=_num_classes(walk.tensors),
        image_size=image_size,
        preprocessing=_preprocessing(graph, name),
        tensors=walk.tensors,
        unused=unused,
        problems=walk.problems,
    )


def _num_classes(tensors):
    """Rows of the last layer, which is the first that a walk finds."""
    weights = next(iter(tensors.values()), Tensor("", None)).array
    return len(weights) if weights is not None and weights.ndim == 2 else 1000


def _read_variant(graph, name, model):
    """Sets what decides which layers there are."""
    kinds = {node.op_type for node in graph.nodes}
    convs = [attributes(node) for node in graph.nodes if node.op_type == "Conv"]
    if name == "googlenet":
        model.auxiliary_heads = False
    elif name.startswith("vgg"):
        model.batch_norm = True if "BatchNormalization" in kinds else None
    else:
        if name == "alexnet" and not any(conv.get("group", 1) == 2 for conv in convs):
            padded = convs and any(convs[0].get("pads", ()))
            model.variant = "single_tower" if padded else "ungrouped"
        if ("LRN" in kinds) != (model.variant != "single_tower"):
            model.lrn = "LRN" in kinds


def _write_geometry(walk, name, model):
    """Sets what the layers turned out to have, where it is not what was published."""
    published = models.published(name)
    if set(walk.floor_pools) != _published_floor(name, model):
        model.floor_pools = ",".join(reversed(walk.floor_pools))
    for field, values in (
        ("lrn_k", walk.lrn_k),
        ("lrn_alpha", walk.lrn_alpha),
        ("batch_norm_epsilon", walk.epsilon),
    ):
        if len(values) > 1:
            walk.problems.append(f"{field} is {sorted(values)}, not the same in all layers")
        elif values and values != {published[field]}:
            (model[field],) = values


def _published_floor(name, model):
    if name == "googlenet":
        return set()
    stack = models.build(model, 1000).stack()
    return {layer.name for layer in stack if isinstance(layer, Pool) and not layer.ceil}


def _preprocessing(graph, name):
    """What the weights' origin tells of their input; the graph has no word for it."""
    names = graph.initializers.keys() | graph.producer.keys()
    if graph.origin == "onnx-caffe2" or any(each.endswith("_w_0") for each in names):
        return "vgg" if name.startswith("vgg") else "caffe"
    if any(each.startswith("vgg0_conv") for each in names):  # MXNet's Gluon
        return "torchvision"
    return None


def _chain(walk, network):
    walk.over("Softmax")
    walk.dense("fc8")
    for name in ("fc7", "fc6"):
        walk.over("Flatten")  # of what is flat
        walk.back(name, "Relu")
        walk.dense(name)
    walk.flatten("fc6")
    for layer in reversed(network.stack()):
        match layer:
            case Conv():
                walk.conv(layer, getattr(network, "batch_norm", False))
            case Pool():
                walk.pool(layer)
            case Norm():
                walk.norm(layer.name)


def _googlenet(walk):
    walk.over("Softmax")
    walk.dense("loss3/classifier")
    walk.flatten("loss3/classifier")
    walk.global_mean("pool5")
    form = googlenet.Form(reduced=True, branches=googlenet.BRANCHES, projection=True, kernel_5x5=5)
    pools = list(googlenet.POOLS)
    for modules in reversed(googlenet.STAGES.values()):
        for module in reversed(modules):
            _inception(walk, form, module)
        walk.pool(Pool(pools.pop(), 3, 2))
    walk.norm("conv2/norm2")
    walk.conv(Conv("conv2/3x3", 192, 3, padding=1))
    walk.conv(Conv("conv2/3x3_reduce", 64, 1))
    walk.norm("pool1/norm1")
    walk.pool(Pool(pools.pop(), 3, 2))
    walk.conv(Conv("conv1/7x7_s2", 64, 7, 2, 3))


def _inception(walk, form, module):
    name = f"inception_{module}"
    concat = walk.back(f"{name}/output", "Concat")
    branches = googlenet.convolutions(form, googlenet.TABLE_1[module])
    if len(concat.input) != len(branches) or attributes(concat).get("axis") != 1:
        raise Unlike(f"{name} joins {len(concat.input)} maps, not {len(branches)} by channels")
    starts = set()
    for end, (branch, convs) in zip(concat.input, branches.items(), strict=True):
        walk.at = end
        for conv, channels, window in reversed(convs):
            walk.conv(Conv(f"{name}/{conv}", channels, window, padding=window // 2))
        if branch == "pool":
            walk.pool_in_place(f"{name}/pool")
        starts.add(walk.at)
    if len(starts) > 1:
        raise Unlike(f"the branches of {name} begin at different maps: {', '.join(sorted(starts))}")


class _Walk:
    """A way through the graph from its output, and what was met on it.

    Problems that leave the way open are collected; where it ends, Unlike is raised.
    """

    def __init__(self, graph):
        self.graph = graph
        self.at = graph.outputs[0] if graph.outputs else ""
        self.problems: list[str] = []
        self.tensors: dict[str, Tensor] = {}
        self.floor_pools: list[str] = []
        self.lrn_k: set[float] = set()
        self.lrn_alpha: set[float] = set()
        self.epsilon: set[float] = set()
        self.mean_window: int | None = None
        self.image_size: int | None = None
        self._passed: list = []
        self._after = "the output"  # what the way came from

    def over(self, *kinds):
        """Goes back over nodes of these kinds, if there are any."""
        while (node := self.graph.producer.get(self.at)) and node.op_type in kinds + PASSED_OVER:
            self._go(node)

    def back(self, layer, *kinds):
        """Goes back over the node that has to come next."""
        self.over()
        node = self.graph.producer.get(self.at)
        if node is None or node.op_type not in kinds:
            wanted = f"{layer} ({' or '.join(kinds)})"
            raise Unlike(f"before {self._after} it has {self._told()}, not {wanted}")
        self._go(node)
        self._after = layer
        return node

    def conv(self, layer, batch_norm=False):
        """A convolution with its ReLU, and batch norm between them."""
        self.back(layer.name, "Relu")
        if batch_norm:
            node = self.back(layer.name, "BatchNormalization")
            self.epsilon.add(_number(attributes(node).get("epsilon", 1e-5)))
            for place, name in zip(BATCH_NORM, node.input[1:5], strict=True):
                self._put(place.format(layer.name), name)
        node = self.back(layer.name, "Conv")
        self._expect(
            layer.name,
            node,
            kernel_shape=[layer.window] * 2,
            strides=[layer.stride] * 2,
            pads=[layer.padding] * 4,
            group=layer.groups,
        )
        self._put(f"params/{layer.name}/kernel", node.input[1])
        if len(node.input) > 2:
            self._put(f"params/{layer.name}/bias", node.input[2])
        elif not batch_norm:
            no_bias = Tensor(f"bias of {layer.name}", np.zeros(layer.channels, np.float32))
            self.tensors[f"params/{layer.name}/bias"] = no_bias

    def pool(self, layer):
        """Max pooling, whose pads or ceil mode tell what becomes of the edge."""
        node = self.back(layer.name, "MaxPool")
        given = attributes(node)
        pads = given.get("pads", [0] * 4)
        *begin, bottom, right = pads
        ceil = bool(given.get("ceil_mode", 0))
        # up to a stride less one pixel that never wins: as far as a window may hang over
        if begin != [0, 0] or bottom != right or bottom not in (0, layer.stride - 1):
            self.problems.append(f"{layer.name} pads {pads}")
        if not ceil and not bottom:
            self.floor_pools.append(layer.name)
        windows = {"kernel_shape": [layer.window] * 2, "strides": [layer.stride] * 2}
        self._expect(layer.name, node, **windows)

    def pool_in_place(self, name):
        """Max pooling that leaves a map as large as it is."""
        node = self.back(name, "MaxPool")
        self._expect(name, node, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)

    def norm(self, name):
        """Response normalisation across channels."""
        node = self.back(name, "LRN")
        given = attributes(node)
        self.lrn_k.add(_number(given.get("bias", 1.0)))
        self.lrn_alpha.add(_number(given.get("alpha", 1e-4)))
        size, beta = given["size"], _number(given.get("beta", 0.75))
        if (size, beta) != (5, 0.75):
            self.problems.append(f"{name} has size {size} and beta {beta}, not 5 and 0.75")

    def global_mean(self, name):
        """An average over a map; mean_window is set where it is over a part of one."""
        node = self.back(name, "AveragePool", "GlobalAveragePool")
        given = attributes(node)
        if node.op_type == "AveragePool":
            window, pads = given["kernel_shape"], given.get("pads", [0] * 4)
            if any(pads) and given.get("count_include_pad"):
                self.problems.append(f"{name} counts its padding")
            # pixels of the map that the first window sees
            self.mean_window = min(side - pad for side, pad in zip(window, pads, strict=False))

    def dense(self, name):
        """A fully connected layer."""
        node = self.back(name, "Gemm")
        given = attributes(node)
        for attribute, wanted in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
            if given.get(attribute, wanted) != wanted:
                self.problems.append(f"{name} has {attribute} {given[attribute]}, not {wanted}")
        self._put(f"params/{name}/kernel", node.input[1], transpose=not given.get("transB", 0))
        self._put(f"params/{name}/bias", node.input[2])

    def flatten(self, name):
        """A map becomes features, for a fully connected layer of this name."""
        self.back(f"what flattens a map for {name}", "Reshape", "Flatten")

    def end(self):
        """The image, whose size is fixed or not."""
        self.over()
        shape = self.graph.inputs.get(self.at)
        if shape is None:
            raise Unlike(f"before {self._after} it has {self._told()}, not the image")
        if len(shape) != 4 or shape[1] not in (3, None):
            raise Unlike(f"its input {self.at!r} is {shape}, not B, 3, H, W")
        height, width = shape[2:]
        if height != width:
            self.problems.append(f"images are {height}x{width}, not square")
        self.image_size = height

    def unused(self):
        """Tensors that the way did not meet; adds a problem where there are further layers."""
        passed = {name for node in self._passed for name in node.output}
        further = [
            node.op_type
            for node in self.graph.nodes
            if not passed & set(node.output) and not self.graph.constant(node.output[0])
        ]
        if further:
            self.problems.append(f"further layers: {', '.join(further)}")
        used = {each for node in self._passed for name in node.input for each in self.leaves(name)}
        return sorted(
            name
            for name, tensor in self.graph.initializers.items()
            # one number alone is what an exporter left behind, not a layer's
            if name not in used and math.prod(tensor.dims) > 1
        )

    def leaves(self, name):
        """What a constant comes from; nothing of a layer's output."""
        return self.graph.leaves(name) if self.graph.constant(name) else ()

    def _told(self):
        node = self.graph.producer.get(self.at)
        return f"{node.op_type} ({self.at})" if node else f"the input {self.at!r}"

    def _go(self, node):
        self._passed.append(node)
        self.at = node.input[0]

    def _put(self, place, name, transpose=False):
        """Takes a tensor, under the name that it has in the file and not in the graph."""
        leaves = sorted(self.graph.leaves(name))
        missing = [each for each in leaves if not self.graph.constant(each)]
        if missing:
            self.tensors[place] = Tensor(missing[0], None)
            return
        source = max(leaves, key=lambda each: self.graph.array(each).size)
        try:
            array = self.graph.array(name)
        except UserError:  # it cannot be reshaped so: then the shape that it has will be told
            array = self.graph.array(source)
        self.tensors[place] = Tensor(source, array.T if transpose else array)

    def _expect(self, layer, node, **wanted):
        given = {"strides": [1, 1], "pads": [0] * 4, "group": 1, "dilations": [1, 1]}
        given |= {"auto_pad": b"NOTSET"} | attributes(node)
        for name, value in ({"dilations": [1, 1], "auto_pad": b"NOTSET"} | wanted).items():
            if given.get(name, value) != value:
                self.problems.append(f"{layer} has {name} {given[name]}, not {value}")


def _number(float32):
    """The decimal number that a float32 stands for: 1e-4, not 9.9999997e-05."""
    return float(str(np.float32(float32)))

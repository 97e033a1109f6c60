"""The ONNX Model Zoo's graphs, filled with random weights, compute what they do in onnxruntime.

Whoever imports public weights trusts that the network is the one they were trained in: the same
order of axes and channels, the same edges of poolings, the same constants.
"""

import contextlib
import functools
import json

import flax.errors
import graphs
import jax
import numpy as np
import onnx
import pytest
from conftest import arrays
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from inception_jax import models
from inception_jax.weights import importer, onnx_file, topology

CAFFE = {"googlenet": (123, 117, 104), "vgg19": (123.68, 116.779, 103.939)}  # RGB
STAGES = {  # a layer of each
    "alexnet": ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"],
    "zfnet512": ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"],
    "vgg19": ["conv1_2", "conv2_2", "conv3_4", "conv4_4", "conv5_4", "fc6", "fc7", "fc8"],
    "googlenet": [
        *("conv1/7x7_s2", "conv2/3x3", "inception_3b/5x5", "inception_4e/pool_proj"),
        *("inception_5b/3x3", "loss3/classifier"),
    ],
}
CLOSE = 1e-4  # of the largest


@functools.cache
def graph(name):
    return graphs.load(name)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Returns imported(name) -> (config, variables) from the folder that the importer writes."""

    @functools.cache
    def through_files(name):
        folder = tmp_path_factory.mktemp(name)
        onnx.save(graph(name), folder / "a.onnx")
        importer.convert_file(folder / "a.onnx", name, folder / "out", None)
        (folder / "a.onnx").unlink()
        stored = arrays(folder / "out", 0)
        variables = {tuple(k.strip("[]'").split("']['")): v for k, v in stored.items()}
        config = ConfigDict(json.loads((folder / "out" / "config.json").read_text()))
        return config, unflatten_dict(variables)

    return through_files


def photos(batch, height, width):
    """Random patches of colour with noise, in whole numbers from 0 to 255."""
    rng = np.random.default_rng(3)
    patches = rng.uniform(0, 255, (batch, 8, 8, 3))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    noise = rng.uniform(-40, 40, (batch, height, width, 3))
    return np.round(np.clip(patches[:, rows][:, :, columns] + noise, 0, 255)).astype(np.float32)


def ours(config, variables, images, **fields):
    """Outputs of every convolution and fully connected layer that the images get to, by name."""
    model = models.build(config.model, 1000).clone(**fields)
    found = {}

    def watch(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, (nn.Conv, nn.Dense)):
            found["/".join(context.module.path)] = result
        return result

    def forward(variables, x):
        found.clear()
        with nn.intercept_methods(watch), contextlib.suppress(flax.errors.ScopeParamShapeError):
            model.apply(variables, x)
        return dict(found)

    x = (images - np.float32(config.data.mean)) / np.float32(config.data.std)
    return jax.tree.map(np.asarray, jax.jit(forward)(variables, x))


def theirs(name, images, wanted):
    """The same from onnxruntime, for which channels are BGR."""
    model = graph(name)
    walked = topology.find(onnx_file.Graph(model), name).tensors
    weights = {tensor.name: place.split("/", 1)[1] for place, tensor in walked.items()}
    nodes = {}
    for node in graphs.layers(model):
        (source,) = (
            each for each in onnx_file.Graph(model).leaves(node.input[1]) if each in weights
        )
        nodes[weights[source].removesuffix("/kernel")] = node
    mean = np.float32(CAFFE.get(name, CAFFE["googlenet"]))
    outputs = graphs.run(model, (images - mean)[..., ::-1], [nodes[layer] for layer in wanted])
    return dict(zip(wanted, outputs, strict=True))


def difference(a, b):
    """The largest difference, as a share of the largest value."""
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("name", graphs.NETWORKS)
def test_a_batch_gives_the_same_logits_and_activations_in_every_stage(name, imported):
    images = photos(3, 224, 224)
    config, variables = imported(name)
    size = 227 if name == "alexnet" else 224  # the papers', as the graph leaves it open
    assert (config.data.image_size, config.data.eval_resize) == (size, 256)
    got = ours(config, variables, images)
    expected = theirs(name, images, STAGES[name])
    for layer, output in expected.items():
        assert difference(got[layer], output) < CLOSE, layer
        assert np.ptp(output, axis=0).max() > 0.1 * np.abs(output).max()  # the image matters


@pytest.mark.parametrize("name", ["alexnet", "zfnet512", "vgg19", "googlenet"])
@pytest.mark.parametrize("height, width", [(131, 95), (90, 158)])
def test_images_that_are_not_square_give_the_same_maps(name, height, width, imported):
    images = photos(2, height, width)
    convolutions = [layer for layer in STAGES[name] if not layer.startswith(("fc", "loss3"))]
    got = ours(*imported(name), images)
    for layer, output in theirs(name, images, convolutions).items():
        assert output.shape[1] != output.shape[2] or output.shape[1] < 7
        assert difference(got[layer], output) < CLOSE, layer


def test_the_published_googlenet_is_the_graph_where_no_window_hangs_over_the_edge(imported):
    """At 222 pixels: 111, 55, 27, 13 and 6. At 224 it sees other pixels, so geometry matters."""
    config, variables = imported("googlenet")
    assert config.model.floor_pools == "pool1,pool2,pool3,pool4"
    for size, close in ((222, True), (224, False)):
        images = photos(2, size, size)
        expected = theirs("googlenet", images, ["loss3/classifier"])["loss3/classifier"]
        published = ours(config, variables, images, floor_pools="")["loss3/classifier"]
        variant = ours(config, variables, images)["loss3/classifier"]
        assert (difference(published, expected) < CLOSE) == close
        assert difference(variant, expected) < CLOSE


def swap(layer):
    """Height and width of a convolution's kernels."""

    def change(config, variables):
        flat = flatten_dict(variables, sep="/")
        flat[f"params/{layer}/kernel"] = flat[f"params/{layer}/kernel"].swapaxes(0, 1)
        return config, unflatten_dict(flat, sep="/")

    return change


def setting(**fields):
    def change(config, variables):
        config = config.copy_and_resolve_references()
        config.model.update(fields)
        return config, variables

    return change


def unflipped(config, variables):
    flat = flatten_dict(variables, sep="/")
    first = min(name for name, array in flat.items() if array.ndim == 4 and array.shape[2] == 3)
    flat[first] = flat[first][:, :, ::-1]
    return config, unflatten_dict(flat, sep="/")


def flattened_otherwise(config, variables):
    """Features of fc6 in the order of CHW."""
    flat = flatten_dict(variables, sep="/")
    kernel = flat["params/fc6/kernel"]
    maps = kernel.reshape(6, 6, -1, kernel.shape[1]).transpose(2, 0, 1, 3)
    flat["params/fc6/kernel"] = maps.reshape(kernel.shape)
    return config, unflatten_dict(flat, sep="/")


def subtracting(mean):
    def change(config, variables):
        config = config.copy_and_resolve_references()
        config.data.mean = mean
        return config, variables

    return change


@pytest.mark.parametrize(
    "name, mistake",
    [
        ("alexnet", swap("conv1")),
        ("alexnet", swap("conv4")),
        ("googlenet", swap("inception_4d/5x5")),
        ("googlenet", swap("inception_5b/3x3")),
        ("alexnet", setting(lrn_alpha=5e-4)),
        ("alexnet", setting(lrn_k=2.0)),
        ("alexnet", setting(lrn=False)),
        ("zfnet512", setting(lrn_alpha=1e-4)),
        ("zfnet512", setting(lrn_k=1.0)),
        ("googlenet", setting(lrn_alpha=2e-5)),  # not divided by the size
        ("googlenet", setting(floor_pools="pool2,pool3,pool4")),
        ("alexnet", setting(floor_pools="pool1,pool2,pool5")),
        ("alexnet", flattened_otherwise),
        ("alexnet", unflipped),
        ("googlenet", unflipped),
        ("googlenet", subtracting((104.0, 117.0, 123.0))),
    ],
)
def test_a_mistake_would_be_seen(name, mistake, imported):
    """Each of them keeps all shapes, or nearly, and is far beyond what the tests above allow."""
    images = photos(2, 224, 224)
    last = STAGES[name][-1]
    expected = theirs(name, images, [last])[last]
    got = ours(*mistake(*imported(name)), images)
    assert last not in got or difference(got[last], expected) > 10 * CLOSE

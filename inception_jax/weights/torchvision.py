"""torchvision's state dicts: its names for our layers.

torchvision/models/alexnet.py, vgg.py and googlenet.py, whose tensors are named by their places in
nn.Sequential or by branches.
"""

import re

from configs import imagenet
from inception_jax import models
from inception_jax.models.chain import Conv
from inception_jax.weights import mapping
from inception_jax.weights.mapping import Found, Tensor

GOOGLENET = (  # regular expression for a layer here, name there
    (r"conv1/7x7_s2", "conv1"),
    (r"conv2/3x3_reduce", "conv2"),
    (r"conv2/3x3", "conv3"),
    (r"inception_(\w+)/1x1", r"inception\1.branch1"),
    (r"inception_(\w+)/3x3_reduce", r"inception\1.branch2.0"),
    (r"inception_(\w+)/3x3", r"inception\1.branch2.1"),
    (r"inception_(\w+)/5x5_reduce", r"inception\1.branch3.0"),
    (r"inception_(\w+)/5x5", r"inception\1.branch3.1"),
    (r"inception_(\w+)/pool_proj", r"inception\1.branch4.1"),
    (r"loss([12])/conv", r"aux\1.conv"),
    (r"loss([12])/fc", r"aux\1.fc1"),
    (r"loss([12])/classifier", r"aux\1.fc2"),
    (r"loss3/classifier", "fc"),
)
CLASSIFIERS = {"alexnet": (1, 4, 6), "vgg": (0, 3, 6)}  # with dropouts before or after
LEAVES = {  # of layers, and of batch norm
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
COUNTER = ".num_batches_tracked"  # beside each running mean; nothing here needs it
NAMES = ("alexnet", "googlenet", "vgg11", "vgg13", "vgg16", "vgg19")


def find(arrays: dict, name: str) -> Found:
    """Looks for a network's tensors.

    Args:
      arrays: a state dict.
      name: of NAMES.
    """
    config = _recipe(name, arrays)
    classifier = arrays.get("fc.weight" if name == "googlenet" else "classifier.6.weight")
    num_classes = classifier.shape[0] if getattr(classifier, "ndim", 0) == 2 else 1000
    size = 224
    places = list(mapping.shapes(config.model, num_classes, size))
    network = models.build(config.model, num_classes)
    if name == "googlenet":
        key = _googlenet
    else:
        classifiers = CLASSIFIERS["alexnet" if name == "alexnet" else "vgg"]
        key = _sequential(network.stack(), config.model.batch_norm, classifiers)
        if config.model.batch_norm:  # after convolutions that keep their biases
            places += [f"params/{c.name}/bias" for c in network.stack() if isinstance(c, Conv)]
    tensors = {place: Tensor(key(place), arrays.get(key(place))) for place in places}
    wanted = {tensor.name for tensor in tensors.values()}
    counters = {key.removesuffix(".running_mean") + COUNTER for key in wanted}
    return Found(
        config=config,
        num_classes=num_classes,
        image_size=size,
        preprocessing="inception" if name == "googlenet" else "torchvision",
        tensors=tensors,
        unused=sorted(arrays.keys() - wanted - counters),
        problems=[],
    )


def _recipe(name, arrays):
    """The recipe whose network torchvision has, in the variant that the tensors' names tell."""
    variants = {"googlenet": "torchvision", "alexnet": "alexnet_single_tower"}
    config = imagenet.get_config(variants.get(name, name))
    if name == "googlenet":
        config.model.auxiliary_heads = any(key.startswith("aux") for key in arrays)
    elif name == "alexnet":
        config.model.floor_pools = "pool1,pool2,pool5"
    else:
        config.model.batch_norm = any(key.endswith(".running_mean") for key in arrays)
    return config


def _googlenet(place):
    _, *layers, leaf = place.split("/")
    layer = "/".join(layers)
    part = "bn" if layer.endswith("_bn") else "conv"
    for pattern, there in GOOGLENET:
        match = re.fullmatch(pattern, layer.removesuffix("_bn"))
        if match:
            dense = re.search("/(fc|classifier)$", layer)
            return ".".join([match.expand(there), *([] if dense else [part]), LEAVES[leaf]])
    raise ValueError(f"no name for {place}")


def _sequential(stack, batch_norm, classifiers):
    """Makes a function from our names to torchvision's, places in `features` and `classifier`."""
    numbers, number = {}, 0
    for layer in stack:
        if not isinstance(layer, Conv):
            number += 1
            continue
        numbers[layer.name] = f"features.{number}"
        numbers[f"{layer.name}_bn"] = f"features.{number + 1}"
        number += 3 if batch_norm else 2  # with its ReLU
    layers = zip(("fc6", "fc7", "fc8"), classifiers, strict=True)
    numbers |= {layer: f"classifier.{number}" for layer, number in layers}

    def key(place):
        _, layer, leaf = place.split("/")
        return f"{numbers[layer]}.{LEAVES[leaf]}"

    return key

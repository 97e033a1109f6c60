"""From a file's tensors to a network's variables: every mismatch is found before any is converted.

Both PyTorch and ONNX keep a convolution's weights as OIHW, a fully connected layer's as OI and
flatten maps as CHW; here they are HWIO, IO and HWC.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from inception_jax import models, step


class Tensor(NamedTuple):
    """A tensor as the file has it; array is None where the file lacks it."""

    name: str
    array: np.ndarray | None


class Pixels(NamedTuple):
    """What a network expects as input: `(RGB - mean) / std`, its channels perhaps reversed."""

    channels: str  # rgb or bgr
    mean: tuple[float, float, float]  # of R, G and B in [0, 255]
    std: tuple[float, float, float]


PREPROCESSING = {
    "caffe": Pixels("bgr", (123.0, 117.0, 104.0), (1.0, 1.0, 1.0)),  # bvlc_googlenet
    # the authors' Caffe models (gist ksimonyan/211839e770f7b538e2d8)
    "vgg": Pixels("bgr", (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    # of images in [0, 1]: mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225; MXNet's, too
    "torchvision": Pixels("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "inception": Pixels("rgb", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),  # -1 to 1
}


class Found(NamedTuple):
    """What a file holds, as far as it is the network that was asked for."""

    config: ConfigDict  # a recipe of the network, its variant as the file has it
    num_classes: int
    image_size: int
    preprocessing: str | None  # of PREPROCESSING; None where the file does not tell
    tensors: dict[str, Tensor]  # by the variables' names, as in params/conv1/kernel
    unused: Collection[str]  # tensors of the file that have no place in the network
    problems: list[str]  # what else does not fit, a line each


def shapes(model: ConfigDict, num_classes: int, image_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's variables by their names, as in params/conv1/kernel.

    Args:
      model: `config.model`.
      num_classes: K.
      image_size: side in pixels.

    Raises:
      UserError: it cannot be built so.
    """
    network = models.build(model, num_classes)
    network.check(image_size)
    variables = jax.eval_shape(lambda: step.init_variables(network, image_size, seed=0))
    return {name: leaf.shape for name, leaf in flatten_dict(variables, sep="/").items()}


def problems(found: Found, expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Everything that keeps a file from being the network, a line each.

    Args:
      found: in the file.
      expected: from `shapes`.
    """
    lines = list(found.problems)
    for name, tensor in found.tensors.items():
        wanted = _in_file(expected[_before_batch_norm(name, expected) or name])
        if tensor.array is None:
            lines.append(f"missing: {tensor.name} ({_told(wanted)})")
        elif tensor.array.shape != wanted:
            lines.append(
                f"shape of {tensor.name}: {_told(tensor.array.shape)}, not {_told(wanted)}"
            )
        elif not jax.numpy.issubdtype(tensor.array.dtype, np.floating):  # bfloat16 is
            lines.append(f"type of {tensor.name}: {tensor.array.dtype}, not floating point")
        elif not np.isfinite(tensor.array).all():
            lines.append(f"not finite: {tensor.name}")
    return lines + [f"extra: {name}" for name in found.unused]


def convert(found: Found, expected: dict[str, tuple[int, ...]], pixels: Pixels) -> dict[str, Any]:
    """Makes {params, batch_stats} in float32, of a network that takes RGB.

    Args:
      found: without problems.
      expected: from `shapes`.
      pixels: what the file's network expects.
    """
    tensors = {name: np.asarray(t.array, np.float32) for name, t in found.tensors.items()}
    for name in tensors.keys() - expected.keys():
        # a bias before batch norm only shifts the mean that is subtracted again
        mean = _before_batch_norm(name, expected)
        tensors[mean] = tensors[mean] - tensors.pop(name)
    converted = {}
    channels = 0  # of the map that a fully connected layer may flatten
    for name, shape in expected.items():
        array = tensors[name]
        if len(shape) == 4:
            array = array.transpose(2, 3, 1, 0)
            if shape[2] == 3 and pixels.channels == "bgr":
                array = array[:, :, ::-1]
            channels = shape[3]
        elif len(shape) == 2:
            layer = name.split("/")[-2]
            if layer in ("fc6", "fc"):
                side = round((shape[0] / channels) ** 0.5)
                array = array.reshape(-1, channels, side, side).transpose(0, 2, 3, 1)
            array = array.reshape(len(array), -1).T
        converted[name] = np.ascontiguousarray(array)
    variables = unflatten_dict(converted, sep="/")
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def _before_batch_norm(name, expected):
    """The running mean that a convolution's bias belongs to, where there is no such bias."""
    if name in expected:
        return None
    layer = name.removeprefix("params/").removesuffix("/bias")
    return f"batch_stats/{layer}_bn/mean"


def _in_file(shape):
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), range(len(shape)))
    return tuple(shape[axis] for axis in order)


def _told(shape):
    return "x".join(map(str, shape)) or "scalar"

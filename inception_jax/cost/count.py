"""Counts a network's layers in its jaxpr, so that there is no second description to go wrong.

Rows are the scopes of the trace: flax names one after each module, the networks name those of
their poolings and normalisations. Counts are of one image in evaluation; what exists in training
only (the auxiliary heads) is counted from a trace in training mode.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.extend.core import Literal

# Flops per element of the output, as XLA's cost analysis has them; what is not named has none.
ELEMENTWISE = ("add", "sub", "mul", "div", "max", "square", "convert_element_type")
# What a scope is called after: the first of these operations that it holds.
KINDS = {
    "conv_general_dilated": "convolution",
    "dot_general": "fully connected",
    "pow": "response norm",
    "rsqrt": "batch norm",
    "reduce_window_max": "max pool",
    "reduce_window_sum": "average pool",
    "reduce_max": "max pool",
    "reduce_sum": "average pool",
    "concatenate": "concatenation",
}
MULTIPLY_ADDS = ("convolution", "fully connected")


@dataclasses.dataclass
class Layer:
    """One scope of a network, such as a convolution with its bias and ReLU.

    Attributes:
      name: as in the parameters' tree.
      kind: what it does.
      window: as in 3x3/2, or empty.
      output: (H, W, C) or (F,).
      depth: layers with weights between the image and here, this one included, on the longest way.
      weights: parameters that are multiplied with activations; the paper counts these only.
      parameters: weights, biases and batch norm's.
      multiply_adds: nominal, as papers count them.
      valid_multiply_adds: those whose taps do not fall on padding.
      other_flops: what XLA counts beside two for each of these: biases, ReLU, pooling, norms.
      training_only: an auxiliary head's.
    """

    name: str
    kind: str = ""
    window: str = ""
    output: tuple[int, ...] = ()
    depth: int = 0
    weights: int = 0
    parameters: int = 0
    multiply_adds: int = 0
    valid_multiply_adds: int = 0
    other_flops: int = 0
    training_only: bool = False


def layers(model, image_size: int) -> list[Layer]:
    """Lists a network's layers in the order of its trace, training-only ones last.

    Args:
      model: from models.build, checked for this size.
      image_size: side of the square image, in pixels.
    """
    variables, images_BHWC = _abstract(model, image_size)
    parameters = flatten_dict(variables["params"], sep="/")
    rows: dict[str, Layer] = {}
    for train in (False, True):
        jaxpr = jax.make_jaxpr(_forward(model, train))(variables, images_BHWC)
        traced = _Trace()
        traced.walk(jaxpr.jaxpr, [0] * len(jaxpr.jaxpr.invars), "")
        for name, layer in traced.rows.items():
            if layer.kind and name not in rows:
                rows[name] = dataclasses.replace(layer, training_only=train)
    for path, leaf in parameters.items():
        scope, _, name = path.rpartition("/")
        rows[scope].parameters += leaf.size
        rows[scope].weights += leaf.size if name == "kernel" else 0
    return list(rows.values())


def xla_flops(model, image_size: int) -> int:
    """What XLA counts for one image in evaluation, before it optimises anything."""
    lowered = jax.jit(_forward(model, train=False)).lower(*_abstract(model, image_size))
    return int(lowered.cost_analysis()["flops"])


def _abstract(model, image_size):
    images_BHWC = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    variables = jax.eval_shape(lambda x: model.init(keys, x, train=True), images_BHWC)
    return variables, images_BHWC


def _forward(model, train):
    def forward(variables, images_BHWC):
        if not train:
            return model.apply(variables, images_BHWC)
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images_BHWC, train=True, rngs=rngs, mutable=["batch_stats"])

    return forward


class _Trace:
    """Walks a jaxpr and adds each operation up in the row of its scope."""

    def __init__(self):
        self.rows: dict[str, Layer] = {}
        self._row: Layer | None = None

    def walk(self, jaxpr, depths: list[int], scope: str) -> list[int]:
        """Counts a jaxpr.

        Args:
          depths: of its inputs.
          scope: that of the operation that holds it.

        Returns:
          The depths of its outputs.
        """
        depth: dict[Any, int] = dict(zip(jaxpr.invars, depths, strict=True))

        def depth_of(value):
            return 0 if isinstance(value, Literal) else depth.get(value, 0)

        for eqn in jaxpr.eqns:
            here = "/".join(filter(None, (scope, _scope(eqn))))
            inputs = [depth_of(v) for v in eqn.invars]
            inner = _inner(eqn)
            if inner is None:
                outputs = [self._count(eqn, max(inputs, default=0), here)] * len(eqn.outvars)
            else:
                outputs = self.walk(inner, inputs[len(inputs) - len(inner.invars) :], here)
            depth |= zip(eqn.outvars, outputs, strict=True)
        return [depth_of(v) for v in jaxpr.outvars]

    def _count(self, eqn, depth, scope):
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        layer = self._row_of(scope)
        kind = KINDS.get(name, "")
        if kind in MULTIPLY_ADDS:
            depth += 1
        if layer is None:
            return depth
        order = list(KINDS.values())
        if kind and (not layer.kind or order.index(kind) < order.index(layer.kind)):
            layer.kind = kind
            layer.window = _window(eqn)
        if layer.name == scope:
            layer.output = out.shape[1:]
        layer.depth = max(layer.depth, depth)
        nominal, valid, flops = _operations(eqn)
        layer.multiply_adds += nominal
        layer.valid_multiply_adds += valid
        layer.other_flops += flops
        return depth

    def _row_of(self, scope):
        """A scope's row; what happens in a scope around the last row (its ReLU) belongs to that."""
        last = self._row
        if last is None or not (
            last.name == scope or last.name.startswith(f"{scope}/" if scope else "")
        ):
            self._row = self.rows.setdefault(scope, Layer(scope)) if scope else None
        return self._row


def _scope(eqn):
    """An operation's place, without the network's class and methods: GoogLeNet/GoogLeNet._norm/."""
    _, *rest = str(eqn.source_info.name_stack).split("/")
    return "/".join(part for part in rest if "." not in part)


def _inner(eqn):
    """The jaxpr that an operation holds, or None; of those by platform the last, XLA's own."""
    for name in ("branches", "jaxpr", "call_jaxpr"):
        if name in eqn.params:
            inner = eqn.params[name]
            inner = inner[-1] if name == "branches" else inner
            return getattr(inner, "jaxpr", inner)
    return None


def _operations(eqn) -> tuple[int, int, int]:
    """Nominal and valid multiply-adds of one operation, and its other flops."""
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "conv_general_dilated":
        return (*_convolution(eqn), 0)
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        number = out.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        return number, number, 0
    if name.startswith("reduce_window"):
        return 0, 0, out.size * (math.prod(eqn.params["window_dimensions"]) - 1)
    if name in ("reduce_sum", "reduce_max"):
        return 0, 0, eqn.invars[0].aval.size - out.size
    return 0, 0, out.size if name in ELEMENTWISE else 0


def _convolution(eqn):
    """Multiply-adds of a convolution, in all and on pixels of the map."""
    image, kernel = (v.aval for v in eqn.invars)
    out, numbers = eqn.outvars[0].aval, eqn.params["dimension_numbers"]
    taps, valid = 1, 1  # of all outputs of one channel, along each axis
    for axis, (low, _) in enumerate(eqn.params["padding"]):
        size = image.shape[numbers.lhs_spec[2 + axis]]
        outputs = out.shape[numbers.out_spec[2 + axis]]
        window = kernel.shape[numbers.rhs_spec[2 + axis]]
        stride = eqn.params["window_strides"][axis]
        pixels = np.arange(outputs)[:, None] * stride - low + np.arange(window)
        taps *= outputs * window
        valid *= int(np.sum((pixels >= 0) & (pixels < size)))
    inputs = kernel.shape[numbers.rhs_spec[1]]  # channels of one group
    channels = out.shape[numbers.out_spec[0]] * out.shape[numbers.out_spec[1]]
    return taps * inputs * channels, valid * inputs * channels


def _window(eqn) -> str:
    """The window and stride of an operation, as 3x3/2."""
    if eqn.primitive.name == "conv_general_dilated":
        spec = eqn.params["dimension_numbers"].rhs_spec
        window = [eqn.invars[1].aval.shape[axis] for axis in spec[2:]]
        stride = eqn.params["window_strides"][0]
    elif eqn.primitive.name.startswith("reduce_window"):
        window = eqn.params["window_dimensions"][1:3]
        stride = eqn.params["window_strides"][1]
    else:
        return ""
    return f"{'x'.join(map(str, window))}/{stride}"

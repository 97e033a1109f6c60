"""Which format a file has, by its first bytes, and what it holds."""

import json
from pathlib import Path

import numpy as np

from inception_jax.errors import UserError
from inception_jax.weights import onnx_file, torch_file

FORMATS = "ONNX, a PyTorch state dict (.pth), safetensors"


def read(path: Path) -> onnx_file.Graph | dict[str, np.ndarray]:
    """Reads a graph, or tensors by name.

    Raises:
      UserError: there is no such file, it has none of the formats, or it is damaged.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):  # a zip archive, a pickle
        return torch_file.read(path)
    if head[8:] == b"{":
        return _safetensors(path)
    graph = onnx_file.read(path)
    if graph is None:
        raise UserError(f"{path} is none of {FORMATS}")
    return graph


def _safetensors(path):
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from None

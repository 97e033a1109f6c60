"""Lists torchvision's state-dict keys and shapes, by running its own files of networks.

    pip download --no-deps torchvision==0.29.1 && unzip torchvision-0.29.1-*.whl -d FOLDER
    python tests/weights/list_torchvision_keys.py FOLDER > tests/weights/torchvision_keys.json

torchvision itself does not import beside a PyTorch that it was not built for, so what these files
import of it is replaced.
"""

import importlib
import json
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import torch

NETWORKS = {
    "alexnet": ["alexnet"],
    "googlenet": ["googlenet"],
    "vgg": [f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn")],
}


class Weights:
    """In the place of an enumeration of files."""

    @classmethod
    def verify(cls, weights):
        return weights


def main(folder):
    package = types.ModuleType("torchvision")
    package.__path__ = []
    sys.modules["torchvision"] = package
    networks = types.ModuleType("torchvision.models")
    networks.__path__ = [str(Path(folder) / "torchvision" / "models")]
    sys.modules["torchvision.models"] = networks
    pass_on = {
        "register_model": lambda: lambda function: function,
        "handle_legacy_interface": lambda **_: lambda function: function,
        "WeightsEnum": Weights,
    }
    for name in ("transforms._presets", "utils", "models._api", "models._meta", "models._utils"):
        sys.modules[f"torchvision.{name}"] = MagicMock(**pass_on)
    found = {}
    with torch.device("meta"):
        for file, names in NETWORKS.items():
            module = importlib.import_module(f"torchvision.models.{file}")
            for name in names:
                options = {"init_weights": False} if file == "googlenet" else {}
                state = getattr(module, name)(weights=None, **options).state_dict()
                found[name] = {key: list(value.shape) for key, value in state.items()}
    rows = [f'"{name}": {json.dumps(state)}' for name, state in found.items()]
    print("{\n" + ",\n".join(rows) + "\n}")


if __name__ == "__main__":
    main(*sys.argv[1:])

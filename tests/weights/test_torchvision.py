"""torchvision's state dicts compute here what they do in PyTorch."""

import json

import numpy as np
import pytest
from conftest import ROOT, arrays
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict
from test_onnx import difference, ours, photos

from inception_jax import models
from inception_jax.errors import UserError
from inception_jax.models.layers import Logits
from inception_jax.weights import importer, mapping, torchvision

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make torch")
import safetensors.torch  # noqa: E402
import torch_vision  # noqa: E402

KEYS = json.loads((ROOT / "tests/weights/torchvision_keys.json").read_text())
LAYERS = {  # of each stage: ours, theirs
    "alexnet": {"conv1": "features.0", "conv3": "features.6", "conv5": "features.10"}
    | {"fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"},
    "vgg16": {"conv1_2": "features.2", "conv3_3": "features.14", "conv5_1": "features.24"}
    | {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"},
    "vgg11_bn": {"conv1_1": "features.0", "conv2_1": "features.4", "conv5_2": "features.25"}
    | {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"},
    "googlenet": {
        "conv1/7x7_s2": "conv1.conv",
        "conv2/3x3": "conv3.conv",
        "inception_3b/5x5": "inception3b.branch3.1.conv",
        "inception_4c/3x3_reduce": "inception4c.branch2.0.conv",
        "inception_4e/pool_proj": "inception4e.branch4.1.conv",
        "inception_5b/1x1": "inception5b.branch1.conv",
        "loss3/classifier": "fc",
    },
}
CLOSE = 1e-4


def imported(state, name, folder, save=torch.save):
    """Returns (config, variables) from the folder that the importer writes."""
    save(state, folder / "a.pth")
    importer.convert_file(folder / "a.pth", name.removesuffix("_bn"), folder / "out", None)
    (folder / "a.pth").unlink()
    stored = arrays(folder / "out", 0)
    variables = {tuple(k.strip("[]'").split("']['")): v for k, v in stored.items()}
    config = ConfigDict(json.loads((folder / "out" / "config.json").read_text()))
    return config, unflatten_dict(variables)


def theirs(network, images, layers):
    """Outputs of layers, maps as BHWC, for images that torchvision's transforms prepare."""
    found = {}

    def keep(layer):
        return lambda module, inputs, output: found.update({layer: output.numpy()})

    for ours_, theirs_ in layers.items():
        network.get_submodule(theirs_).register_forward_hook(keep(ours_))
    mean, std = torch.tensor(torch_vision.MEAN), torch.tensor(torch_vision.STD)
    x = (torch.from_numpy(images) / 255 - mean) / std
    with torch.no_grad():
        network(x.permute(0, 3, 1, 2))
    return {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in found.items()}


@pytest.mark.parametrize("name", KEYS)
def test_the_reference_has_torchvisions_own_keys_and_shapes(name):
    with torch.device("meta"):
        state = torch_vision.build(name).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == KEYS[name]


@pytest.mark.parametrize("name", KEYS)
def test_all_keys_have_a_place(name):
    """Of every network, at its full size, and nothing of ours is left over."""
    state = {key: np.broadcast_to(np.float32(1), shape) for key, shape in KEYS[name].items()}
    found = torchvision.find(state, name.removesuffix("_bn"))
    expected = mapping.shapes(found.config.model, found.num_classes, found.image_size)
    assert mapping.problems(found, expected) == []
    biases = found.tensors.keys() - expected.keys()
    assert bool(biases) == name.endswith("_bn")
    assert found.tensors.keys() >= expected.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_gives_the_same_logits_and_activations_in_every_stage(name, tmp_path):
    network = torch_vision.fill(torch_vision.build(name))
    config, variables = imported(network.state_dict(), name, tmp_path)
    images = photos(3, 224, 224)
    got = ours(config, variables, images, dropout=0.0)
    for layer, expected in theirs(network, images, LAYERS[name]).items():
        shift = 0
        if name.endswith("_bn") and layer.startswith("conv"):  # ours is in the running mean
            shift = network.state_dict()[f"{LAYERS[name][layer]}.bias"].numpy()
        assert difference(got[layer] + shift, expected) < CLOSE, layer
        assert np.ptp(expected, axis=0).max() > 0.1 * np.abs(expected).max()


def test_googlenets_heads_are_torchvisions(tmp_path):
    """The modules by themselves, since in training batch norm would take the batch's statistics."""
    network = torch_vision.fill(torch_vision.build("googlenet"))
    config, variables = imported(network.state_dict(), "googlenet", tmp_path)
    assert config.model.auxiliary_heads
    model = models.build(config.model, 1000).clone(auxiliary_dropout=0.0, dropout=0.0)

    def evaluated(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            kwargs["use_running_average"] = True
        return call(*args, **kwargs)

    images = photos(2, 224, 224)
    x = (images - np.float32(config.data.mean)) / np.float32(config.data.std)
    with nn.intercept_methods(evaluated):
        logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
    assert isinstance(logits, Logits)
    main = theirs(network, images, {"main": "fc"})["main"]
    for got, expected in zip(logits, (main, network.heads), strict=True):
        pairs = [(got, expected)] if expected is main else zip(got, expected, strict=True)
        for a, b in pairs:
            assert difference(np.asarray(a), np.asarray(b)) < CLOSE


def test_every_form_of_a_file_gives_the_same_arrays(tmp_path):
    """Without heads and for 7 classes, which the file tells."""
    network = torch_vision.fill(torch_vision.build("googlenet", num_classes=7, heads=False))
    state = network.state_dict()

    def old(state, path):
        torch.save(state, path, _use_new_zipfile_serialization=False)

    forms = {
        "zip": (state, torch.save),
        "stream": (state, old),
        "safetensors": (state, safetensors.torch.save_file),
        "parallel": ({f"module.{k}": v for k, v in state.items()}, torch.save),
        "wrapped": ({"state_dict": state, "epoch": 3, "best": [0.5]}, old),
        "double": ({k: v.double() for k, v in state.items()}, torch.save),
    }
    stored = {}
    for form, (content, save) in forms.items():
        (tmp_path / form).mkdir()
        config, _ = imported(content, "googlenet", tmp_path / form, save)
        assert config.model.auxiliary_heads is False
        stored[form] = arrays(tmp_path / form / "out", 0)
    meta = json.loads((tmp_path / "zip/out/checkpoints/0/meta.json").read_text())
    assert meta["num_classes"] == 7
    for form in forms:
        assert stored[form].keys() == stored["zip"].keys()
        for name, array in stored[form].items():
            assert array.tobytes() == stored["zip"][name].tobytes(), (form, name)


def refused(tmp_path, state, name):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError) as caught:
        importer.convert_file(tmp_path / "a.pth", name, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_all_tensors_that_do_not_fit_are_told_at_once(tmp_path):
    state = dict(torch_vision.build("googlenet").state_dict())
    del state["inception4a.branch1.conv.weight"], state["conv1.bn.running_mean"]
    state["more.weight"] = torch.zeros(3)
    state["conv2.conv.weight"] = torch.zeros(64, 64, 3, 3)
    state["fc.bias"] = torch.zeros(7)
    state["conv3.bn.bias"] = torch.arange(192)
    state["aux2.fc1.bias"] = state["aux2.fc1.bias"] * float("nan")
    first, *lines = refused(tmp_path, state, "googlenet").splitlines()
    assert first.endswith("a.pth is not googlenet:")
    assert sorted(line.strip() for line in lines) == [
        "extra: more.weight",
        "missing: conv1.bn.running_mean (64)",
        "missing: inception4a.branch1.conv.weight (192x480x1x1)",
        "not finite: aux2.fc1.bias",
        "shape of conv2.conv.weight: 64x64x3x3, not 64x64x1x1",
        "shape of fc.bias: 7, not 1000",
        "type of conv3.bn.bias: int64, not floating point",
    ]


@pytest.mark.parametrize(
    "holds, asked", [("googlenet", "alexnet"), ("alexnet", "vgg11"), ("googlenet", "vgg16")]
)
def test_another_network_is_refused_and_named(holds, asked, tmp_path):
    text = refused(tmp_path, torch_vision.build(holds).state_dict(), asked)
    first, *lines = text.splitlines()
    assert first.endswith(f"is not {asked}; it fits --model={holds}:")
    assert any("missing: features." in line for line in lines) or holds == "alexnet"
    assert lines


def test_networks_that_torchvision_does_not_have_are_told(tmp_path):
    text = refused(tmp_path, {"x": torch.zeros(2)}, "zfnet512")
    assert "which can be read for alexnet, googlenet, vgg11, vgg13, vgg16, vgg19, not for" in text

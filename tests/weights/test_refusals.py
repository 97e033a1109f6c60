"""What is wrong with a file of torchvision's tensors is told in full, and nothing is written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

from inception_jax.errors import UserError
from inception_jax.weights import files, importer, mapping, torchvision

KEYS = json.loads((Path(__file__).parent / "torchvision_keys.json").read_text())
NETWORKS = [name for name in KEYS if name != "version"]


def tensors(name):
    """Zeros by torchvision's names; they take no memory."""
    return {
        key: np.broadcast_to(np.int64(0) if key.endswith("tracked") else np.float32(0), shape)
        for key, shape in KEYS[name].items()
    }


def convert(folder, content, name, monkeypatch=None):
    """Returns the message of the refusal, of a file or of what one would hold."""
    path, out = folder / "weights.safetensors", folder / "out"
    if monkeypatch:
        monkeypatch.setattr(files, "read", lambda _: content)
    else:
        save_file({key: np.array(array) for key, array in content.items()}, path)
    with pytest.raises(UserError) as caught:
        importer.convert_file(path, name, out, None)
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_torchvision_has_a_place_for_each_tensor(name):
    ours = name.removesuffix("_bn")
    found = torchvision.find(tensors(name), ours)
    expected = mapping.shapes(found.config.model, found.num_classes, found.image_size)
    assert mapping.problems(found, expected) == []
    assert found.num_classes == 1000 and found.unused == []
    counters = {key for key in KEYS[name] if key.endswith("num_batches_tracked")}
    assert {tensor.name for tensor in found.tensors.values()} == KEYS[name].keys() - counters
    assert len(found.tensors) == len(KEYS[name]) - len(counters)  # each has one place


@pytest.mark.parametrize(
    ("name", "other"),
    [("vgg16", "vgg19"), ("vgg11_bn", "vgg13"), ("alexnet", "vgg11"), ("googlenet", "alexnet")],
)
def test_a_network_under_another_name_is_refused_with_its_own(name, other, tmp_path, monkeypatch):
    message = convert(tmp_path, tensors(name), other, monkeypatch)
    first = message.splitlines()[0]
    assert first.endswith(f"is not {other}; it fits --model={name.removesuffix('_bn')}:")


def damaged():
    """GoogLeNet's tensors with several things wrong, and the lines that tell them."""
    content = tensors("googlenet")
    lines = []
    for key, shape in (("conv1.conv.weight", "64x3x7x7"), ("inception4c.branch3.1.bn.bias", "64")):
        del content[key]
        lines.append(f"missing: {key} ({shape})")
    for key, array in (("extra.weight", np.zeros(3)), ("conv9.conv.weight", np.zeros((1, 1)))):
        content[key] = array
        lines.append(f"extra: {key}")
    content["conv3.conv.weight"] = np.zeros((64, 192, 3, 3), np.float32)
    lines.append("shape of conv3.conv.weight: 64x192x3x3, not 192x64x3x3")
    content["aux1.fc1.weight"] = np.zeros((1024, 1152), np.float32)
    lines.append("shape of aux1.fc1.weight: 1024x1152, not 1024x2048")
    content["fc.bias"] = np.zeros((), np.float32)
    lines.append("shape of fc.bias: scalar, not 1000")
    content["conv2.conv.weight"] = np.zeros((64, 64, 1, 1), np.int32)
    lines.append("type of conv2.conv.weight: int32, not floating point")
    for key, number in (("conv2.bn.running_var", np.nan), ("conv2.bn.bias", -np.inf)):
        content[key] = np.array(content[key])
        content[key][5] = number
        lines.append(f"not finite: {key}")
    return content, lines


def test_everything_wrong_in_a_file_is_listed_at_once(tmp_path):
    content, lines = damaged()
    first, *rest = convert(tmp_path, content, "googlenet").splitlines()
    assert first == f"{tmp_path / 'weights.safetensors'} is not googlenet:"
    assert sorted(rest) == sorted(f"  {line}" for line in lines)


def test_the_command_fails_on_it_without_a_traceback(tmp_path):
    content, lines = damaged()
    save_file({key: np.array(array) for key, array in content.items()}, tmp_path / "x")
    arguments = [tmp_path / "x", "--model=googlenet", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "inception_jax.weights", *map(str, arguments)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 1 and process.stdout == ""
    first, *rest = process.stderr.splitlines()
    assert first == f"error: {tmp_path / 'x'} is not googlenet:"
    assert sorted(rest) == sorted(f"  {line}" for line in lines)
    assert not (tmp_path / "out").exists()


def test_heads_that_have_another_number_of_classes_are_refused(tmp_path):
    """The classifier's is the network's."""
    content = tensors("googlenet")
    for key in ("fc.weight", "fc.bias"):
        content[key] = content[key][:7]
    _, *lines = convert(tmp_path, content, "googlenet").splitlines()
    told = ("bias: 1000, not 7", "weight: 1000x1024, not 7x1024")
    assert sorted(lines) == [f"  shape of aux{n}.fc2.{what}" for n in (1, 2) for what in told]


def test_a_folder_that_has_anything_in_it_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    save_file({"x": np.zeros(1)}, tmp_path / "x")
    with pytest.raises(UserError, match="is there already"):
        importer.convert_file(tmp_path / "x", "googlenet", out, None)
    assert [each.name for each in out.iterdir()] == ["mine"]

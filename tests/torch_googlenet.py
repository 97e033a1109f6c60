"""GoogLeNet in plain PyTorch, written from the paper and the reference, to compare ours with.

Szegedy et al. 2014, arXiv:1409.4842, Table 1 and section 5; what they leave open (padding, LRN's
constants, ceil mode) from BVLC/caffe, models/bvlc_googlenet/train_val.prototxt. Shares no code with
inception_jax: images are NCHW, and there is no dropout. Imported by test_torch.py, which is skipped
where torch is absent.
"""

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
TABLE = """
3a   64  96 128 16  32  32
3b  128 128 192 32  96  64
4a  192  96 208 16  48  64
4b  160 112 224 24  64  64
4c  128 128 256 24  64  64
4d  112 144 288 32  64  64
4e  256 160 320 32 128 128
5a  256 160 320 32 128 128
5b  384 192 384 48 128 128
"""
# Ours -> theirs, for every layer with parameters; {m} is a module of Table 1.
STEM = {"conv1/7x7_s2": "conv1", "conv2/3x3_reduce": "conv2_reduce", "conv2/3x3": "conv2"}
MODULE = {
    "inception_{m}/1x1": "modules_.{m}.one",
    "inception_{m}/3x3_reduce": "modules_.{m}.before_three",
    "inception_{m}/3x3": "modules_.{m}.three",
    "inception_{m}/5x5_reduce": "modules_.{m}.before_five",
    "inception_{m}/5x5": "modules_.{m}.five",
    "inception_{m}/pool_proj": "modules_.{m}.after_pool",
}
HEADS = {
    f"{ours}/{layer}": f"heads.{module}.{layer}"
    for ours, module in (("loss1", "4a"), ("loss2", "4d"))
    for layer in ("conv", "fc", "classifier")
}


class Module(nn.Module):
    """The Inception module of Figure 2b."""

    def __init__(self, inputs, one, before_three, three, before_five, five, after_pool):
        super().__init__()
        self.one = nn.Conv2d(inputs, one, 1)
        self.before_three = nn.Conv2d(inputs, before_three, 1)
        self.three = nn.Conv2d(before_three, three, 3, padding=1)
        self.before_five = nn.Conv2d(inputs, before_five, 1)
        self.five = nn.Conv2d(before_five, five, 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.after_pool = nn.Conv2d(inputs, after_pool, 1)
        self.outputs = one + three + five + after_pool

    def forward(self, x_BCHW):
        three = self.three(self.before_three(x_BCHW).relu())
        five = self.five(self.before_five(x_BCHW).relu())
        return torch.cat(
            (self.one(x_BCHW), three, five, self.after_pool(self.pool(x_BCHW))), dim=1
        ).relu()


class Head(nn.Module):
    """An auxiliary classifier (section 5) on maps of the given shape."""

    def __init__(self, map_CHW, channels, hidden, classes):
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride=3)
        self.conv = nn.Conv2d(map_CHW[0], channels, 1)
        self.fc_map = (channels, *((side - 5) // 3 + 1 for side in map_CHW[1:]))
        self.fc = nn.Linear(int(np.prod(self.fc_map)), hidden)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x_BCHW):
        x_BCHW = self.conv(self.pool(x_BCHW)).relu()
        return self.classifier(self.fc(x_BCHW.flatten(1)).relu())


class GoogLeNet(nn.Module):
    """Returns main and auxiliary logits, of 4a and of 4d, of images of one size.

    Args:
      classes: K.
      image_HW: height and width of the images.
      width: factor on the channels of all layers but the classifiers.
      heads: whether there are auxiliary heads.
    """

    def __init__(self, classes, image_HW, width=1.0, heads=True):
        super().__init__()

        def wide(channels):
            return round(int(channels) * width)

        self.conv1 = nn.Conv2d(3, wide(64), 7, stride=2, padding=3)
        self.conv2_reduce = nn.Conv2d(wide(64), wide(64), 1)
        self.conv2 = nn.Conv2d(wide(64), wide(192), 3, padding=1)
        self.lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.modules_ = nn.ModuleDict()
        inputs = wide(192)
        for row in TABLE.split("\n")[1:-1]:
            name, *channels = row.split()
            self.modules_[name] = Module(inputs, *map(wide, channels))
            inputs = self.modules_[name].outputs
        self.classifier = nn.Linear(inputs, classes)
        self.heads = nn.ModuleDict()
        if heads:
            with torch.no_grad():
                maps = self.maps(torch.zeros(1, 3, *image_HW))
            for name in ("4a", "4d"):
                self.heads[name] = Head(maps[name].shape[1:], wide(128), wide(1024), classes)

    def maps(self, x_BCHW):
        """Every module's output, by its name in Table 1."""
        x_BCHW = self.lrn(self.pool(self.conv1(x_BCHW).relu()))
        x_BCHW = self.lrn(self.conv2(self.conv2_reduce(x_BCHW).relu()).relu())
        maps = {}
        for name, module in self.modules_.items():
            if name in ("3a", "4a", "5a"):
                x_BCHW = self.pool(x_BCHW)
            x_BCHW = maps[name] = module(x_BCHW)
        return maps

    def forward(self, x_BCHW):
        maps = self.maps(x_BCHW)
        main = self.classifier(maps["5b"].mean(dim=(2, 3)))
        return main, tuple(head(maps[name]) for name, head in self.heads.items())


def load(network: GoogLeNet, params) -> GoogLeNet:
    """Copies our parameters into the network and returns it.

    Raises:
      ValueError: a parameter of either side has no partner, or one of another shape.
    """
    ours, theirs = flatten_dict(params, sep="/"), dict(network.named_parameters())
    pairs = {ours_name: theirs_name for theirs_name, ours_name in _names(network).items()}
    if pairs.keys() != ours.keys() or sorted(pairs.values()) != sorted(theirs):
        raise ValueError(
            f"without a partner: ours {sorted(ours.keys() - pairs.keys())} and theirs"
            f" {sorted(pairs.keys() - ours.keys())}, {sorted(theirs.keys() ^ {*pairs.values()})}"
        )
    with torch.no_grad():
        for ours_name, theirs_name in pairs.items():
            value = _to_torch(np.array(ours[ours_name]), _fc_map(network, theirs_name))
            if value.shape != theirs[theirs_name].shape:
                raise ValueError(f"{ours_name}: {value.shape}, {theirs[theirs_name].shape} there")
            theirs[theirs_name].copy_(torch.from_numpy(value))
    return network


def parameters(network: GoogLeNet, gradients: bool = False) -> dict[str, np.ndarray]:
    """Copies of the network's parameters, or of their gradients, by our names, in our layout."""
    names = _names(network)
    return {
        names[name]: _from_torch(
            (tensor.grad if gradients else tensor.detach()).numpy(), _fc_map(network, name)
        )
        for name, tensor in network.named_parameters()
    }


def layers(network: GoogLeNet) -> dict[str, nn.Module]:
    """Every layer that has parameters, by our name."""
    return {ours: network.get_submodule(name) for ours, name in _layer_names(network).items()}


def _layer_names(network):
    """Our name -> theirs, of every layer that should have parameters."""
    names = STEM | {"loss3/classifier": "classifier"}
    for line in TABLE.split("\n")[1:-1]:
        m = line.split()[0]
        names |= {ours.format(m=m): theirs.format(m=m) for ours, theirs in MODULE.items()}
    return names | HEADS if network.heads else names


def _names(network):
    """Their name -> ours, of every parameter that there should be."""
    return {
        f"{theirs}.{their_kind}": f"{ours}/{kind}"
        for ours, theirs in _layer_names(network).items()
        for their_kind, kind in (("weight", "kernel"), ("bias", "bias"))
    }


def _fc_map(network, name):
    """The CHW map that a weight's inputs are, flattened, if it is an auxiliary head's fc."""
    path = name.split(".")
    return network.heads[path[1]].fc_map if path[-2:] == ["fc", "weight"] else None


def _to_torch(value, map_CHW):
    """HWIO -> OIHW, IO -> OI; where I is a map, from our order of it, HWC, to CHW."""
    if map_CHW:
        c, h, w = map_CHW
        return value.reshape(h, w, c, -1).transpose(3, 2, 0, 1).reshape(-1, c * h * w)
    return value.transpose(*{1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[value.ndim])


def _from_torch(value, map_CHW):
    """The inverse of _to_torch, as a copy."""
    if map_CHW:
        c, h, w = map_CHW
        return value.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(h * w * c, -1).copy()
    return value.transpose(*{1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[value.ndim]).copy()

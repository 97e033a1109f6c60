"""torchvision's alexnet, vgg and googlenet in plain torch.nn, under torchvision's names.

Written from its documentation and the names of its tensors; its dropouts, which do nothing in
evaluation, keep their places.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

STAGES = {  # convolutions of each stage
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
INCEPTION = {  # in, 1x1, 3x3 reduce, 3x3, "5x5" reduce, "5x5", pool
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class AlexNet(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(256 * 36, 4096), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), 6)
        return self.classifier(torch.flatten(x, 1))


class VGG(nn.Module):
    def __init__(self, depth, batch_norm=False, num_classes=1000):
        super().__init__()
        layers, before = [], 3
        for number, channels in zip(STAGES[depth], (64, 128, 256, 512, 512), strict=True):
            for _ in range(number):
                layers.append(nn.Conv2d(before, channels, 3, padding=1))
                layers += [nn.BatchNorm2d(channels)] if batch_norm else []
                layers.append(nn.ReLU())
                before = channels
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), 7)
        return self.classifier(torch.flatten(x, 1))


class Conv(nn.Module):
    def __init__(self, before, channels, window, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(before, channels, window, stride, window // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    def __init__(self, before, n1, reduce3, n3, reduce5, n5, proj):
        super().__init__()
        self.branch1 = Conv(before, n1, 1)
        self.branch2 = nn.Sequential(Conv(before, reduce3, 1), Conv(reduce3, n3, 3))
        self.branch3 = nn.Sequential(Conv(before, reduce5, 1), Conv(reduce5, n5, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), Conv(before, proj, 1))

    def forward(self, x):
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], 1)


class Head(nn.Module):
    def __init__(self, before, num_classes):
        super().__init__()
        self.conv = Conv(before, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x):
        x = self.conv(F.adaptive_avg_pool2d(x, 4))
        return self.fc2(torch.relu(self.fc1(torch.flatten(x, 1))))


class GoogLeNet(nn.Module):
    """Returns its logits, and those of its heads, which torchvision has in training only."""

    def __init__(self, num_classes=1000, heads=True):
        super().__init__()
        self.conv1 = Conv(3, 64, 7, 2)
        self.conv2 = Conv(64, 64, 1)
        self.conv3 = Conv(64, 192, 3)
        for name, widths in INCEPTION.items():
            self.add_module(f"inception{name}", Inception(*widths))
        if heads:
            self.aux1, self.aux2 = Head(512, num_classes), Head(528, num_classes)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x):
        # transform_input: from torchvision's mean and deviation to -1 ... 1
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        x = (x * std + mean - 0.5) / 0.5
        x = F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        after = {}
        for name in INCEPTION:
            if name in ("4a", "5a"):
                x = F.max_pool2d(x, 3 if name == "4a" else 2, 2, ceil_mode=True)
            x = after[name] = self.get_submodule(f"inception{name}")(x)
        if hasattr(self, "aux1"):
            self.heads = self.aux1(after["4a"]), self.aux2(after["4d"])
        return self.fc(x.mean((2, 3)))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(name, **options):
    """A network by torchvision's name: alexnet, googlenet, vgg16_bn, ..."""
    if name == "alexnet":
        return AlexNet(**options)
    if name == "googlenet":
        return GoogLeNet(**options)
    return VGG(int(name[3:5]), name.endswith("_bn"), **options)


def fill(network):
    """Draws parameters and statistics that keep every layer alive and every image distinct."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:  # sums of 0, else the biases of positive maps drown the image
                values -= values.mean(tuple(range(1, tensor.ndim)), keepdim=True)
                values *= math.sqrt(2 / tensor[0].numel())
            elif name.endswith(("bn.weight", "running_var")) or _scale(network, name):
                values = 1 + 0.2 * values.clamp(-2, 2)
            else:
                values *= 0.2
            tensor.copy_(values)
    return network.eval()


def _scale(network, name):
    """Whether it is the scale of a batch norm in a Sequential."""
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(network.get_submodule(module), nn.BatchNorm2d)

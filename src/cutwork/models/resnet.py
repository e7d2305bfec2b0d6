"""Residual networks for images of any size, with the parts and names that torchvision's have."""

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutwork.text import did_you_mean

# How often each stage repeats its block, and the block, by the number of layers.
DEPTHS: dict[int, tuple[tuple[int, ...], str]] = {
    8: ((1, 1, 1), "basic"),
    18: ((2, 2, 2, 2), "basic"),
    34: ((3, 4, 6, 3), "basic"),
    50: ((3, 4, 6, 3), "bottleneck"),
    101: ((3, 4, 23, 3), "bottleneck"),
    152: ((3, 8, 36, 3), "bottleneck"),
}
# Of the first convolution: its size, its stride, and whether the largest of 3x3 pixels is taken behind it.
STEMS = {"small": (3, 1, False), "pooled": (3, 1, True), "large": (7, 2, True)}


class BasicBlock(nn.Module):
    """Two convolutions, and what goes around them."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride, bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, 1, bias)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _way_around(inputs, width, stride, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, cut at zero."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class BottleneckBlock(nn.Module):
    """A convolution of few channels between two of single pixels, and what goes around them."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, bias: bool) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = _conv(inputs, width, 1, 1, bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride, bias)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1, 1, bias)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _way_around(inputs, outputs, stride, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, cut at zero."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class PreActivationBlock(nn.Module):
    """Two convolutions whose inputs are normalised, and what goes around them as it is."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, width, 3, stride, bias)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, 1, bias)
        is_same = stride == 1 and inputs == width
        self.downsample = None if is_same else _conv(inputs, width, 1, stride, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        y = F.relu(self.bn1(x))
        around = x if self.downsample is None else self.downsample(y)
        return around + self.conv2(F.relu(self.bn2(self.conv1(y))))


BLOCKS: dict[str, Any] = {"basic": BasicBlock, "bottleneck": BottleneckBlock, "preactivation": PreActivationBlock}


@final
class ResNet(nn.Module):
    """A stem, stages of blocks, each twice as wide as the one before on images half as large, and a linear head."""

    def __init__(
        self,
        stages: tuple[int, ...],
        block: str,
        *,
        num_classes: int,
        channels: int,
        width: int,
        stem: str,
        bias: bool,
    ) -> None:
        super().__init__()
        kind = BLOCKS[block]
        size, stride, is_pooled = STEMS[stem]
        is_normed_last = block == "preactivation"
        self.conv1 = _conv(channels, width, size, stride, bias)
        self.bn1 = nn.Identity() if is_normed_last else nn.BatchNorm2d(width)
        self.relu = nn.Identity() if is_normed_last else nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if is_pooled else nn.Identity()
        self.num_stages = len(stages)
        inputs = width
        for stage, repeats in enumerate(stages):
            blocks = []
            for at in range(repeats):
                blocks.append(kind(inputs, width << stage, 2 if stage and not at else 1, bias))
                inputs = kind.expansion * (width << stage)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()) if is_normed_last else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return a score for each class."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.num_stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(self.norm(x)), 1))


def make_resnet(
    depth: int = 18,
    *,
    num_classes: int = 10,
    channels: int = 3,
    width: int = 64,
    stem: str = "small",
    preactivation: bool = False,
    bias: bool = False,
) -> ResNet:
    """Return a residual network of so many layers, with random weights.

    A stem is `"small"` for images of 32x32 pixels, `"large"` for those of ImageNet, or `"pooled"`, small and then half
    the size. Convolutions have a `bias` if asked to. Without, and with the large stem, depths from 18 on are
    torchvision's networks and load their files.

    >>> sum(parameter.numel() for parameter in make_resnet(18, num_classes=100).parameters())
    11220132
    """
    if depth not in DEPTHS:
        raise ValueError(
            f"there is no residual network of {depth} layers here; depths are {', '.join(map(str, DEPTHS))}"
        )
    if stem not in STEMS:
        raise ValueError(f"unknown stem {stem!r}{did_you_mean(stem, STEMS)}; write {', '.join(map(repr, STEMS))}")
    stages, block = DEPTHS[depth]
    if preactivation:
        if block != "basic":
            raise ValueError(f"preactivation is for basic blocks, and {depth} layers are made of {block} blocks")
        block = "preactivation"
    model = ResNet(stages, block, num_classes=num_classes, channels=channels, width=width, stem=stem, bias=bias)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _conv(inputs: int, outputs: int, size: int, stride: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=bias)


def _way_around(inputs: int, outputs: int, stride: int, bias: bool) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride, bias), nn.BatchNorm2d(outputs))

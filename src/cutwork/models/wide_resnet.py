"""Wide residual networks for images of 32x32 pixels."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels before they are made wider, and layers that stand outside blocks.
BASE_WIDTH = 16
OUTSIDE_BLOCKS = 4
LAYERS_OF_A_BLOCK = 2
STAGES = 3


class WideBlock(nn.Module):
    """Two convolutions whose inputs are normalised, and what goes around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        is_same = inputs == outputs and stride == 1
        self.shortcut = None if is_same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        y = F.relu(self.bn1(x))
        around = x if self.shortcut is None else self.shortcut(y)
        return around + self.conv2(self.dropout(F.relu(self.bn2(self.conv1(y)))))


@final
class WideResNet(nn.Module):
    """A convolution, three stages of blocks, and a linear head."""

    def __init__(self, repeats: int, widen: int, *, num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, BASE_WIDTH, 3, padding=1)
        blocks, inputs = [], BASE_WIDTH
        for stage in range(STAGES):
            outputs = (BASE_WIDTH << stage) * widen
            for at in range(repeats):
                blocks.append(WideBlock(inputs, outputs, 2 if stage and not at else 1, dropout))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return a score for each class."""
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def make_wide_resnet(
    depth: int = 22, widen: int = 2, *, num_classes: int = 10, channels: int = 3, dropout: float = 0.3
) -> WideResNet:
    """Return a wide residual network with random weights: WRN-22-2 has depth 22 and is twice as wide.

    >>> sum(parameter.numel() for parameter in make_wide_resnet(22, 2, num_classes=100).parameters())
    1092836

    Reference: Zagoruyko and Komodakis, Wide Residual Networks, 2016.
    """
    repeats, rest = divmod(depth - OUTSIDE_BLOCKS, STAGES * LAYERS_OF_A_BLOCK)
    if rest or repeats < 1:
        raise ValueError(f"a wide residual network has 6 n + 4 layers: 10, 16, 22, 28 ...; got depth={depth}")
    if widen < 1:
        raise ValueError(f"a network is made wider by a whole number from 1 on; got widen={widen}")
    model = WideResNet(repeats, widen, num_classes=num_classes, channels=channels, dropout=dropout)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model

"""The networks for which Sparse-IFT and its budgets were published."""

import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet(nn.Module):
    """The networks in which the budgets were published, at any base width."""

    def __init__(self, num_blocks, num_classes, width=64):
        super().__init__()
        small = num_classes == 100
        stem = nn.Conv2d(3, width, 3, padding=1, bias=False) if small else nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), *([] if small else [nn.MaxPool2d(3, 2, 1)]))
        blocks, inputs = [], width
        for stage, number in enumerate(num_blocks):
            for at in range(number):
                outputs = width * 2**stage
                blocks.append(Block(inputs, outputs, 2 if stage and not at else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Identity() if small else nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x):
        x = self.pool(self.blocks(self.stem(x)))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).flatten(1))

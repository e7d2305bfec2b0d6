"""AlexNet with batch norms, for images of any size, as shuffled blocks were published with."""

from typing import final

import torch
from torch import Tensor, nn

from cutwork.text import did_you_mean

# Of each convolution its outputs, its size, its stride and its padding.
CONVOLUTIONS = ((96, 11, 2, 2), (256, 5, 2, 2), (384, 3, 2, 1), (384, 3, 2, 1), (256, 3, 2, 1))
# How wide the linear layers are.
HIDDEN = {"s": 1024, "b": 2048}


@final
class AlexNet(nn.Module):
    """Five convolutions and three linear layers, with batch norms in between."""

    def __init__(self, hidden: int, *, num_classes: int, channels: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inputs = channels
        for outputs, size, stride, padding in CONVOLUTIONS:
            parts += [nn.Conv2d(inputs, outputs, size, stride, padding), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a score for each class."""
        return self.classifier(torch.flatten(self.features(x), 1))


def make_alexnet(size: str = "s", *, num_classes: int = 10, channels: int = 3) -> AlexNet:
    """Return an AlexNet with random weights, whose linear layers are small (`"s"`) or big (`"b"`).

    >>> sum(parameter.numel() for parameter in make_alexnet("s", num_classes=100).parameters())
    5169316
    """
    if size not in HIDDEN:
        raise ValueError(f"unknown size of AlexNet {size!r}{did_you_mean(size, HIDDEN)}; write 's' or 'b'")
    return AlexNet(HIDDEN[size], num_classes=num_classes, channels=channels)

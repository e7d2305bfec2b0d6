"""VGG networks for images of 32x32 pixels, as shuffled blocks were published with."""

from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.text import did_you_mean

# Channels of each stage; each ends in halving the image.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# For each kind, the size of a stage's third convolution, and how many hidden layers stand before the last.
KINDS = {"C": (1, 2), "D": (3, 2), "like": (3, 1)}
HIDDEN = 512


@final
class VGG(nn.Module):
    """Stages of convolutions with batch norms, then linear layers."""

    def __init__(self, kind: str, *, num_classes: int, channels: int) -> None:
        super().__init__()
        third, num_hidden = KINDS[kind]
        parts: list[nn.Module] = []
        inputs = channels
        for stage in STAGES:
            for at, outputs in enumerate(stage):
                size = third if at == 2 else 3
                parts += [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            parts.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*parts)
        head: list[nn.Module] = []
        for before, after in pairwise((inputs, *[HIDDEN] * num_hidden)):
            head += [nn.Linear(before, after), nn.ReLU(), nn.BatchNorm1d(after)]
        self.classifier = nn.Sequential(*head, nn.Linear(HIDDEN, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return a score for each class."""
        return self.classifier(torch.flatten(self.features(x), 1))


def make_vgg(kind: str = "D", *, num_classes: int = 10, channels: int = 3) -> VGG:
    """Return a VGG network with random weights: `"D"`, `"C"` with 1x1 convolutions, or `"like"` with a smaller head.

    >>> sum(parameter.numel() for parameter in make_vgg("D", num_classes=100).parameters())
    15301796
    """
    if kind not in KINDS:
        raise ValueError(
            f"unknown kind of VGG {kind!r}{did_you_mean(kind, KINDS)}; write {', '.join(map(repr, KINDS))}"
        )
    model = VGG(kind, num_classes=num_classes, channels=channels)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _init_conv(module)
    return model


def _init_conv(conv: Any) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)

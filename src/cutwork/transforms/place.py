"""The place of one layer in a model, and the plain layers that can be built for it."""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.sparsity.layout import Layout
from cutwork.text import did_you_mean
from cutwork.transforms.drawing import draw

STEPS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "norm": ("norm",),
    "relu": ("relu",),
    "norm+relu": ("norm", "relu"),
}


@final
@dataclass(frozen=True)
class Place:
    """Where a layer stands: what is built for it has its kind, geometry, precision and device.

    Weights are given as matrices `[outputs, inputs]`; the inputs of a convolution are those of all taps.
    """

    name: str
    layer: Any
    layout: Layout
    seed: int

    @property
    def is_convolution(self) -> bool:
        """Say whether a convolution stands there."""
        return len(self.layout.shape) == 4

    @property
    def matrix(self) -> Tensor:
        """Return the weight of the layer as a matrix."""
        return self.layout.to_matrix(self.layer.weight.detach())

    @property
    def bias(self) -> Tensor | None:
        """Return the bias of the layer, if it has one."""
        return None if self.layer.bias is None else self.layer.bias.detach()

    @property
    def size(self) -> float:
        """Return the root of the mean square of the layer's weight."""
        return float(self.layer.weight.detach().double().square().mean().sqrt())

    def draw(self, part: str, shape: tuple[int, ...], size: float) -> Tensor:
        """Return a matrix of the layer's numbers, or of plus and minus one where all are zero, scaled to this size."""
        weight, old_size = self.layer.weight.detach(), self.size
        numbers = weight if old_size else weight.new_ones(1)
        drawn = draw(numbers, shape, seed=self.seed, name=f"{self.name}.{part}", with_signs=True)
        return drawn.mul_(size / (old_size or 1.0))

    def reading(self, matrix: Tensor, bias: Tensor | None = None) -> nn.Module:
        """Build a layer that reads what the old one does: with its kernel, strides, padding and groups."""
        if not self.is_convolution:
            return self._finish(nn.Linear(matrix.shape[1], len(matrix), bias is not None, device="meta"), matrix, bias)
        old = self.layer
        geometry = (old.kernel_size, old.stride, old.padding, old.dilation, old.groups)
        new = nn.Conv2d(
            old.in_channels,
            len(matrix),
            *geometry,
            bias=bias is not None,
            padding_mode=old.padding_mode,
            device="meta",
        )
        return self._finish(new, matrix, bias)

    def mixing(self, matrix: Tensor, bias: Tensor | None = None) -> nn.Module:
        """Build a layer that mixes the channels of what such a layer returns, each place by itself."""
        outputs, inputs = matrix.shape
        if self.is_convolution:
            return self._finish(nn.Conv2d(inputs, outputs, 1, bias=bias is not None, device="meta"), matrix, bias)
        return self._finish(nn.Linear(inputs, outputs, bias is not None, device="meta"), matrix, bias)

    def following(self, steps: str, width: int, scale: float = 1.0) -> list[nn.Module]:
        """Build what follows a layer: a norm whose outputs have this size, and an activation.

        It is a batch norm behind convolutions, a layer norm behind linear layers.
        """
        made: list[nn.Module] = []
        for step in STEPS[steps]:
            if step == "relu":
                made.append(nn.ReLU())
                continue
            weight = self.layer.weight
            norm = (nn.BatchNorm2d if self.is_convolution else nn.LayerNorm)(
                width, device=weight.device, dtype=weight.dtype
            )
            nn.init.constant_(norm.weight, scale)
            made.append(norm)
        return [each.train(self.layer.training) for each in made]

    def _finish(self, layer: Any, matrix: Tensor, bias: Tensor | None) -> nn.Module:
        trains = self.layer.weight.requires_grad
        weight = Layout(tuple(layer.weight.shape)).from_matrix(matrix).clone(memory_format=torch.contiguous_format)
        layer.weight = nn.Parameter(weight, trains)
        if bias is not None:
            layer.bias = nn.Parameter(bias.clone(), self.layer.bias.requires_grad)
        return layer.train(self.layer.training)


def check_steps(option: str, given: str) -> None:
    """Raise ValueError for unknown steps between layers.

    >>> check_steps("between", "norm+relu")
    """
    if given not in STEPS:
        raise ValueError(f"unknown {option}={given!r}{did_you_mean(given, STEPS)}; write {', '.join(map(repr, STEPS))}")


def share_out(columns: int, shares: Tensor) -> Tensor:
    """Return which share each entry of a matrix falls to, where row `i` is cut into `shares[i]` of them.

    Tiles along diagonals fall to the same, so that masks made of tiles can keep exactly one share, and each share has
    some of every row and every column.

    >>> share_out(4, torch.tensor([2, 2]))
    tensor([[0, 1, 0, 1],
            [1, 0, 1, 0]])
    """
    most = max(1, min(len(shares), columns) // int(shares.max()))
    tile = min(32, 2 ** int(math.log2(most)))
    row, column = torch.arange(len(shares)) // tile, torch.arange(columns) // tile
    return (row[:, None] + column) % shares[:, None]

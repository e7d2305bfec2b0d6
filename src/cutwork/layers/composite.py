"""Modules that stand where one layer stood, and are made of several plain ones."""

from collections.abc import Iterable
from typing import final

from torch import Tensor, nn

from cutwork.layers.compressed import Compressed
from cutwork.layers.masked import MaskedLayer


class Composite(nn.Module):
    """What stands where one linear layer or convolution stood; code that reads the weight of that finds none."""


@final
class Parallel(Composite):
    """Layers that read the same, with what follows each of them; the results are added."""

    def __init__(self, branches: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, input: Tensor) -> Tensor:
        """Return the sum of what all branches make of the input."""
        first, *others = self.branches
        result = first(input)
        for branch in others:
            result = result + branch(input)
        return result


@final
class Factorized(Composite):
    """Two layers one behind the other, and what stands between them."""

    def __init__(self, first: nn.Module, between: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = first, between, second

    @property
    def is_linear(self) -> bool:
        """Say whether the two compute what one layer with the product of their weights does."""
        return isinstance(self.between, nn.Identity)

    def forward(self, input: Tensor) -> Tensor:
        """Return what the second layer makes of what the first does."""
        return self.second(self.between(self.first(input)))


@final
class Doped(Composite):
    """A layer to be sparse, beside a dense pair of small rank; the results are added."""

    def __init__(self, sparse: nn.Module, pair: Factorized) -> None:
        super().__init__()
        self.sparse, self.pair = sparse, pair

    def forward(self, input: Tensor) -> Tensor:
        """Return the sum of what the layer and the pair make of the input."""
        return self.sparse(input) + self.pair(input)


def weight_behind_mask(layer: nn.Module) -> Tensor:
    """Return the weight that a layer multiplies with, whatever its storage; its gradient is masked as it is.

    >>> weight_behind_mask(nn.Linear(2, 3)).shape
    torch.Size([3, 2])
    """
    if isinstance(layer, MaskedLayer):
        return layer.sparsity(layer.weight)
    assert isinstance(layer, Compressed | nn.Linear | nn.Conv2d)
    return layer.weight

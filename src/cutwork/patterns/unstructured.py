"""Single weights, kept or dropped one by one."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from cutwork.patterns.base import FreePattern, Shape


@final
@dataclass(frozen=True)
class Unstructured(FreePattern):
    """Every mask is legal; a unit is one weight.

    >>> import torch
    >>> Unstructured().project(torch.tensor([[1., 4.], [3., 2.]]), density=0.5)
    tensor([[False,  True],
            [ True, False]])
    """

    def __str__(self) -> str:
        return "unstructured"

    def grid(self, shape: Shape) -> tuple[int, int]:
        return shape[0], shape[1]

    def pool(self, scores: Tensor) -> Tensor:
        return scores

    def spread(self, units: Tensor, shape: Shape) -> Tensor:
        return units

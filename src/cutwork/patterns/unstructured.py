"""Single weights, kept or dropped one by one."""

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from cutwork.patterns.base import Pattern, Shape, exchange_units, keep_largest


@final
@dataclass(frozen=True)
class Unstructured(Pattern):
    """Every mask is legal; a unit is one weight.

    >>> import torch
    >>> Unstructured().project(torch.tensor([[1., 4.], [3., 2.]]), density=0.5)
    tensor([[False,  True],
            [ True, False]])
    """

    def __str__(self) -> str:
        return "unstructured"

    @property
    def density(self) -> None:
        return None

    @property
    def every_choice_is_legal(self) -> bool:
        return True

    def check(self, shape: Shape) -> None:
        pass

    def allows(self, mask: Tensor) -> bool:
        return True

    def grid(self, shape: Shape) -> tuple[int, int]:
        return shape[0], shape[1]

    def num_units(self, shape: Shape) -> int:
        return math.prod(self.grid(shape))

    def pool(self, scores: Tensor) -> Tensor:
        return scores

    def spread(self, units: Tensor, shape: Shape) -> Tensor:
        return units

    def select(self, units: Tensor, count: int) -> Tensor:
        return keep_largest(units, count)

    def exchange(self, kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
        return exchange_units(self.select, kept, drop, grow, fraction)

"""At most N of every M neighbouring inputs; as 2:4, the form that sparse tensor cores multiply."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from cutwork.ops.selection import TILE, keep_best_tiles, keep_in_groups, keep_largest, keep_tiles_greedily
from cutwork.patterns.base import Pattern, Shape, exchange_units

FORMS = ("", "tile", "tile-greedy")


@final
@dataclass(frozen=True)
class NM(Pattern):
    """Keep `n` of every `m` neighbouring inputs of each output.

    With `form="tile"` the rule also holds along the outputs, so that the transposed weight is legal too and the
    gradient of the input can use it: of the legal 4x4 tiles the one with the largest sum is chosen (for 2:4 there are
    90, and each keeps 8 entries). `form="tile-greedy"` takes the entries of a tile by descending score instead, as
    PyTorch's operator for CUDA does, of equal ones those that it takes too; it keeps 7 or 8. That operator ranks by
    signed value unless it is asked for `largest_abs_values_greedy`; here the score says, by default the magnitude.

    A density above n/m is legal on the way there: every group keeps its `n` largest, and what is left of the count
    goes to the largest of the others.

    >>> NM(2, 4).project(torch.tensor([[1., 4., 3., 2.]]), density=0.5)
    tensor([[False,  True,  True, False]])

    Reference: Hubara et al., Accelerated sparse neural training, 2021 (tiles).
    """

    n: int
    m: int
    form: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ValueError(f"n:m needs 0 < n < m; got {self.n}:{self.m}, write for example '2:4'")
        if self.form not in FORMS:
            raise ValueError(f"unknown form {self.form!r} of {self.n}:{self.m}; write one of {FORMS}")
        if self.form and self.m != TILE:
            raise ValueError(f"a tile is 4x4; got {self.n}:{self.m}-{self.form}, write '2:4-{self.form}'")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" + (f"-{self.form}" if self.form else "")

    @property
    def density(self) -> float:
        return self.n / self.m

    @property
    def every_choice_is_legal(self) -> bool:
        return False

    def check(self, shape: Shape) -> None:
        if shape[1] % self.m:
            raise ValueError(f"{self} cannot tile {shape[1]} inputs; it needs a multiple of {self.m}")
        if self.form and shape[0] % TILE:
            raise ValueError(f"{self} cannot tile {shape[0]} outputs; it needs a multiple of {TILE}")

    def allows(self, mask: Tensor) -> bool:
        along_inputs = mask.reshape(-1, self.m).sum(1)
        along_outputs = mask.T.reshape(-1, self.m).sum(1) if self.form else along_inputs
        return int(along_inputs.max()) <= self.n and int(along_outputs.max()) <= self.n

    def grid(self, shape: Shape) -> tuple[int, int]:
        return shape[0], shape[1]

    def num_units(self, shape: Shape) -> int:
        return math.prod(shape)

    def pool(self, scores: Tensor) -> Tensor:
        return scores

    def spread(self, units: Tensor, shape: Shape) -> Tensor:
        return units

    def rivals(self, units: Tensor) -> Tensor:
        return units.reshape(-1, self.m)

    def select(self, units: Tensor, count: int) -> Tensor:
        least = self._least_legal(units)
        if count <= self.count(units.shape, self.density):
            return least
        # Not least: greedy tiles that keep fewer leave more to the others.
        rest = keep_largest(units.masked_fill(least, -torch.inf), count - int(least.count_nonzero()))
        return least | (rest & (units > -torch.inf))

    def exchange(self, kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
        return exchange_units(self.select, kept, drop, grow, fraction)

    def _least_legal(self, scores: Tensor) -> Tensor:
        if self.form == "tile":
            return keep_best_tiles(scores, self.n)
        if self.form == "tile-greedy":
            return keep_tiles_greedily(scores, self.n)
        return keep_in_groups(scores, self.n, self.m)

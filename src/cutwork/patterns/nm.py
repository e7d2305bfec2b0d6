"""At most N of every M neighbouring inputs; as 2:4, the form that sparse tensor cores multiply."""

import math
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import final

import torch
from torch import Tensor

from cutwork.patterns.base import Pattern, Shape, exchange_units, keep_largest

TILE = 4
FORMS = ("", "tile", "tile-greedy")
TILES_AT_ONCE = 65_536


@final
@dataclass(frozen=True)
class NM(Pattern):
    """Keep `n` of every `m` neighbouring inputs of each output.

    With `form="tile"` the rule also holds along the outputs, so that the transposed weight is legal too and the
    gradient of the input can use it: of the legal 4x4 tiles the one with the largest sum is chosen (for 2:4 there are
    90, and each keeps 8 entries). `form="tile-greedy"` takes the entries of a tile by descending score instead, as the
    CUDA operator does; it keeps 7 or 8, and of equal scores takes the last in row-major order.

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

    def select(self, units: Tensor, count: int) -> Tensor:
        least = self._least_legal(units)
        room = count - self.count(units.shape, self.density)
        return least | keep_largest(units.masked_fill(least, -torch.inf), room)

    def exchange(self, kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
        return exchange_units(self.select, kept, drop, grow, fraction)

    def _least_legal(self, scores: Tensor) -> Tensor:
        if not self.form:
            groups = scores.reshape(-1, self.m)
            ranks = groups.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            return (ranks < self.n).view(scores.shape)
        choose = best_tiles if self.form == "tile" else greedy_tiles
        height, width = scores.shape[0] // TILE, scores.shape[1] // TILE
        tiles = scores.view(height, TILE, width, TILE).transpose(1, 2).reshape(-1, TILE * TILE)
        chosen = choose(tiles, self.n).view(height, width, TILE, TILE).transpose(1, 2)
        return chosen.reshape(scores.shape)


def best_tiles(tiles: Tensor, n: int) -> Tensor:
    """Choose in each 4x4 tile, given as a row of 16 scores, the legal entries with the largest sum.

    Entries scored inf are kept before all others.
    """
    forced = tiles.isposinf()
    finite = tiles.masked_fill(forced, 0).double()
    finite = finite / finite.abs().amax().clamp(min=torch.finfo(torch.float64).tiny)
    # A forced entry outweighs the 16 others together, each of which now lies in [-1, 1].
    values = finite + 2 * TILE * TILE * forced
    legal = _legal_tiles(n).to(tiles.device)
    best = torch.cat([(part @ legal.double().T).argmax(1) for part in values.split(TILES_AT_ONCE)])
    return legal[best]


def greedy_tiles(tiles: Tensor, n: int) -> Tensor:
    """Take the entries of each 4x4 tile, a row of 16 scores, by descending score where its row and column have room.

    >>> tile = torch.tensor([9, 1, 7, 4, 1, 2, 3, 0, 8, 3, 5, 4, 1, 2, 6, 2.0])
    >>> (tile * greedy_tiles(tile[None], n=2)[0]).view(4, 4).int().tolist()
    [[9, 0, 7, 0], [0, 2, 0, 0], [8, 0, 0, 4], [0, 0, 6, 2]]
    """
    last = TILE * TILE - 1
    order = last - tiles.flip(1).argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(tiles, dtype=torch.bool)
    for entry in order.T:
        grid = chosen.view(-1, TILE, TILE)
        every = torch.arange(len(entry), device=tiles.device)
        room = (grid.sum(2)[every, entry // TILE] < n) & (grid.sum(1)[every, entry % TILE] < n)
        chosen[every, entry] = room
    return chosen


@cache
def _legal_tiles(n: int) -> Tensor:
    """Return every 4x4 mask with n entries in each row and column, first in row-major order first."""
    rows = [[column in kept for column in range(TILE)] for kept in combinations(range(TILE), n)]
    legal = [tile for tile in product(rows, repeat=TILE) if all(sum(column) == n for column in zip(*tile, strict=True))]
    return torch.tensor(legal).view(-1, TILE * TILE)

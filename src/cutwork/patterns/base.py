"""What every pattern offers: a rule that says which masks of a matrix are legal."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from cutwork.ops.selection import keep_largest
from cutwork.ops.topology import Topology

Shape = Sequence[int]
Select = Callable[[Tensor, int], Tensor]


@final
@dataclass(frozen=True)
class Tiling:
    """The tiles that the masks of a pattern are made of, so that what they keep can be stored alone.

    A tile has `rows` outputs and `columns` inputs, and lies on a grid that begins at the corner of the matrix. Where
    the outputs of a tile are no neighbours, `order` returns for a mask the order that makes them so. If a move changes
    it, `exchange` makes the move, as the pattern's `exchange` does: of an index, of what returns scores of its values
    to drop by, of a matrix of scores to grow by and of a fraction it makes another index.
    """

    rows: int
    columns: int
    order: Callable[[Tensor], Tensor] | None = None
    exchange: Callable[[Topology, Callable[[], Tensor], Tensor, float], Topology] | None = None


class Pattern(ABC):
    """A rule that says which masks of a matrix `[out, in]` are legal.

    A pattern keeps or drops units of the matrix whole. It scores them on a grid: a subclass says how scores reach the
    grid (`pool`), which units may be kept together (`select`, `exchange`), and how the grid goes back to the matrix
    (`spread`); everything else follows from these.

    Counts are exact, in units. Of equal scores the first in row-major order wins, unless a pattern says otherwise.
    """

    @abstractmethod
    def __str__(self) -> str:
        """Write the pattern so that `parse` reads it back."""

    @property
    def density(self) -> float | None:
        """Return the density that the pattern itself fixes, or None where it is free."""
        return None

    @property
    @abstractmethod
    def every_choice_is_legal(self) -> bool:
        """Say whether every set of units makes a legal mask, whatever their number or place."""

    @property
    def tiling(self) -> Tiling | None:
        """Return what compressed storage has to know, or None where the pattern has no tiles to store."""
        return None

    @property
    def units_are_tiles(self) -> bool:
        """Say whether each unit is a tile of the tiling, if there is one, at the same place of the grid."""
        return self.every_choice_is_legal

    def rivals(self, units: Tensor) -> Tensor:
        """Return numbers of units in rows, one for each set of units that compete with each other: all with all."""
        return units.reshape(1, -1)

    def for_kernel(self, taps: int) -> "Pattern":
        """Return the pattern for the matrix of a layer whose kernel has so many taps, a linear layer's one."""
        return self

    def check(self, shape: Shape) -> None:  # noqa: B027
        """Raise ValueError where a matrix of this shape has no legal mask; most patterns fit every shape."""

    @abstractmethod
    def allows(self, mask: Tensor) -> bool:
        """Say whether a mask is legal."""

    @abstractmethod
    def grid(self, shape: Shape) -> tuple[int, int]:
        """Return the shape of the grid on which units are scored."""

    @abstractmethod
    def num_units(self, shape: Shape) -> int:
        """Return into how many units a matrix of this shape falls."""

    @abstractmethod
    def pool(self, scores: Tensor) -> Tensor:
        """Return one score for each unit: the mean over the entries it has inside the matrix."""

    @abstractmethod
    def spread(self, units: Tensor, shape: Shape) -> Tensor:
        """Give every entry of the matrix the value of its unit."""

    @abstractmethod
    def select(self, units: Tensor, count: int) -> Tensor:
        """Choose `count` units with large scores so that they make a legal mask."""

    @abstractmethod
    def exchange(self, kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
        """Drop a fraction of the kept units, the smallest in `drop`, then grow as many, the largest in `grow`."""

    def settle(self, topology: Topology) -> Topology:
        """Return the index that a layer with this mask has: in the order that the mask itself tells."""
        tiling = self.tiling
        if tiling is None or tiling.order is None:
            return topology
        mask = topology.to_mask()
        return Topology.from_mask(mask, topology.rows, topology.columns, tiling.order(mask))

    @final
    def count(self, shape: Shape, density: float) -> int:
        """Return how many units of a matrix stand for a density: the nearest number, halves up, at least one."""
        units = self.num_units(shape)
        return min(units, max(1, math.floor(density * units + 0.5)))

    @final
    def project(self, scores: Tensor, density: float) -> Tensor:
        """Return the legal mask of this density that keeps the units with the largest scores."""
        self.check(scores.shape)
        units = self.pool(comparable(scores))
        return self.spread(self.select(units, self.count(scores.shape, density)), scores.shape)

    @final
    def regrow(self, mask: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
        """Return the mask after exchanging a fraction of its units: the lowest in `drop` for the highest in `grow`.

        A unit that has just been dropped may grow again. With `fraction=1` and the same scores twice the mask is
        chosen anew at its old density.
        """
        self.check(mask.shape)
        drops = self.pool(comparable(drop))
        grows = drops if grow is drop else self.pool(comparable(grow))
        return self.spread(self.exchange(self.units(mask), drops, grows, fraction), mask.shape)

    @final
    def units(self, mask: Tensor) -> Tensor:
        """Return which units of the grid a legal mask keeps."""
        return self.pool(mask.float()) > 0.5


class FreePattern(Pattern):
    """A pattern under which units are kept or dropped freely, so that a subclass only says what a unit is."""

    @property
    @final
    def every_choice_is_legal(self) -> bool:
        return True

    @final
    def allows(self, mask: Tensor) -> bool:
        return torch.equal(self.spread(self.units(mask), mask.shape), mask)

    @final
    def num_units(self, shape: Shape) -> int:
        return math.prod(self.grid(shape))

    @final
    def select(self, units: Tensor, count: int) -> Tensor:
        return keep_largest(units, count)

    @final
    def exchange(self, kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
        return exchange_units(keep_largest, kept, drop, grow, fraction)


def exchange_units(select: Select, kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
    """Exchange a fraction of the kept units where `select` alone says which of them may stand together."""
    count = int(kept.count_nonzero())
    if fraction == 1:
        return select(grow, count)
    places = kept.flatten().nonzero()[:, 0]
    staying = keep_largest(drop.flatten()[places], count - int(fraction * count))
    survivors = torch.zeros_like(kept).flatten().index_copy_(0, places, staying).view(kept.shape)
    return select(grow.masked_fill(survivors, torch.inf), count)


def comparable(scores: Tensor) -> Tensor:
    """Return scores that sort the same everywhere: at least float32, and nowhere nan."""
    scores = widened(scores)
    if scores.isnan().any():
        raise ValueError("scores hold nan, which has no rank; look for nan in the weights or gradients they came from")
    return scores


def widened(scores: Tensor) -> Tensor:
    """Return scores in at least float32, in which means of many are exact enough."""
    scores = scores.detach()
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()

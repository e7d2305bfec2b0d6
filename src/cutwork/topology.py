"""Where the kept tiles of a matrix are, and the way of its numbers into a compressed tensor and back."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from cutwork.ops.block_linear import dense_weight, kept_values
from cutwork.patterns import Block, Pattern, Shuffled
from cutwork.patterns.shuffled import group_rows


@final
@dataclass(frozen=True)
class Topology:
    """The index of a compressed matrix `[out, in]`.

    The outputs are cut into groups of `rows`, the last of which may hang over; `order`, if it is not None, says which
    output stands at which place. A group keeps units, runs of `columns` inputs that start at `col`; `ptr` says where
    the units of each group begin. The values `[units, columns, rows]` are zero where they hang over.
    """

    shape: tuple[int, int]
    rows: int
    columns: int
    ptr: Tensor
    col: Tensor
    order: Tensor | None = None

    @classmethod
    def from_mask(cls, mask: Tensor, pattern: Pattern) -> "Topology":
        """Index a mask that the pattern allows.

        >>> mask = Block(2, 2).project(torch.tensor([[9., 9., 0.], [9., 9., 0.], [1., 1., 5.]]), density=0.5)
        >>> topology = Topology.from_mask(mask, Block(2, 2))
        >>> topology.ptr.tolist(), topology.col.tolist()
        ([0, 1, 2], [0, 2])
        """
        if not isinstance(pattern, Block | Shuffled):
            raise ValueError(f"{pattern} has no tiles to compress; use block, vector or shuffled, or dense storage")
        order = group_rows(mask, pattern.rows) if isinstance(pattern, Shuffled) else None
        columns = pattern.columns if isinstance(pattern, Block) else 1
        kept = mask if order is None else mask[order]
        units = kept[:: pattern.rows, ::columns]
        ptr = F.pad(units.sum(1).cumsum(0), (1, 0)).int()
        col = (units.nonzero()[:, 1] * columns).int()
        return cls(
            (mask.shape[0], mask.shape[1]), pattern.rows, columns, ptr, col, None if order is None else order.int()
        )

    @property
    def num_units(self) -> int:
        """Return how many units are kept."""
        return len(self.col)

    def gather(self, matrix: Tensor) -> Tensor:
        """Return the values of the kept units of a dense matrix."""
        return kept_values(matrix, self.ptr, self.col, self.order, self.rows, self.columns)

    def scatter(self, values: Tensor) -> Tensor:
        """Return the dense matrix of some values, zero where nothing is kept."""
        return dense_weight(values, self.ptr, self.col, self.order, *self.shape).contiguous()

    def to_mask(self) -> Tensor:
        """Return the mask."""
        values = self.ptr.new_ones((self.num_units, self.columns, self.rows), dtype=torch.float32)
        return self.scatter(values).bool()

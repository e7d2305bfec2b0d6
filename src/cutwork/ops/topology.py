"""Where the kept tiles of a matrix are, and how its numbers get into a compressed tensor and back."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from cutwork.ops.block_linear import dense_weight, find_groups, kept_values


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
    def from_mask(cls, mask: Tensor, rows: int, columns: int, order: Tensor | None = None) -> "Topology":
        """Index a mask that is made of tiles of `rows` outputs and `columns` inputs, once its outputs are in `order`.

        >>> topology = Topology.from_mask(torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool(), 2, 2)
        >>> topology.ptr.tolist(), topology.col.tolist()
        ([0, 1, 2], [0, 2])
        """
        kept = mask[::rows] if order is None else mask[order[::rows]]
        return cls.from_kept(kept[:, ::columns], (mask.shape[0], mask.shape[1]), rows, columns, order)

    @classmethod
    def from_kept(
        cls, kept: Tensor, shape: tuple[int, int], rows: int, columns: int, order: Tensor | None = None
    ) -> "Topology":
        """Index the units of a grid that are true in `kept`."""
        ptr = F.pad(kept.sum(1).cumsum(0), (1, 0)).int()
        col = (kept.nonzero()[:, 1] * columns).int()
        return cls(shape, rows, columns, ptr, col, None if order is None else order.int())

    def keeping(self, kept: Tensor) -> "Topology":
        """Return the index of other units of the same grid."""
        return self.from_kept(kept, self.shape, self.rows, self.columns, self.order)

    @property
    def num_units(self) -> int:
        """Return how many units are kept."""
        return len(self.col)

    @property
    def grid(self) -> tuple[int, int]:
        """Return into how many groups of outputs and runs of inputs the matrix is cut."""
        return -(-self.shape[0] // self.rows), -(-self.shape[1] // self.columns)

    @property
    def cells(self) -> Tensor:
        """Return where in the grid each unit stands, as one number that counts row by row."""
        return find_groups(self.ptr) * self.grid[1] + self.col.long() // self.columns

    @property
    def kept(self) -> Tensor:
        """Return the grid, true where a unit is kept."""
        return self.spread(self.col.new_ones(self.num_units, dtype=torch.bool))

    def spread(self, units: Tensor) -> Tensor:
        """Return the grid with a number for each unit, zero where none is kept."""
        return units.new_zeros(self.grid).flatten().index_copy_(0, self.cells, units).view(self.grid)

    def outputs(self, start: int, stop: int) -> Tensor | slice:
        """Return the outputs of some groups, as what picks their rows out of a matrix."""
        places = slice(start * self.rows, min(stop * self.rows, self.shape[0]))
        return places if self.order is None else self.order[places].long()

    def outputs_of_units(self) -> Tensor:
        """Return for each row of each unit its output; where a group hangs over, the number of outputs."""
        outputs = self.shape[0]
        order = torch.arange(outputs, device=self.col.device) if self.order is None else self.order.long()
        padded = F.pad(order, (0, self.grid[0] * self.rows - outputs), value=outputs)
        return padded.view(-1, self.rows)[find_groups(self.ptr)]

    def check(self) -> None:
        """Raise ValueError unless products can use this index without reading or writing beside the matrix.

        >>> Topology((4, 4), 2, 2, torch.tensor([0, 1, 2]).int(), torch.tensor([0, 4]).int()).check()
        Traceback (most recent call last):
        ...
        ValueError: col holds 4, but units of 2 inputs begin at multiples of 2 below 4
        """
        outputs, inputs = self.shape
        indices = {"ptr": self.ptr, "col": self.col} | ({} if self.order is None else {"order": self.order})
        for name, index in indices.items():
            if not isinstance(index, Tensor) or index.is_meta:
                raise ValueError(f"{name} must be a tensor with memory; got {type(index).__name__}")
            if index.dtype != torch.int32 or index.dim() != 1 or not index.is_contiguous():
                raise ValueError(
                    f"{name} must be a contiguous vector of torch.int32; got {index.dtype} of {list(index.shape)}"
                )
        # In 64 bits, so that no difference of two damaged numbers wraps round.
        ptr, col = self.ptr.cpu().long(), self.col.cpu().long()
        groups = -(-outputs // self.rows)
        if len(ptr) != groups + 1:
            raise ValueError(
                f"ptr has {len(ptr)} entries; {outputs} outputs in groups of {self.rows} need {groups + 1}"
            )
        if ptr[0] != 0 or ptr[-1] != len(col) or (ptr.diff() < 0).any():
            raise ValueError(f"ptr must rise from 0 to the number of units, {len(col)}, and never fall")
        beside = (col < 0) | (col >= inputs) | (col % self.columns != 0)
        if beside.any():
            raise ValueError(
                f"col holds {int(col[beside][0])}, but units of {self.columns} inputs begin at multiples of "
                f"{self.columns} below {inputs}"
            )
        begins = torch.zeros(len(col) + 1, dtype=torch.bool).index_fill_(0, ptr, True)[1:-1]
        if (~begins & (col.diff() <= 0)).any():
            raise ValueError("col must rise within each group; a unit stands twice or out of order")
        if self.order is not None:
            order = self.order.cpu().long().sort().values
            if not torch.equal(order, torch.arange(outputs)):
                raise ValueError(f"order must name each of the {outputs} outputs once")

    def inside(self) -> Tensor | None:
        """Return which values do not hang over the matrix; None where that is all of them."""
        if not (self.shape[0] % self.rows or self.shape[1] % self.columns):
            return None
        outputs, inputs = self.shape
        column_is_in = self.col[:, None] + torch.arange(self.columns, device=self.col.device) < inputs
        group = find_groups(self.ptr)
        row_is_in = group[:, None] * self.rows + torch.arange(self.rows, device=self.col.device) < outputs
        return column_is_in[:, :, None] & row_is_in[:, None, :]

    def gather(self, matrix: Tensor) -> Tensor:
        """Return the values of the kept units of a dense matrix."""
        return kept_values(matrix, self.ptr, self.col, self.order, self.rows, self.columns)

    def scatter(self, values: Tensor) -> Tensor:
        """Return the dense matrix of some values, zero where nothing is kept."""
        return dense_weight(values, self.ptr, self.col, self.order, *self.shape).contiguous()

    def outer(self, column_O: Tensor, row_I: Tensor) -> Tensor:
        """Return the values that the outer product of two vectors has at the kept units."""
        outputs, inputs = self.grid[0] * self.rows, self.grid[1] * self.columns
        placed = column_O if self.order is None else column_O[self.order.long()]
        placed = F.pad(placed, (0, outputs - len(placed))).view(-1, self.rows)[find_groups(self.ptr)]
        runs = F.pad(row_I, (0, inputs - len(row_I))).view(-1, self.columns)[self.col.long() // self.columns]
        return runs[:, :, None] * placed[:, None, :]

    def means(self, values: Tensor) -> Tensor:
        """Return the mean of each unit over the entries that it has inside the matrix; beside it values are zero."""
        inside = self.inside()
        return values.sum((1, 2)) / (self.columns * self.rows if inside is None else inside.sum((1, 2)))

    def same_grid(self, other: "Topology") -> bool:
        """Say whether two indices count the same cells, so that they differ at most in what they keep."""
        sizes_agree = (self.shape, self.rows, self.columns) == (other.shape, other.rows, other.columns)
        one, two = self.order, other.order
        return sizes_agree and (one is two or (one is not None and two is not None and torch.equal(one, two)))

    def to_mask(self) -> Tensor:
        """Return the mask."""
        return self.scatter(self.ptr.new_ones((self.num_units, self.columns, self.rows), dtype=torch.bool))

    def num_kept(self) -> int:
        """Return how many entries of the matrix are kept."""
        inside = self.inside()
        return self.num_units * self.columns * self.rows if inside is None else int(inside.sum())

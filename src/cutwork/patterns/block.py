"""Rectangular tiles on a fixed grid; tall tiles of width one are vectors."""

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor

from cutwork.patterns.base import FreePattern, Shape, Tiling


@final
@dataclass(frozen=True)
class Block(FreePattern):
    """Tiles of `rows` outputs by `columns` inputs. Tiles that hang over an edge are cut there, and count like others.

    >>> import torch
    >>> Block(2, 2).project(torch.tensor([[9., 9., 0.], [9., 9., 0.], [1., 1., 5.]]), density=0.5).int()
    tensor([[1, 1, 0],
            [1, 1, 0],
            [0, 0, 1]], dtype=torch.int32)
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a block needs at least one row and one column; got {self.rows}x{self.columns}")

    def __str__(self) -> str:
        if self.rows == self.columns:
            return f"block:{self.rows}"
        if self.columns == 1:
            return f"vector:{self.rows}"
        return f"block:{self.rows}x{self.columns}"

    @property
    def tiling(self) -> Tiling:
        return Tiling(self.rows, self.columns)

    def grid(self, shape: Shape) -> tuple[int, int]:
        return -(-shape[0] // self.rows), -(-shape[1] // self.columns)

    def pool(self, scores: Tensor) -> Tensor:
        return tile_means(scores, self.rows, self.columns)

    def spread(self, units: Tensor, shape: Shape) -> Tensor:
        rows, columns = min(self.rows, shape[0]), min(self.columns, shape[1])
        return units.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]


def tile_means(scores: Tensor, rows: int, columns: int) -> Tensor:
    """Return the mean over each tile of a matrix, counting only the entries inside it."""
    # A tile larger than the matrix is the matrix, and takes no more memory.
    rows, columns = min(rows, max(scores.shape[0], 1)), min(columns, max(scores.shape[1], 1))
    pad_rows, pad_columns = -scores.shape[0] % rows, -scores.shape[1] % columns
    if pad_rows or pad_columns:
        inside = F.pad(scores.new_ones(()).expand(scores.shape), (0, pad_columns, 0, pad_rows))
        padded = F.pad(scores, (0, pad_columns, 0, pad_rows))
        return _tile_sums(padded, rows, columns) / _tile_sums(inside, rows, columns)
    return _tile_sums(scores, rows, columns) / (rows * columns)


def _tile_sums(matrix: Tensor, rows: int, columns: int) -> Tensor:
    height, width = matrix.shape[0] // rows, matrix.shape[1] // columns
    # Rows first: whole rows are added in vectors, and what is left to add along them is short.
    return matrix.reshape(height, rows, width * columns).sum(1).view(height, width, columns).sum(2)

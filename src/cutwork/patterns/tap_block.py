"""Tiles of a convolution that span channels only, and keep or drop all taps of its kernel together."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from cutwork.patterns.base import FreePattern, Pattern, Shape, Tiling
from cutwork.patterns.block import Block


@final
@dataclass(frozen=True)
class TapBlock(FreePattern):
    """Tiles of `rows` outputs by `columns` channels, each with all taps of the kernel: `block:16-taps`.

    A layer tells how many taps there are: the pattern of a 3x3 kernel is `block:16-9taps`, that of a linear layer
    `block:16`. SuperBlock tiles convolutions so, as long as its tiles are no smaller than the kernel.

    >>> import torch
    >>> TapBlock(1, 1, taps=2).project(torch.tensor([[9., 0., 1., 9., 0., 1.]]), density=0.34).int()
    tensor([[1, 0, 0, 1, 0, 0]], dtype=torch.int32)
    """

    rows: int
    columns: int
    taps: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.taps == 0:
            raise ValueError(f"a block needs at least one row, column and tap; got {self}")

    def __str__(self) -> str:
        size = f"{self.rows}" if self.rows == self.columns else f"{self.rows}x{self.columns}"
        return f"block:{size}-{'' if self.taps is None else self.taps}taps"

    def for_kernel(self, taps: int) -> Pattern:
        if self.taps is not None:
            return self
        return replace(self, taps=taps) if taps > 1 else Block(self.rows, self.columns)

    @property
    def units_are_tiles(self) -> bool:
        return False

    @property
    def tiling(self) -> Tiling:
        # A tile on the grid would reach over the end of a tap where the channels do not divide.
        return Tiling(self.rows, 1)

    def check(self, shape: Shape) -> None:
        if shape[1] % self._known_taps:
            raise ValueError(f"{self} needs inputs in {self.taps} taps of equally many channels; got {shape[1]}")

    def grid(self, shape: Shape) -> tuple[int, int]:
        return self._channel_blocks.grid((shape[0], shape[1] // self._known_taps))

    def pool(self, scores: Tensor) -> Tensor:
        return self._channel_blocks.pool(scores.view(len(scores), self._known_taps, -1).mean(1))

    def spread(self, units: Tensor, shape: Shape) -> Tensor:
        taps = self._known_taps
        return self._channel_blocks.spread(units, (shape[0], shape[1] // taps)).repeat(1, taps)

    @property
    def _channel_blocks(self) -> Block:
        return Block(self.rows, self.columns)

    @property
    def _known_taps(self) -> int:
        if self.taps is None:
            raise ValueError(f"{self} has to know the kernel; write for example 'block:16-9taps' for one of 3x3")
        return self.taps

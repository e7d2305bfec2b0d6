"""Blocks of rows and columns that need not be neighbours."""

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from cutwork.ops.grouping import group_rows, read_groups
from cutwork.ops.selection import keep_largest
from cutwork.patterns.base import Pattern, Shape, Tiling
from cutwork.patterns.block import tile_means


@final
@dataclass(frozen=True)
class Shuffled(Pattern):
    """Groups of `rows` similar outputs, each with a list of inputs of its own, kept in runs of `columns`.

    The rows of a group have identical mask rows, so the mask alone says which rows belong together. The last group and
    the last run of a group are short where the shape does not divide. `project` forms the groups anew, from the rows
    whose largest scores stand in the same places; so does `regrow`, from what rows would keep if each entry were
    exchanged by itself.

    >>> import torch
    >>> scores = torch.tensor([[9., 0., 9., 0.], [0., 8., 0., 8.], [9., 0., 9., 0.], [0., 8., 0., 8.]])
    >>> Shuffled(2, 2).project(scores, density=0.5).int()
    tensor([[1, 0, 1, 0],
            [0, 1, 0, 1],
            [1, 0, 1, 0],
            [0, 1, 0, 1]], dtype=torch.int32)

    Reference: Jiang et al., Exposing and exploiting fine-grained block structures for fast and accurate sparse
    training, 2022.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a block needs at least one row and one column; got {self.rows}x{self.columns}")

    def __str__(self) -> str:
        size = f"{self.rows}" if self.rows == self.columns else f"{self.rows}x{self.columns}"
        return f"shuffled:{size}"

    @property
    def every_choice_is_legal(self) -> bool:
        return False

    @property
    def tiling(self) -> Tiling:
        # The columns of a run need not be neighbours either, so each is a tile of its own.
        return Tiling(self.rows, 1, order=partial(read_groups, size=self.rows))

    def allows(self, mask: Tensor) -> bool:
        order = read_groups(mask, self.rows)
        columns = mask[order][:: min(self.rows, len(mask))]
        counts = columns.sum(1)
        whole_runs = (counts % min(self.columns, mask.shape[1]) == 0) | (counts == mask.shape[1])
        return bool(whole_runs.all()) and torch.equal(self._ungroup(columns, order), mask)

    def grid(self, shape: Shape) -> tuple[int, int]:
        return shape[0], shape[1]

    def num_units(self, shape: Shape) -> int:
        return -(-shape[0] // self.rows) * -(-shape[1] // self.columns)

    def pool(self, scores: Tensor) -> Tensor:
        return scores

    def spread(self, units: Tensor, shape: Shape) -> Tensor:
        return units

    def select(self, units: Tensor, count: int) -> Tensor:
        # What is scored -inf, as outside a mask, would hide in the mean of a group how much of the group it is.
        if units.min() == -torch.inf:
            units = units.clamp(min=units.masked_fill(units == -torch.inf, torch.inf).min() - 1)
        order = group_rows(_about_largest(units, share=count / self.num_units(units.shape)), self.rows)
        everywhere = torch.ones(-(-len(order) // self.rows), units.shape[1], dtype=torch.bool, device=units.device)
        return self._ungroup(self._best_runs(self._group_means(units, order), everywhere, count), order)

    def exchange(self, kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
        columns = kept[read_groups(kept, self.rows)][:: min(self.rows, len(kept))]
        num_runs = int((-(-columns.sum(1) // min(self.columns, kept.shape[1]))).sum())
        number = int(fraction * num_runs)
        if number == 0:
            return kept
        order = group_rows(_exchanged_entries(kept, drop, grow, fraction), self.rows)
        # What a row does not keep counts as the least that any keeps.
        drop = drop.where(kept, drop[kept].min()) if kept.any() else drop
        is_kept = self._group_means(kept.to(drop.dtype), order) > 0
        survivors = self._best_runs(self._group_means(drop, order), is_kept, num_runs - number)
        grown = self._best_runs(self._group_means(grow, order), ~survivors, number)
        return self._ungroup(survivors | grown, order)

    def _group_means(self, scores: Tensor, order: Tensor) -> Tensor:
        return tile_means(scores[order], self.rows, 1)

    def _ungroup(self, columns: Tensor, order: Tensor) -> Tensor:
        mask = torch.empty(len(order), columns.shape[1], dtype=torch.bool, device=columns.device)
        mask[order] = columns.repeat_interleave(min(self.rows, len(order)), 0)[: len(order)]
        return mask

    def _best_runs(self, scores: Tensor, allowed: Tensor, count: int) -> Tensor:
        """Mark the columns of the `count` best runs; a run takes the best allowed columns its group has left."""
        order = scores.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)
        allowed = allowed.gather(1, order)
        amount = tile_means(allowed.to(scores.dtype), 1, self.columns)
        runs = tile_means(scores.gather(1, order).masked_fill(~allowed, 0), 1, self.columns) / amount
        # Rounding must not let a run overtake an earlier one of its group; a run without columns comes last of all.
        runs = runs.masked_fill(amount == 0, -torch.inf).cummin(dim=1).values
        width = scores.shape[1]
        chosen = keep_largest(runs, count).repeat_interleave(min(self.columns, width), 1)[:, :width] & allowed
        return torch.zeros_like(allowed).scatter(1, order, chosen)


def _exchanged_entries(kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
    """Exchange a fraction of the kept entries, each by itself."""
    count = int(kept.count_nonzero())
    number = int(fraction * count)
    survivors = kept.clone()
    survivors[kept] = keep_largest(drop[kept], count - number)
    return survivors | keep_largest(grow.masked_fill(survivors, -torch.inf), number)


def _about_largest(scores: Tensor, share: float) -> Tensor:
    """Mark about a share of the entries, the largest; equal ones together, so that rows that are alike stay alike."""
    count = max(1, round(share * scores.numel()))
    threshold = scores[keep_largest(scores, count)].min()
    above, reached = scores > threshold, scores >= threshold
    return above if count - above.count_nonzero() < reached.count_nonzero() - count else reached

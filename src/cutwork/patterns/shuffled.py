"""Blocks of rows and columns that need not be neighbours."""

from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
import torch
from torch import Tensor

from cutwork.ops.selection import keep_largest
from cutwork.patterns.base import Pattern, Shape, Tiling
from cutwork.patterns.block import tile_means


@final
@dataclass(frozen=True)
class Shuffled(Pattern):
    """Groups of `rows` similar outputs, each with a list of inputs of its own, kept in runs of `columns`.

    The rows of a group have identical mask rows, so the mask alone says which rows belong together. The last group and
    the last run of a group are short where the shape does not divide. `project` forms the groups anew, from the rows
    whose largest scores stand in the same places; `regrow` leaves them as they are.

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
        return Tiling(self.rows, 1, order=partial(group_rows, size=self.rows))

    def allows(self, mask: Tensor) -> bool:
        order = group_rows(mask, self.rows)
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
        units = units.clamp(min=units.masked_fill(units == -torch.inf, torch.inf).min() - 1)
        order = group_rows(_about_largest(units, share=count / self.num_units(units.shape)), self.rows)
        everywhere = torch.ones(-(-len(order) // self.rows), units.shape[1], dtype=torch.bool, device=units.device)
        return self._ungroup(self._best_runs(self._group_means(units, order), everywhere, count), order)

    def exchange(self, kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
        order = group_rows(kept, self.rows)
        columns = kept[order][:: min(self.rows, len(kept))]
        num_runs = int((-(-columns.sum(1) // min(self.columns, kept.shape[1]))).sum())
        number = int(fraction * num_runs)
        survivors = self._best_runs(self._group_means(drop, order), columns, num_runs - number)
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


def _about_largest(scores: Tensor, share: float) -> Tensor:
    """Mark about a share of the entries, the largest; equal ones together, so that rows that are alike stay alike."""
    count = max(1, round(share * scores.numel()))
    threshold = scores.flatten().kthvalue(scores.numel() - count + 1).values
    above, reached = scores > threshold, scores >= threshold
    return above if count - above.sum() < reached.sum() - count else reached


def group_rows(mask: Tensor, size: int) -> Tensor:
    """Return an order of the rows of a mask in which each run of `size` rows is alike; only the last may be shorter.

    Identical rows come together first. The others are grouped by the cosine of their masks: a group starts at the row
    with the closest neighbours, and takes again and again the row that is nearest to all it has. Needs memory for one
    number a pair of rows, and gives the same order everywhere.
    """
    size = min(size, len(mask))
    entries = mask.float()
    overlap = (entries @ entries.T).cpu()
    norms = overlap.diagonal()
    identical = (overlap == norms) & (overlap == norms[:, None])
    first = identical.int().argmax(1)
    bucket_order = first.argsort(stable=True)
    sizes = torch.bincount(first, minlength=len(first))
    place = torch.arange(len(first)) - (sizes.cumsum(0) - sizes)[first[bucket_order]]
    whole = place < (sizes // size * size)[first[bucket_order]]
    rest = bucket_order[~whole].sort().values
    cosine = overlap[rest][:, rest] / (norms[rest] * norms[rest][:, None]).sqrt().clamp(min=1)
    return torch.cat([bucket_order[whole], rest[_group_greedily(cosine.numpy(), size)]]).to(mask.device)


def _group_greedily(similarity: np.ndarray, size: int) -> Tensor:
    closest = np.sort(similarity, axis=1)[:, ::-1][:, :size].sum(1)
    free = np.ones(len(similarity), dtype=bool)
    order: list[int] = []
    for seed in np.argsort(-closest, kind="stable"):
        if not free[seed]:
            continue
        member, linkage = int(seed), np.zeros(len(similarity), dtype=similarity.dtype)
        for _ in range(min(size, int(free.sum()))):
            free[member] = False
            order.append(member)
            linkage += similarity[member]
            member = int(np.where(free, linkage, -np.inf).argmax())
    return torch.tensor(order, dtype=torch.long)

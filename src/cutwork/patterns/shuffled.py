"""Blocks of rows and columns that need not be neighbours."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from cutwork.ops.grouping import (
    group_rows,
    mark,
    mean_of_groups,
    mean_of_kept,
    pack,
    read_bits,
    read_groups,
    settle_groups,
)
from cutwork.ops.selection import keep_best_runs, keep_largest
from cutwork.ops.topology import Topology
from cutwork.patterns.base import Pattern, Shape, Tiling

# So many scores tell well enough how large the largest of a matrix are; and so many are compared at a time.
SAMPLE, PART = 2**17, 2**18


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
        return Tiling(self.rows, 1, partial(read_groups, size=self.rows), self.exchange_entries)

    def allows(self, mask: Tensor) -> bool:
        order = read_groups(mask, self.rows)
        columns = mask[order][:: min(self.rows, len(mask))]
        counts = columns.sum(1)
        whole_runs = (counts % min(self.columns, mask.shape[1]) == 0) | (counts == mask.shape[1])
        groups = columns.repeat_interleave(min(self.rows, len(mask)), 0)[: len(mask)]
        return bool(whole_runs.all()) and torch.equal(groups, mask[order])

    def grid(self, shape: Shape) -> tuple[int, int]:
        return shape[0], shape[1]

    def num_units(self, shape: Shape) -> int:
        return -(-shape[0] // self.rows) * -(-shape[1] // self.columns)

    def pool(self, scores: Tensor) -> Tensor:
        return scores

    def spread(self, units: Tensor, shape: Shape) -> Tensor:
        return units

    def select(self, units: Tensor, count: int) -> Tensor:
        order, columns = self._choose(units, count)
        mask = torch.empty(units.shape, dtype=torch.bool, device=units.device)
        mask[order] = columns.repeat_interleave(min(self.rows, len(order)), 0)[: len(order)]
        return mask

    def exchange(self, kept: Tensor, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
        tiles = Topology.from_mask(kept, min(self.rows, len(kept)), 1, read_groups(kept, self.rows))
        return self.exchange_entries(tiles, lambda: tiles.gather(drop), grow, fraction).to_mask()

    def exchange_entries(self, tiles: Topology, drop: Callable[[], Tensor], grow: Tensor, fraction: float) -> Topology:
        """Exchange a fraction of the runs, in groups formed anew by what rows would keep if each entry went by itself.

        `drop` is asked for the scores of what is kept, in tiles of one column; `grow` scores the whole matrix.
        """
        num_runs = int((-(-tiles.ptr.diff() // self._width(tiles.shape[1]))).sum())
        number = int(fraction * num_runs)
        if number == 0:
            return tiles
        if number == num_runs:
            order, columns = self._choose(grow, num_runs)
            return Topology.from_kept(columns, tiles.shape, tiles.rows, 1, order)
        kept = drop()
        # A mean of -inf says that nothing is kept.
        kept = kept.clamp(min=torch.finfo(kept.dtype).min / tiles.rows)
        # What hangs over is none of the largest, and not the least either.
        inside = tiles.inside()
        lowest, highest = (kept if inside is None else kept.where(inside, end) for end in (-torch.inf, torch.inf))
        order = group_rows(_exchange_alone(tiles, lowest, grow, fraction), tiles.rows).to(grow.device)
        means = mean_of_kept(highest, tiles, order.int(), tiles.rows)
        survivors = self._best_runs(means, means > -torch.inf, num_runs - number)
        grown = self._best_runs(mean_of_groups(grow, order.int(), tiles.rows), ~survivors, number)
        return Topology.from_kept(survivors | grown, tiles.shape, tiles.rows, 1, order)

    def settle(self, topology: Topology) -> Topology:
        return settle_groups(topology)

    def _choose(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the order of the rows and which columns their groups keep."""
        if (least := scores.min()) == -torch.inf:
            # What is scored so, as outside a mask, would hide in the mean of a group how much of the group it is.
            least = scores.masked_fill(scores == -torch.inf, torch.inf).min()
            scores = scores.clamp(min=least - 1)
        size = min(self.rows, len(scores))
        order = group_rows(_mark_largest(scores, count / self.num_units(scores.shape)), size).to(scores.device)
        means = mean_of_groups(scores, order.int(), size)
        return order, self._best_runs(means, torch.ones_like(means, dtype=torch.bool), count)

    def _width(self, inputs: int) -> int:
        return min(self.columns, inputs)

    def _best_runs(self, means: Tensor, allowed: Tensor, count: int) -> Tensor:
        # So that sums of infinite scores are no nan.
        columns = self._width(means.shape[1])
        most = torch.finfo(means.dtype).max / columns
        return keep_best_runs(means.clamp(-most, most), allowed, columns, count)


def _exchange_alone(tiles: Topology, drop: Tensor, grow: Tensor, fraction: float) -> Tensor:
    """Exchange a fraction of the kept entries, each by itself, and return the mask as bits."""
    count = tiles.num_kept()
    number = int(fraction * count)
    survivors = mark(keep_largest(drop, count - number), tiles)
    return _mark_largest(grow, number / grow.numel(), survivors)


def _mark_largest(scores: Tensor, share: float, besides: Tensor | None = None) -> Tensor:
    """Mark as bits the largest entries, about a share of all, `besides` those that are marked already.

    Equal ones are marked together, so that rows that are alike stay alike. In a large matrix a sample says how large
    the largest are.
    """
    step = max(1, scores.numel() // SAMPLE)
    # Such a sample comes from all columns.
    while math.gcd(step, scores.shape[1]) > 1:
        step -= 1
    sample = scores.flatten()[::step]
    count = round(share * len(sample))
    if besides is not None:
        sample = sample[~read_bits(besides, scores.shape[1], step).to(sample.device)]
    count = min(count, len(sample))
    limit = sample.kthvalue(len(sample) - count + 1).values if count else torch.inf
    num_above, num_reached = (sample > limit).count_nonzero(), (sample >= limit).count_nonzero()
    is_marked = torch.gt if count - num_above < num_reached - count else torch.ge
    # Parts that stay in a cache.
    bits = torch.cat([pack(is_marked(rows, limit)) for rows in scores.split(max(1, PART // scores.shape[1]))])
    return bits if besides is None else bits | besides

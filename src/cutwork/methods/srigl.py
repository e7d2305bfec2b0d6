"""RigL with the same number of inputs for every output, and outputs that are given up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from cutwork.methods.base import (
    Method,
    Steps,
    View,
    check_fraction,
    check_span,
    falls_on,
    fraction_at,
    progress,
    share_of_moves,
)
from cutwork.methods.schedules import Schedule, cosine
from cutwork.methods.scores import Score, gradient, magnitude
from cutwork.patterns import keep_largest
from cutwork.sparsity.numbers import Mask


@final
@dataclass(frozen=True)
class SRigL(Method):
    """Exchange like RigL, but keep equally many units in every row of units, and give up rows with few salient ones.

    A unit is salient if it is among the kept with the largest weights or among all with the largest gradients. A row
    with fewer than `min_salient` times the fan-in is given up and its share goes to the others; it may come back. That
    is the fan-in of the layer before any row was given up, so that the bar does not rise with every row that goes; it
    is lowered where more rows are needed to hold the units. The last layer gives up none, and none does with
    `min_salient=0`. A row with more units to keep than its fan-in keeps the largest weights, and not the first ones as
    in the authors' code. Patterns that fix their rows themselves (n:m, shuffled) take the nearest legal mask.

    With `replaces_update=True` a move stands in for the update of its step, as in `RigL`, and in the authors' code.

    Reference: Lasby et al., Dynamic sparse training with structured sparsity, 2023.
    """

    every: int = 100
    until: Steps = 0.75
    begin: Steps = 0
    fraction: Schedule | float = cosine(0.3)  # noqa: RUF009
    min_salient: float = 0.3
    replaces_update: bool = False

    step_fields: ClassVar[Sequence[str]] = ("until", "begin")

    def __post_init__(self) -> None:
        check_span(self, every=self.every, begin=self.begin, until=self.until)
        check_fraction(self.fraction)
        if not 0 <= self.min_salient <= 1:
            raise ValueError(f"min_salient={self.min_salient} is a share of the fan-in; give a number from 0 to 1")

    def start(self, view: View, init: Score) -> Tensor:
        units = view.pattern.pool(view.score(init).float())
        every_row = torch.ones(len(units), dtype=torch.bool, device=units.device)
        kept = _legal(view, _fill_rows(units, every_row, _num_kept(view, units)))
        return view.pattern.spread(kept, view.weight.shape)

    def due(self, step: int) -> bool:
        return falls_on(step, every=self.every, begin=self.begin, until=self.until)

    def move(self, view: View) -> Mask:
        if not view.has_gradient:
            return view.unmoved
        kept, grad = view.kept, view.units(gradient).float()
        weight = view.units(magnitude).float().masked_fill(~kept, -torch.inf)
        count = int(kept.sum())
        number = int(fraction_at(self.fraction, progress(view.step, begin=self.begin, until=self.until)) * count)
        staying = keep_largest(weight, count - number)
        active = self._active_rows(view, kept, staying | keep_largest(grad, number))
        staying = (
            keep_largest(weight.masked_fill(~active[:, None], -torch.inf), count - number) & kept & active[:, None]
        )
        # What stays ranks above all growth: by weight among itself, while the gradient ranks the rest.
        ranked = torch.where(staying, 2 + _to_unit_range(weight, staying), _to_unit_range(grad, ~staying))
        return view.keep(_legal(view, _fill_rows(ranked, active, _num_kept(view, kept))))

    def _active_rows(self, view: View, kept: Tensor, salient: Tensor) -> Tensor:
        rows, columns = kept.shape
        if view.is_last or not self.min_salient:
            return torch.ones(rows, dtype=torch.bool, device=kept.device)
        counts = salient.sum(1)
        fan_in = _num_kept(view, kept) // rows
        rows_needed = -(-int(kept.sum()) // columns)
        lowest = int(counts.sort(descending=True).values[min(rows_needed, rows - 1)])
        return counts >= min(lowest, max(1, int(self.min_salient * fan_in)))

    @property
    def needs_gradient(self) -> bool:
        return True

    @property
    def dense_gradient_share(self) -> float:
        return share_of_moves(self.every)


def _num_kept(view: View, units: Tensor) -> int:
    return min(units.numel(), max(1, int(view.density * units.numel() + 0.5)))


def _fill_rows(scores: Tensor, active: Tensor, count: int) -> Tensor:
    """Keep in each active row the same number of the largest scores, as many as `count` allows in all."""
    fan_in = min(scores.shape[1], max(1, count // int(active.sum())))
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranks < fan_in) & active[:, None]


def _legal(view: View, units: Tensor) -> Tensor:
    """Return the legal choice of units that is nearest to this one."""
    if view.pattern.every_choice_is_legal:
        return units
    return view.pattern.select(units.float(), view.pattern.count(view.layout.matrix_shape, view.density))


def _to_unit_range(scores: Tensor, where: Tensor) -> Tensor:
    """Return scores squeezed into [0, 1], in the same order; what is not asked for may be anything."""
    scores = scores.masked_fill(~where, 0)
    return scores / scores.max().clamp(min=torch.finfo(scores.dtype).tiny)

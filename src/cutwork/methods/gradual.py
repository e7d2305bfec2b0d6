"""Masks that become sparser step by step."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from cutwork.methods.base import (
    Method,
    Steps,
    View,
    check_across_layers,
    check_scores,
    check_span,
    check_start_density,
    falls_on,
    needs_gradient,
    progress,
    project_by,
    rank_within,
    share_of_moves,
)
from cutwork.methods.schedules import cubic
from cutwork.methods.scores import Score, magnitude
from cutwork.sparsity.numbers import Mask


@final
@dataclass(frozen=True)
class Gradual(Method):
    """Go from density `start` to the layer's own along a cubic curve, dropping by `drop`; what is dropped stays so.

    With `across_layers=True` the units of all layers are ranked together, so that each layer keeps as much as it has
    large weights, at least one unit; together they are as dense as they would be each by itself. Layers whose pattern
    fixes the density, such as 2:4, take no part.

    Reference: Zhu and Gupta, To prune, or not to prune, 2017.
    """

    every: int = 100
    until: Steps = 0.75
    begin: Steps = 0
    start_density: float = 1.0
    drop: Score = magnitude
    across_layers: bool = False

    step_fields: ClassVar[Sequence[str]] = ("until", "begin")

    def __post_init__(self) -> None:
        check_span(self, every=self.every, begin=self.begin, until=self.until, at_end=True)
        check_scores(drop=self.drop)
        check_start_density(self.start_density)
        check_across_layers(self, across_layers=self.across_layers, drop=self.drop)

    def start(self, view: View, init: Score) -> Mask:
        return project_by(view, init, max(self.start_density, view.density))

    def due(self, step: int) -> bool:
        return step == self.until or falls_on(step, every=self.every, begin=self.begin, until=self.until)

    def move(self, view: View) -> Mask:
        if self.needs_gradient and not view.has_gradient:
            return view.unmoved
        return thin_out(view, self.drop, view.density if self.across_layers else self._density(view))

    def share_out(self, step: int, views: Iterable[View]) -> Sequence[float] | None:
        return share_by_score(views, self.drop, self._density) if self.across_layers else None

    def _density(self, view: View) -> float:
        return density_at(view, self.start_density, progress(view.step, begin=self.begin, until=self.until))

    @property
    def needs_gradient(self) -> bool:
        return needs_gradient(self.drop)

    @property
    def dense_gradient_share(self) -> float:
        return share_of_moves(self.every) if self.needs_gradient else 0.0


def density_at(view: View, start_density: float, share: float) -> float:
    """Return the density that the cubic curve to the layer's own has reached after a share of its time."""
    return cubic(max(start_density, view.density), view.density)(share)


def share_by_score(views: Iterable[View], drop: Score, density: Callable[[View], float]) -> list[float]:
    """Return how dense each layer is if of all that they keep the units with the largest scores stay.

    What stays takes as many entries as the layers' own densities would leave. Of equal scores the first stays.
    """
    own: list[float] = []
    free: dict[int, tuple[Tensor, int, int]] = {}
    for number, view in enumerate(views):
        own.append(density(view))
        if view.pattern.density is None:
            units = view.units(drop)
            free[number] = units[view.kept].cpu(), units.numel(), math.prod(view.layout.matrix_shape)
    if not free:
        return own
    layer_of = torch.cat([torch.full((len(scores),), number) for number, (scores, *_) in free.items()])
    sizes = torch.zeros(len(own), dtype=torch.float64)
    for number, (_, num_units, num_entries) in free.items():
        sizes[number] = num_entries / num_units
    ranking = torch.cat([scores for scores, *_ in free.values()]).argsort(descending=True, stable=True)
    ranked = layer_of[ranking]
    budget = sum(own[number] * num_entries for number, (*_, num_entries) in free.items())
    # A unit stays if more than half of it fits.
    stays = sizes[ranked].cumsum(0) - sizes[ranked] / 2 <= budget
    counts = torch.bincount(ranked[stays], minlength=len(own)).tolist()
    return [counts[number] / free[number][1] if number in free else own[number] for number in range(len(own))]


def thin_out(view: View, drop: Score, density: float) -> Mask:
    """Return the mask of this density, drawn from the present one."""
    return view.choose(rank_within(view, view.units(drop)), density)

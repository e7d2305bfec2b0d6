"""Masks that become sparser step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from cutwork.methods.base import (
    Method,
    Steps,
    View,
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

    Reference: Zhu and Gupta, To prune, or not to prune, 2017.
    """

    every: int = 100
    until: Steps = 0.75
    begin: Steps = 0
    start_density: float = 1.0
    drop: Score = magnitude

    step_fields: ClassVar[Sequence[str]] = ("until", "begin")

    def __post_init__(self) -> None:
        check_span(self, every=self.every, begin=self.begin, until=self.until, at_end=True)
        check_scores(drop=self.drop)
        check_start_density(self.start_density)

    def start(self, view: View, init: Score) -> Tensor:
        return project_by(view, init, max(self.start_density, view.density))

    def due(self, step: int) -> bool:
        return step == self.until or falls_on(step, every=self.every, begin=self.begin, until=self.until)

    def move(self, view: View) -> Mask:
        if self.needs_gradient and not view.has_gradient:
            return view.unmoved
        return thin_out(view, self.drop, self.start_density, progress(view.step, begin=self.begin, until=self.until))

    @property
    def needs_gradient(self) -> bool:
        return needs_gradient(self.drop)

    @property
    def dense_gradient_share(self) -> float:
        return share_of_moves(self.every) if self.needs_gradient else 0.0


def thin_out(view: View, drop: Score, start_density: float, share: float) -> Mask:
    """Return the mask, drawn from the present one, of the density that a cubic curve has reached."""
    density = cubic(max(start_density, view.density), view.density)(share)
    count = view.pattern.count(view.layout.matrix_shape, density)
    return view.keep(view.pattern.select(rank_within(view, view.units(drop)), count))

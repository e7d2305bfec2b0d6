"""Gradual pruning that also regrows at every move."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from cutwork.methods.base import (
    Method,
    Steps,
    View,
    check_fraction,
    check_scores,
    check_span,
    check_start_density,
    falls_on,
    fraction_at,
    needs_gradient,
    progress,
    project_by,
    share_of_moves,
)
from cutwork.methods.gradual import thin_out
from cutwork.methods.schedules import Schedule, cosine
from cutwork.methods.scores import Score, gradient, magnitude
from cutwork.sparsity.numbers import Mask


@final
@dataclass(frozen=True)
class GraNet(Method):
    """Thin out from `start_density` until `thin_until`, and at every move until `until` regrow a fraction besides.

    A number for the fraction falls to zero along a cosine.

    Reference: Liu et al., Sparse training via boosting pruning plasticity with neuroregeneration, 2021.
    """

    every: int = 100
    until: Steps = 0.75
    begin: Steps = 0
    thin_until: Steps = 0.5
    start_density: float = 0.5
    fraction: Schedule | float = cosine(0.5)  # noqa: RUF009
    drop: Score = magnitude
    grow: Score = gradient

    step_fields: ClassVar[Sequence[str]] = ("until", "begin", "thin_until")

    def __post_init__(self) -> None:
        check_span(self, every=self.every, begin=self.begin, until=self.until)
        check_fraction(self.fraction)
        check_scores(drop=self.drop, grow=self.grow)
        check_start_density(self.start_density)

    def start(self, view: View, init: Score) -> Tensor:
        return project_by(view, init, max(self.start_density, view.density))

    def due(self, step: int) -> bool:
        return step == self.thin_until or falls_on(step, every=self.every, begin=self.begin, until=self.until)

    def move(self, view: View) -> Mask:
        if needs_gradient(self.drop) and not view.has_gradient:
            return view.unmoved
        if view.step <= self.thin_until:
            share = progress(view.step, begin=self.begin, until=self.thin_until)
            view = view.under(thin_out(view, self.drop, self.start_density, share))
        if needs_gradient(self.grow) and not view.has_gradient:
            return view.unmoved
        fraction = fraction_at(self.fraction, progress(view.step, begin=self.begin, until=self.until))
        return view.exchange(self.drop, self.grow, fraction)

    @property
    def needs_gradient(self) -> bool:
        return needs_gradient(self.drop, self.grow)

    @property
    def dense_gradient_share(self) -> float:
        return share_of_moves(self.every) if self.needs_gradient else 0.0

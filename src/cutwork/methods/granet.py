"""Gradual pruning that also regrows at every move."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from cutwork.methods.base import (
    Method,
    Steps,
    View,
    check_across_layers,
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
from cutwork.methods.gradual import density_at, share_by_score, thin_out
from cutwork.methods.schedules import Schedule, cosine
from cutwork.methods.scores import Score, gradient, magnitude
from cutwork.sparsity.numbers import Mask


@final
@dataclass(frozen=True)
class GraNet(Method):
    """Thin out from `start_density` until `thin_until`, and at every move until `until` regrow a fraction besides.

    A number for the fraction falls to zero along a cosine. With `across_layers=True` thinning out ranks the units of
    all layers together, as in `Gradual`. The authors' code does that, and exchanges to the end of the run, which is
    `GraNet(across_layers=True, until=1.0, fraction=cosine(0.5, 0.005))` here; it rounds otherwise, and so keeps one
    weight less in all, and exchanges one more in a layer where the fraction gives no whole number.

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
    across_layers: bool = False

    step_fields: ClassVar[Sequence[str]] = ("until", "begin", "thin_until")

    def __post_init__(self) -> None:
        check_span(self, every=self.every, begin=self.begin, until=self.until)
        check_fraction(self.fraction)
        check_scores(drop=self.drop, grow=self.grow)
        check_start_density(self.start_density)
        check_across_layers(self, across_layers=self.across_layers, drop=self.drop)

    def start(self, view: View, init: Score) -> Mask:
        return project_by(view, init, max(self.start_density, view.density))

    def due(self, step: int) -> bool:
        return step == self.thin_until or falls_on(step, every=self.every, begin=self.begin, until=self.until)

    def move(self, view: View) -> Mask:
        if needs_gradient(self.drop) and not view.has_gradient:
            return view.unmoved
        if view.step <= self.thin_until:
            density = view.density if self.across_layers else self._density(view)
            view = view.under(thin_out(view, self.drop, density))
        if needs_gradient(self.grow) and not view.has_gradient:
            return view.unmoved
        fraction = fraction_at(self.fraction, progress(view.step, begin=self.begin, until=self.until))
        return view.exchange(self.drop, self.grow, fraction)

    def share_out(self, step: int, views: Iterable[View]) -> Sequence[float] | None:
        if not self.across_layers or step > self.thin_until:
            return None
        return share_by_score(views, self.drop, self._density)

    def _density(self, view: View) -> float:
        return density_at(view, self.start_density, progress(view.step, begin=self.begin, until=self.thin_until))

    @property
    def needs_gradient(self) -> bool:
        return needs_gradient(self.drop, self.grow)

    @property
    def dense_gradient_share(self) -> float:
        return share_of_moves(self.every) if self.needs_gradient else 0.0

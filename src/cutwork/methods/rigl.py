"""Dynamic masks: drop what matters least, grow what would help most."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, final

from torch import Tensor
from torch.nn import Parameter

from cutwork.methods.base import (
    Method,
    Steps,
    View,
    check_fraction,
    check_scores,
    check_span,
    falls_on,
    fraction_at,
    hold_fixed,
    needs_gradient,
    progress,
    project_by,
    share_of_moves,
)
from cutwork.methods.schedules import Schedule, cosine
from cutwork.methods.scores import Score, gradient, magnitude, random, relative_gradient
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.numbers import Mask


@final
@dataclass(frozen=True)
class RigL(Method):
    """Every so many steps exchange a fraction of the kept units: drop by `drop`, grow by `grow`.

    The fraction follows its schedule from `begin` to `anneal_until`, which is `until` unless given; a number falls to
    zero along a cosine, as in the paper, and `constant` holds it. With
    `estimate=True` growth looks at the outer product of input and output-gradient norms, and the dense gradient is
    never computed. On `shuffled:B` this is DSB, dynamic shuffled blocks, whose rows change groups as they move.

    The first move may exchange another fraction, `first`. With `first=1.0` it chooses the whole mask, and on shuffled
    patterns the groups of rows, by what grows: early in training weights say little, and gradients much.

    A move comes after the update of its step, and so ranks weights that the gradient has changed already. With
    `replaces_update=True` it stands in for the update, as in the authors' code: nothing that the optimizer trains or
    remembers changes in that step but by the move. That takes an optimizer which passes over parameters without a
    gradient, as PyTorch's all do.

    Reference: Evci et al., Rigging the lottery, 2020.
    """

    every: int = 100
    until: Steps = 0.75
    begin: Steps = 0
    fraction: Schedule | float = cosine(0.3)  # noqa: RUF009
    drop: Score = magnitude
    grow: Score = gradient
    estimate: bool = False
    anneal_until: Steps | None = None
    replaces_update: bool = False
    first: float | None = None

    step_fields: ClassVar[Sequence[str]] = ("until", "begin", "anneal_until")

    def __post_init__(self) -> None:
        check_span(self, every=self.every, begin=self.begin, until=self.until)
        check_fraction(self.fraction)
        if self.first is not None and not (isinstance(self.first, Real) and 0 <= self.first <= 1):
            raise ValueError(
                f"first={self.first!r} is the fraction that the first move exchanges; give 0 to 1, or None"
            )
        check_scores(drop=self.drop, grow=self.grow)
        if self.estimate and relative_gradient in (self.drop, self.grow):
            raise ValueError(
                "RigL(estimate=True) knows only how much each output and each input learns, by which relative_gradient "
                "divides, so that all would be equal; grow by cutwork.gradient, or leave estimate out"
            )

    def start(self, view: View, init: Score) -> Mask:
        return project_by(view, init)

    def due(self, step: int) -> bool:
        return falls_on(step, every=self.every, begin=self.begin, until=self.until)

    def move(self, view: View) -> Mask:
        if self.needs_gradient and not view.has_gradient:
            return view.unmoved
        return view.exchange(self.drop, self.grow, self._fraction(view.step))

    def _fraction(self, step: int) -> float:
        """Return which fraction of the units a move exchanges."""
        if self.first is not None and step - self.every <= self.begin:
            return self.first
        until = self.until if self.anneal_until is None else self.anneal_until
        return fraction_at(self.fraction, progress(step, begin=self.begin, until=until))

    @property
    def needs_gradient(self) -> bool:
        return needs_gradient(self.drop, self.grow)

    @property
    def dense_gradient_share(self) -> float:
        return share_of_moves(self.every) if self.needs_gradient and not self.estimate else 0.0

    def hold(self, mask: Tensor, weight: Parameter, *, view: View) -> Sparsity:
        return hold_fixed(mask, weight, view=view, estimate=self.estimate and self.needs_gradient)


def set_(*, every: int = 100, until: Steps = 0.75, fraction: Schedule | float = cosine(0.3)) -> RigL:  # noqa: B008
    """Return RigL that grows at random: sparse evolutionary training. The paper's fraction is `constant(0.3)`.

    Reference: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, 2018.
    """
    return RigL(every=every, until=until, fraction=fraction, grow=random)

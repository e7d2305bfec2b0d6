"""Masks that are soft to the gradient, and become hard."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from torch.nn import Parameter

from cutwork.methods.base import Method, Steps, View, check_every, check_start_density, is_share, progress, project_by
from cutwork.methods.schedules import linear
from cutwork.methods.scores import Score, magnitude
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.numbers import Mask
from cutwork.sparsity.softened import Softened


@final
@dataclass(frozen=True)
class Spartan(Method):
    """Begin dense, multiply with ever sharper shares of being kept, and end with a mask that stays.

    The density falls from `start_density` to the layer's own until `thin_until`. The sharpness of the shares rises from
    `start_sharpness` to `sharpness` until the masks stay, at `until`; for units of n weights, whose mean sizes differ
    less, to `sharpness * sqrt(n)`. Both run along straight lines. The largest units, by the mean magnitude of their
    weights, are kept in the forward pass; the gradient reaches the others too, through their shares. Units of one
    layer compete, those of a group in `n:m`; on shuffled blocks single weights do. `Softened` says what is computed.

    Reference: Tai et al., Spartan: differentiable sparsity via regularized transportation, 2022.
    """

    every: int = 1
    thin_until: Steps = 0.2
    until: Steps = 0.8
    sharpness: float = 20.0
    start_sharpness: float = 1.0
    start_density: float = 1.0

    step_fields: ClassVar[Sequence[str]] = ("thin_until", "until")

    def __post_init__(self) -> None:
        check_every(self.every)
        check_start_density(self.start_density)
        for name in ("sharpness", "start_sharpness"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a number above 0; the paper has 20, from 1")
        first, last = self.thin_until, self.until
        if first < 0 or (first > last and is_share(first) == is_share(last)):
            raise ValueError(
                f"Spartan(thin_until={first}, until={last}): masks stay before they have the density asked for; make "
                "until larger"
            )

    def start(self, view: View, init: Score) -> Mask:
        return project_by(view, init, self._density(view, step=0))

    def due(self, step: int) -> bool:
        return step == self.until or (step < self.until and step % self.every == 0)

    def move(self, view: View) -> Mask:
        return project_by(view, magnitude, self._density(view, step=view.step))

    def prepare(self, sparsity: Sparsity, trained: Parameter, steps_done: int) -> None:
        assert isinstance(sparsity, Softened), "this method has made it"
        if steps_done >= self.until:
            sparsity.settle(trained)
            return
        outputs, inputs = sparsity.layout.matrix_shape
        entries = outputs * inputs / sparsity.pattern.num_units((outputs, inputs))
        curve = linear(self.start_sharpness, self.sharpness * math.sqrt(entries))
        sparsity.soften(trained, curve(progress(steps_done, begin=0, until=self.until)))

    @property
    def first_score(self) -> Score:
        # The first move chooses all anew.
        return magnitude

    @property
    def needs_gradient(self) -> bool:
        return False

    @property
    def dense_gradient_share(self) -> float:
        return float(self.until) if is_share(self.until) else 1.0

    def hold(self, mask: Tensor, weight: Parameter, *, view: View) -> Sparsity:
        return Softened(mask, view.layout, pattern=view.pattern, density=view.density)

    def _density(self, view: View, step: int) -> float:
        curve = linear(max(self.start_density, view.density), view.density)
        return curve(progress(step, begin=0, until=self.thin_until)) if self.thin_until else view.density

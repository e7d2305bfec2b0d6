"""A mask chosen anew from the weight, which trains in full behind it."""

from typing import final

from torch import Tensor, nn

from cutwork.distributed import part_like
from cutwork.patterns import Pattern
from cutwork.sparsity.gradient import DenseGradient
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.masked import Masked


@final
class Reprojected(Masked):
    """A mask chosen anew from the weight itself, which keeps its values outside and gets the whole gradient.

    The weight changes only in the optimizer's step, so that is when the sparsifier renews the mask; forward passes,
    accumulation and evaluation pay nothing for it. `decay` pulls the weights outside the mask towards zero (SR-STE): it
    joins their gradient, or if it is `decoupled`, shrinks them after the update.
    """

    def __init__(
        self,
        mask: Tensor,
        layout: Layout,
        *,
        pattern: Pattern,
        density: float,
        decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        super().__init__(mask, layout, pattern=pattern, density=density)
        self.decay, self.decoupled = decay, decoupled
        # By which share the weights outside the mask shrink after the coming update.
        self._shrinkage = 0.0

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, zero outside the mask; its gradient goes through unmasked."""
        self.note_use()
        return weight + (weight * self.mask - weight).detach()

    def before_update(self, trained: nn.Parameter, loss_scale: float, learning_rate: float) -> DenseGradient | None:
        """Add the decay of the weights outside the mask to the gradient, or take note of how far they will shrink."""
        if not self.decay or trained.grad is None:
            return None
        if self.decoupled:
            self._shrinkage = learning_rate * self.decay
        else:
            trained.grad.add_(self._outside(trained).to(trained.grad.dtype), alpha=self.decay * loss_scale)
        return None

    def after_update(self, trained: nn.Parameter) -> None:
        """Shrink the weights outside the mask, if their decay is decoupled."""
        if self._shrinkage:
            trained.add_(self._outside(trained), alpha=-self._shrinkage)
            self._shrinkage = 0.0

    def _outside(self, trained: nn.Parameter) -> Tensor:
        # On a CPU a product with a bool mask takes a third of the time of a selection.
        return trained.detach() * ~part_like(self.mask, trained)

"""A fixed mask in dense storage: outside it the weight is exactly zero."""

from collections.abc import Collection
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn

from cutwork.distributed import local, part_like
from cutwork.patterns import Pattern
from cutwork.sparsity.base import States
from cutwork.sparsity.birth import usual_size
from cutwork.sparsity.estimate import make_energies, take_estimate
from cutwork.sparsity.gradient import DenseGradient, Rows, all_finite
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.masked import Masked

# How loud the gradient outside the mask is in a step that looks at it. A power of two, so that scaling back is exact;
# so small that the norm of the gradient, and with it clipping, is what the kept weights alone give.
GAIN = 2.0**-16
# Half precision has too few exponents for that; there the norm comes out up to a thousandth too large.
GAIN_IN_HALF = 2.0**-6


@final
class Fixed(Masked):
    """A mask that neither the weight nor anything learned changes: it stays until a method moves it.

    Outside it the weight is exactly zero, at rest as well as in use, and backward masks the gradient. In a step that
    expects the dense gradient, the part outside the mask is let through too, turned down by `gain`, so that data
    parallelism averages it and clipping does not notice; `before_update` turns it up again. With `estimate` the dense
    gradient is never formed: its size is estimated by the outer product of the norms of the layer's inputs and of the
    gradients of its outputs, which travel as gradients of two small parameters.
    """

    def __init__(
        self,
        mask: Tensor,
        layout: Layout,
        *,
        pattern: Pattern,
        density: float,
        estimate: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(mask, layout, pattern=pattern, density=density)
        self.estimate = estimate
        if estimate:
            outputs, inputs = layout.channels
            self.energy_in, self.energy_out = make_energies(inputs, outputs, dtype=dtype, device=mask.device)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, zero outside the mask, with the gradient masked, or turned down outside the mask."""
        self.note_use()
        # On a CPU a product with a bool mask takes a third of the time of a selection; compiled code has one form.
        if self.estimate or not (torch.compiler.is_compiling() or self._gain):
            return weight * self.mask
        # The difference is zero also where an average of weights over time still remembers what was dropped.
        return torch.where(self.mask, weight, (weight - weight.detach()) * self.gain)

    def expect_gradient(self, trained: nn.Parameter, on: bool) -> None:
        """Open or close the way for the gradient outside the mask."""
        if self.estimate:
            self._expect_estimate(on)
        else:
            self._set_gain((GAIN_IN_HALF if trained.dtype == torch.float16 else GAIN) * on)

    def before_update(self, trained: nn.Parameter, loss_scale: float, learning_rate: float) -> DenseGradient | None:
        """Return the dense gradient, or its estimate, if it was expected; mask `weight.grad`."""
        if not self._gain:
            return None
        if self.energies is not None:
            return take_estimate(self.energies, self.layout.matrix_shape[1])
        if trained.grad is None:
            return None
        given = _GivenGradient(self, trained.grad.clone(), self._gain)
        trained.grad.copy_(torch.where(part_like(self.mask, trained.grad), trained.grad, 0))
        return given

    def after_update(self, trained: nn.Parameter) -> None:
        """Zero the weight outside the mask, whatever the optimizer wrote there."""
        trained.mul_(part_like(self.mask, trained))

    def move(self, condensed: Tensor, trained: nn.Parameter, states: States, sizes: Collection[str] = ()) -> None:
        """Take over a mask; weights that were not kept start at zero, optimizer state there or at its usual size."""
        old = self.mask.clone()
        self.set_mask(condensed)
        stay, begin = old & self.mask, self.mask & ~old
        trained.copy_(torch.where(part_like(stay, trained), trained, 0))
        for name, numbers in find_per_entry(states, trained):
            start = usual_size(numbers, part_like(old, numbers)) if name in sizes else 0.0
            numbers.copy_(torch.where(part_like(stay, numbers), numbers, 0))
            if start:
                numbers.copy_(torch.where(part_like(begin, numbers), start, numbers))

    def fits(self, trained: Tensor) -> bool:
        """Say whether the part of the weight that is here is zero outside the mask."""
        return not local(torch.where(part_like(self.mask, trained), 0, trained.detach())).any()


@final
class _GivenGradient(DenseGradient):
    """The gradient that a weight got, turned down by a gain outside its mask."""

    def __init__(self, fixed: Fixed, gradient: Tensor, gain: float) -> None:
        self._fixed, self._gradient, self._gain = fixed, gradient, gain

    def is_finite(self) -> bool:
        return all_finite(self._matrix)

    def rows(self, outputs: Rows, into: Tensor | None = None) -> Tensor:
        mask, part = self._mask[outputs], self._matrix[outputs]
        return torch.where(mask, part, part / self._gain)

    @cached_property
    def _mask(self) -> Tensor:
        return self._fixed.mask_matrix()

    @cached_property
    def _matrix(self) -> Tensor:
        return self._fixed.matrix(self._gradient)


def find_per_entry(states: States, trained: Tensor) -> list[tuple[str, Tensor]]:
    """Return every tensor of any optimizer's state that has a number for each entry of the parameter, by name."""
    named = [(name, value) for state in states for name, value in state.items()]
    return [(name, value) for name, value in named if isinstance(value, Tensor) and value.shape == trained.shape]

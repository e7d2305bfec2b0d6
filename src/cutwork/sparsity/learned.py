"""A mask learned by gradient descent on scores."""

from typing import final

import torch
from torch import Tensor, nn

from cutwork.distributed import whole
from cutwork.patterns import Pattern
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.masked import Masked


@final
class Learned(Masked):
    """A mask of the units with the largest learned scores; a score's gradient sums weight times gradient over its unit.

    `bits` puts the weight into 2**bits equal bins, numbered from -2**(bits-1), and multiplies with
    `shift + scale * bin`, both of which train unless `fixed_transform`; without a `transform` they start where the
    result is closest to the weight. In backward the number of a bin is a straight line in the weight, so that the
    gradient of the weight is that of the result times `scale` over the width of a bin. Bins lie over the range of the
    weight in each pass; the code of SuperBlock chooses them once, and then trains their numbers like any weights.
    """

    def __init__(
        self,
        mask: Tensor,
        layout: Layout,
        *,
        pattern: Pattern,
        density: float,
        scores: Tensor,
        score_range: tuple[float, float] | None = None,
        dense_weight_gradient: bool = False,
    ) -> None:
        super().__init__(mask, layout, pattern=pattern, density=density)
        self.scores = nn.Parameter(scores)
        self.score_range = score_range
        self.dense_weight_gradient = dense_weight_gradient
        self.bits = 0

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight times its mask, with a gradient for the scores behind the mask."""
        self.note_use()
        if self.bits:
            weight = self._bin(weight)
        gate = self.mask.to(weight.dtype)
        if self.scores.requires_grad:
            spread = self.pattern.spread(self.scores, self.layout.matrix_shape)
            spread = self.layout.from_matrix(spread).to(weight.dtype)
            gate = gate + (spread - spread.detach())
        if self.dense_weight_gradient:
            return (weight - weight.detach()) + weight.detach() * gate
        return weight * gate

    def after_update(self, trained: nn.Parameter) -> None:
        """Hold the scores in their range."""
        if self.score_range:
            self.scores.clamp_(*self.score_range)

    def is_frozen(self, trained: Tensor) -> bool:
        """Say whether the scores do not train either."""
        return not (trained.requires_grad or self.scores.requires_grad)

    def learned_scores(self) -> Tensor:
        """Return the scores in full."""
        return whole(self.scores.detach())

    def bin_weight(
        self, weight: Tensor, bits: int, *, transform: tuple[float, float] | None, fixed_transform: bool
    ) -> None:
        """Multiply with binned weights from now on."""
        low, high = weight.detach().aminmax()
        scale = (high - low) / 2**bits
        shift = low + scale * (2 ** (bits - 1) + 0.5)
        if transform:
            shift, scale = (torch.tensor(value, dtype=weight.dtype, device=weight.device) for value in transform)
        self.bits = bits
        self.shift = nn.Parameter(shift.reshape(1), requires_grad=not fixed_transform)
        self.scale = nn.Parameter(scale.reshape(1), requires_grad=not fixed_transform)

    def _bin(self, weight: Tensor) -> Tensor:
        values = weight.detach()
        low, high = values.aminmax()
        width = ((high - low) / 2**self.bits).clamp(min=torch.finfo(values.dtype).tiny)
        bins = ((values - low) / width).floor().clamp(0, 2**self.bits - 1) - 2 ** (self.bits - 1)
        # Where all weights are equal there is one bin, without a width.
        slope = torch.where(high > low, self.scale.detach() / width, 1)
        return bins * self.scale + self.shift + (weight - values) * slope

"""A mask whose gradient knows how far each unit is from being kept."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from cutwork.distributed import part_like
from cutwork.patterns import Pattern
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.masked import Masked

# How close to the number of kept units shares must sum, and after how many steps the search ends anyway.
CLOSE, STEPS = 1e-6, 60


@final
class Softened(Masked):
    """A mask of the largest units, multiplied with the share to which each is kept; the shares train the weight.

    A unit is kept to the share `sigmoid(sharpness * (size - threshold))`, where its size is the mean magnitude of its
    weights, and the shares of units that compete sum to the number of them in the mask: in `n:m` those of each group,
    otherwise all. So says the optimal transport of units to "kept" and "dropped", with an entropy whose weight is one
    over the sharpness. What is multiplied with is zero outside the mask; the gradient is that without this cut, also
    through shares and thresholds, and reaches every weight.

    Before anything is softened, and when it is settled, it is a plain mask: the gradient stays inside. Compiled code is
    compiled anew for that.
    """

    sharpness: Tensor
    threshold: Tensor

    def __init__(self, mask: Tensor, layout: Layout, *, pattern: Pattern, density: float) -> None:
        super().__init__(mask, layout, pattern=pattern, density=density)
        # Where the sharpness is zero, nothing is soft.
        self.register_buffer("sharpness", torch.zeros((), device=mask.device))
        self.register_buffer("threshold", torch.zeros(count_contests(pattern, mask.shape), 1, device=mask.device))
        self.restart(mask.device)
        # The same as a plain bool, so that no pass has to ask a device for it.
        self.is_soft = False

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight times its shares, zero outside the mask."""
        self.note_use()
        if not self.is_soft:
            return weight * self.mask
        soft = weight * self._shares(weight)
        return soft + (soft * self.mask - soft).detach()

    @torch.no_grad()
    def soften(self, trained: Tensor, sharpness: float) -> None:
        """Keep units to shares from now on, and find the threshold that fits the weight as it is."""
        kept = self.pattern.rivals(self.pattern.units(self.mask_matrix())).sum(1, keepdim=True)
        sizes = self.pattern.rivals(self._sizes(self.matrix(trained)))
        self.sharpness.fill_(sharpness)
        self.threshold.copy_(find_thresholds(sizes, kept, sharpness))
        self.is_soft = True

    @torch.no_grad()
    def settle(self, trained: nn.Parameter) -> None:
        """Multiply the weight with its shares, and be a plain mask from now on: what the layer computes stays."""
        if self.is_soft:
            trained.mul_(part_like(self._shares(self.layout.from_matrix(self.matrix(trained))), trained))
            self.sharpness.zero_()
            self.is_soft = False

    def _sizes(self, matrix: Tensor) -> Tensor:
        return self.pattern.pool(matrix.to(torch.promote_types(matrix.dtype, torch.float32)).abs())

    def _shares(self, weight: Tensor) -> Tensor:
        sizes = self._sizes(self.layout.to_matrix(weight))
        rivals = self.pattern.rivals(sizes)
        share = (self.sharpness * (rivals.detach() - self.threshold)).sigmoid()
        # The shares would sum to another number, and the threshold follows: by the mean of all changes, weighted so.
        slope = share * (1 - share)
        change = rivals - rivals.detach()
        tiny = torch.finfo(slope.dtype).tiny
        follows = (slope * change).sum(1, keepdim=True) / slope.sum(1, keepdim=True).clamp(min=tiny)
        share = (share + self.sharpness * slope * (change - follows)).view(sizes.shape)
        return self.layout.from_matrix(self.pattern.spread(share, self.layout.matrix_shape)).to(weight.dtype)

    def _note_loaded(self) -> None:
        """Be as soft as what has come."""
        super()._note_loaded()
        self.is_soft = bool(self.sharpness)


def count_contests(pattern: Pattern, shape: Sequence[int]) -> int:
    """Return how many sets of units there are in a matrix of which each competes by itself.

    >>> from cutwork.patterns import parse
    >>> count_contests(parse("2:4"), (8, 16)), count_contests(parse("block:4"), (8, 16))
    (32, 1)
    """
    return len(pattern.rivals(torch.empty(pattern.grid(shape), device="meta")))


def find_thresholds(sizes: Tensor, kept: Tensor, sharpness: float) -> Tensor:
    """Return for each row of sizes the threshold at which shares sum to the number of units that are kept of it.

    >>> sizes = torch.tensor([[1.0, 2.0, 4.0]])
    >>> thresholds = find_thresholds(sizes, torch.tensor([[1]]), sharpness=5)
    >>> round(float((5 * (sizes - thresholds)).sigmoid().sum()), 5)
    1.0
    """
    # So far outside of the sizes no unit is missing, or there.
    margin = math.log(2 * sizes.shape[1]) / sharpness
    low, high = sizes.amin(1, keepdim=True) - margin, sizes.amax(1, keepdim=True) + margin
    threshold = (low + high) / 2
    is_whole, is_empty = kept >= sizes.shape[1], kept <= 0
    for _ in range(STEPS):
        share = (sharpness * (sizes - threshold)).sigmoid()
        excess = share.sum(1, keepdim=True, dtype=torch.float64) - kept
        if bool(((excess.abs() <= CLOSE * kept) | is_whole | is_empty).all()):
            break
        low, high = torch.where(excess > 0, threshold, low), torch.where(excess > 0, high, threshold)
        slope = sharpness * (share * (1 - share)).sum(1, keepdim=True, dtype=torch.float64)
        follows = (threshold + excess / slope).to(threshold.dtype)
        # A step of Newton's, or half of what is left where that leads astray.
        threshold = torch.where((follows > low) & (follows < high), follows, (low + high) / 2)
    return threshold.masked_fill(is_whole, -math.inf).masked_fill(is_empty, math.inf)

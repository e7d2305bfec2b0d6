"""First weights made larger, so that what a mask keeps of them does what all of them would."""

import torch
from torch import Tensor

ROWS_AT_ONCE = 64


@torch.no_grad()
def rescale(weight: Tensor, mask: Tensor) -> None:
    """Multiply a weight, in place, by the number that makes what the mask keeps as long as the whole was.

    Then outputs vary as much as in the dense layer. Where chance chose the mask, the number is about one over the
    square root of the density. It is one number for the whole layer, so the order of the weights by magnitude stays,
    and with it what a method chooses next.
    """
    # A few rows at a time: a copy of the whole would be the largest thing in memory.
    parts = list(zip(weight.float().split(ROWS_AT_ONCE), mask.split(ROWS_AT_ONCE), strict=True))
    whole = torch.stack([rows.square().sum() for rows, _ in parts]).sum()
    kept = torch.stack([(rows * is_kept).square().sum() for rows, is_kept in parts]).sum()
    if kept > 0:
        weight.mul_((whole / kept).sqrt())

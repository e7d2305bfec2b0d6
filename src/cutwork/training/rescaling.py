"""First weights made larger, so that what a mask keeps of them does what all of them would."""

from collections.abc import Iterable

import torch
from torch import Tensor

# Fresh weights stay below 4 in every model of torchvision, timm and transformers that was tried, hundreds of layers;
# trained ones passed 12 in each, and small networks on digits within two epochs.
LOOKS_TRAINED = 8.0
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


def look_trained(matrices: Iterable[Tensor]) -> bool:
    """Say whether any of these weights looks as if it had been trained, however it was initialised.

    Fresh weights are independent numbers of one distribution, or orthogonal; so the mean squares of their rows differ
    by what chance makes of the length of a row, and no more. Training makes some rows and columns much larger.
    """
    return any(max(_unevenness(matrix), _unevenness(matrix.T)) > LOOKS_TRAINED for matrix in matrices)


@torch.no_grad()
def _unevenness(matrix: Tensor) -> float:
    """Return by how many standard deviations the variance of the rows' mean squares is above that of chance."""
    rows, columns = matrix.shape
    if min(rows, columns) < 2:
        return 0.0
    squares = matrix.float().square()
    by_chance = squares.var() / columns
    if not by_chance > 0:
        return 0.0
    return float((squares.mean(dim=1).var() / by_chance - 1) * ((rows - 1) / 2) ** 0.5)

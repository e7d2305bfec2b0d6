"""Whether weights are fresh, as far as one can see by the numbers: then their magnitudes say nothing."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cutwork.layers.swap import weight_of
from cutwork.training.selection import Choice

# Fresh weights stay below 4 in every model of torchvision, timm and transformers that was tried, hundreds of layers;
# trained ones passed 12 in each, and small networks on digits within two epochs.
UNEVEN = 8.0
# Uniform numbers in bfloat16 are zero in one of 256 cases, others hardly ever.
MANY_ZEROS = 0.05


def are_fresh(model: nn.Module, choices: Mapping[str, Choice]) -> bool:
    """Say whether the chosen layers still have first weights; those on the meta device are about to get them."""
    candidates = [choice.candidate for choice in choices.values() if not choice.candidate.is_meta]
    return not look_trained(each.layout.to_matrix(weight_of(model, each).detach()) for each in candidates)


def look_trained(matrices: Iterable[Tensor]) -> bool:
    """Say whether any of these weights looks as if it had been trained, however it was initialised.

    Fresh weights are independent numbers of one distribution, or orthogonal; so the mean squares of their rows differ
    by what chance makes of the length of a row, and no more. Training makes some rows and columns much larger, and
    pruning some weights zero.
    """
    return any(_is_pruned(matrix) or not (_is_even(matrix) and _is_even(matrix.T)) for matrix in matrices)


def _is_pruned(matrix: Tensor) -> bool:
    """Say whether somebody has chosen which weights are zero."""
    num_kept = int(matrix.count_nonzero())
    return 0 < num_kept < (1 - MANY_ZEROS) * matrix.numel()


@torch.no_grad()
def _is_even(matrix: Tensor) -> bool:
    """Say whether the mean squares of the rows differ no more than chance makes them; those of nan are not even."""
    rows, columns = matrix.shape
    if min(rows, columns) < 2:
        return True
    squares = matrix.float().square()
    by_chance = squares.var() / columns
    if by_chance == 0:
        return True
    # By how many standard deviations their variance is above that of chance.
    return bool((squares.mean(dim=1).var() / by_chance - 1) * ((rows - 1) / 2) ** 0.5 <= UNEVEN)

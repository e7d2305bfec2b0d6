"""What optimizers begin with for a weight that has just been kept: no direction yet, but the size that is usual."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cutwork.distributed import is_sharded, whole


def find_sizes(remembered: Iterable[tuple[Tensor, Mapping[str, Any]]]) -> frozenset[str]:
    """Return the names of those states that measure sizes, such as a mean of squared gradients.

    These are negative nowhere, in no parameter of any optimizer. One layer alone would not show it: a momentum of a
    few numbers is often positive throughout.

    >>> weight = torch.zeros(2)
    >>> state = {"momentum": torch.tensor([1.0, -1.0]), "mean_square": torch.tensor([1.0, 1.0])}
    >>> sorted(find_sizes([(weight, state)]))
    ['mean_square']
    """
    sizes: set[str] = set()
    signed: set[str] = set()
    for parameter, state in remembered:
        for name, numbers in state.items() if isinstance(state, Mapping) else ():
            if name in signed or not isinstance(numbers, Tensor) or numbers.shape != parameter.shape:
                continue
            # Complex numbers have no order, and of integers a move knows not what they mean.
            is_size = numbers.is_floating_point() and not _is_negative_somewhere(numbers)
            (sizes if is_size else signed).add(name)
    return frozenset(sizes - signed)


def usual_size(numbers: Tensor, kept: Tensor | None) -> float:
    """Return the mean over what is kept, which is all of it for None; zero where there is no such mean.

    >>> usual_size(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([True, True, False]))
    2.0
    """
    counted = numbers if kept is None else torch.where(kept, numbers, 0)
    # In one order and in double precision, so that a resumed run finds the same mean however its numbers lie.
    total = float(whole(counted.contiguous().sum(dtype=torch.float64)))
    count = numbers.numel() if kept is None else int(whole(kept.sum()))
    return total / count if count and math.isfinite(total) else 0.0


def _is_negative_somewhere(numbers: Tensor) -> bool:
    if is_sharded(numbers):
        # A rank may hold no number of it, and of none there is no smallest.
        return bool(whole((numbers < 0).any()))
    # A tenth of the time.
    return numbers.numel() > 0 and bool(numbers.amin() < 0)

"""What makes a weight worth keeping: functions `(weight, grad, generator) -> scores`, larger is better.

A function of your own is given whole matrices, so that it may compare weights with each other.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

Score = Callable[[Tensor, Tensor | None, Generator | None], Tensor]


def magnitude(weight: Tensor, grad: Tensor | None = None, generator: Generator | None = None) -> Tensor:
    """Score a weight by its absolute value."""
    return weight.abs()


def energy(weight: Tensor, grad: Tensor | None = None, generator: Generator | None = None) -> Tensor:
    """Score a weight by its square.

    Single weights are then in the same order as by magnitude, but of blocks and tiles those are kept that hold most of
    the sum of squares.
    """
    # Squares of small numbers would vanish in half precision.
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).square()


def gradient(weight: Tensor, grad: Tensor | None = None, generator: Generator | None = None) -> Tensor:
    """Score a weight by the absolute value of its gradient: what would change the loss fastest."""
    return _given(grad).abs()


def relative_gradient(weight: Tensor, grad: Tensor | None = None, generator: Generator | None = None) -> Tensor:
    """Score a weight by its gradient beside those of its output and of its input: where the two learn together.

    By the gradient alone growth heaps up where an output learns much or an input is large, whatever connects them.
    Units of a pattern are compared as wholes, with the units in their row and in their column.
    """
    return compare_with_lines(gradient(weight, grad))


def taylor(weight: Tensor, grad: Tensor | None = None, generator: Generator | None = None) -> Tensor:
    """Score a weight by the change of the loss, to first order, if it were dropped."""
    return (weight * _given(grad)).abs()


def random(weight: Tensor, grad: Tensor | None = None, generator: Generator | None = None) -> Tensor:
    """Score a weight by chance, the same on every device for the same generator."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def balanced(weight: Tensor, grad: Tensor | None = None, generator: Generator | None = None) -> Tensor:
    """Score by chance so that the best lie evenly over rows and columns, however many of them are taken.

    Where few are kept, pure chance leaves many rows, outputs, without any.

    >>> best = balanced(torch.ones(8, 8)) > -16
    >>> best.sum(dim=0).tolist(), best.sum(dim=1).tolist()
    ([2, 2, 2, 2, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2, 2, 2])
    """
    rows, columns = weight.shape
    divisor = math.gcd(rows, columns)
    row, column, shift = (torch.randperm(size, generator=generator) for size in (rows, columns, divisor))
    # A walk along wrapped diagonals, one step down and one to the right at a time, meets each place once: in the first
    # column at these steps, and in another that many columns later on the same diagonal.
    step = torch.arange(rows) * columns
    lap = step // (rows * columns // divisor)
    # Each place has a number of its own; single precision tells so many apart.
    begin = torch.empty(rows, dtype=torch.float32 if rows * columns <= 2**24 else torch.float64)
    begin[(step + shift[lap]) % rows] = step.to(begin.dtype)
    down, right = row.argsort(), column.argsort()
    # A window on these for each row, which takes no memory. To compute each diagonal takes several times as long.
    diagonals = begin[torch.arange(1 - columns, rows) % rows].unfold(0, columns, 1)
    return diagonals[down].index_select(1, columns - 1 - right).add_(right).neg_().to(weight.device)


SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "energy": energy,
    "gradient": gradient,
    "relative_gradient": relative_gradient,
    "taylor": taylor,
    "random": random,
    "balanced": balanced,
}
NEED_NO_GRADIENT = (magnitude, energy, random, balanced)
# They look at no weight and give each unit of a pattern a number of its own.
BY_UNIT = (random, balanced)
# Scores of each weight by itself, so that units are scored without whole matrices; of these, the ones that are zero
# where the weight is.
ENTRYWISE = (magnitude, energy, gradient, taylor)
ZERO_AT_ZERO = (magnitude, energy, taylor)


def compare_with_lines(scores: Tensor) -> Tensor:
    """Divide scores by the root of the sum of squares in their row, and by that in their column.

    A line counts as no quieter than they are on the average, so that none is chosen for its noise.
    """
    compared = scores.double()
    for dim in (0, 1):
        # In double precision squares of small gradients do not vanish.
        norm = torch.linalg.vector_norm(scores, dim=dim, keepdim=True, dtype=torch.float64)
        average = norm.mean()
        if average > 0:
            compared = compared / norm.clamp(min=average)
    return compared.to(scores.dtype)


def _given(grad: Tensor | None) -> Tensor:
    if grad is None:
        raise ValueError("this score needs a gradient and there is none yet; score by 'magnitude' or 'random' here")
    return grad

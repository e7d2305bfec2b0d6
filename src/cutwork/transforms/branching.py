"""Sparse-Parallel: several sparse layers where one dense one stood, and their sum."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cutwork.layers.composite import Composite, Parallel
from cutwork.patterns import Pattern
from cutwork.transforms.budget import num_branches
from cutwork.transforms.checking import COPY, check_given
from cutwork.transforms.exchanging import exchange_layers
from cutwork.transforms.larger import Larger
from cutwork.transforms.place import STEPS, Place, check_steps, share_out


def parallel(
    model: nn.Module,
    density: float,
    *,
    inputs: Any,
    layers: str | Iterable[str] | None = None,
    after: str = "linear",
    pattern: str | Pattern | None = None,
    weights: str = "fresh",
    counting: str = "products",
    seed: int = 0,
) -> Larger:
    """Return a model with several branches in the place of each layer, which are to be as sparse as it says.

    There are one over the density branches, to the nearest number, each with the shape of the layer; their results are
    added. `after` is what follows each branch before that: "linear" nothing, "norm" a batch norm behind convolutions
    and a layer norm behind linear layers, "relu", or "norm+relu". Then the density is solved, one for all branches.

    `layers` are globs over names. Without them all linear layers and 2-d convolutions are exchanged but the first and
    the last, depthwise convolutions, and what cannot be: `skipped` of the result says why of each. The model itself
    stays as it is. `inputs` is what it is called with, as for `wide`; so are `pattern` and `counting`.

    `weights="fresh"` draws from the numbers that the layer has, scaled so that the sum varies as its output did. With
    `weights="copy"`, for "linear" only, every weight goes to one of the branches, tile by tile along diagonals, and the
    others have zero there: the sum is what it was, branches differ, each has some of every row and column, and
    magnitude keeps of each branch just what it was given, so the sparse model too begins with the function of the
    trained one, for single weights and as far as tiles divide evenly.

    >>> model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> print(parallel(model, density=0.5, inputs=torch.rand(1, 20)))
    layer         old shape  new shape  density  FLOPs before  FLOPs after
    0             64x20      64x20        dense         2,560        2,560
    2.branches.0  64x64      64x64          0.5         8,192        4,096
    2.branches.1  64x64      64x64          0.5             0        4,096
    4             10x64      10x64        dense         1,280        1,280
    total                                              12,032       12,032

    Reference: Thangarasa et al., Sparse-IFT, 2024.
    """
    check_given(model, density, weights)
    check_steps("after", after)
    if (number := num_branches(density)) < 2:
        raise ValueError(f"density={density} gives one branch, which is what each layer has; 0.5 gives two")
    if weights == COPY and STEPS[after]:
        raise ValueError(
            f"weights='copy' computes the same only with after='linear'; with {after!r} use weights='fresh'"
        )

    def make(place: Place) -> tuple[Composite, Collection[nn.Module]]:
        parts = _split(place, number) if weights == COPY else _draw(place, number, after)
        biases = _biases(place, number, after)
        built = [place.reading(part, bias) for part, bias in zip(parts, biases, strict=True)]
        scale = _size_of_one(number, is_cut="relu" in STEPS[after])
        branches = [
            nn.Sequential(layer, *place.following(after, len(place.matrix), scale)) if STEPS[after] else layer
            for layer in built
        ]
        return Parallel(branches), built

    return exchange_layers(
        *(model, make),
        inputs=inputs,
        layers=layers,
        pattern=pattern,
        weights=weights,
        counting=counting,
        seed=seed,
    )


def _draw(place: Place, number: int, after: str) -> list[Tensor]:
    is_normed = "norm" in STEPS[after]
    size = place.size * (1 if is_normed else _size_of_one(number, is_cut="relu" in STEPS[after]))
    return [place.draw(f"branches.{at}", place.matrix.shape, size) for at in range(number)]


def _size_of_one(number: int, *, is_cut: bool) -> float:
    """Return the size of one of several independent normal numbers whose sum, of the positive ones, has size 1."""
    if not is_cut:
        return number**-0.5
    # Half the square of each counts, and between two of them the product of their means.
    return (number / 2 + number * (number - 1) / (2 * math.pi)) ** -0.5


def _split(place: Place, number: int) -> list[Tensor]:
    matrix = place.matrix
    owner = share_out(matrix.shape[1], torch.full((len(matrix),), number)).to(matrix.device)
    return [matrix * (owner == at) for at in range(number)]


def _biases(place: Place, number: int, after: str) -> list[Tensor | None]:
    """Return the bias of each branch: a norm has its own, and a sum needs one."""
    if place.bias is None or "norm" in STEPS[after]:
        return [None] * number
    if "relu" in STEPS[after]:
        return [place.bias / number] * number
    return [place.bias, *[None] * (number - 1)]

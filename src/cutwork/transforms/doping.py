"""Sparse-Doped: a sparse layer, and beside it a dense pair of small rank that costs what it saves."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from cutwork.layers.composite import Composite, Doped
from cutwork.patterns import Pattern
from cutwork.transforms.budget import doped_rank
from cutwork.transforms.checking import COPY, check_given
from cutwork.transforms.exchanging import exchange_layers
from cutwork.transforms.factoring import drawn_factors, make_pair, why_not_factorize
from cutwork.transforms.larger import Larger
from cutwork.transforms.place import Place


def doped(
    model: nn.Module,
    density: float,
    *,
    inputs: Any,
    layers: str | Iterable[str] | None = None,
    pattern: str | Pattern | None = None,
    weights: str = "fresh",
    counting: str = "products",
    seed: int = 0,
) -> Larger:
    """Return a model in which each layer is to be as sparse as it says, and has a dense pair of factors beside it.

    The pair costs what the layer saves, so its rank is larger where less is kept; it stays dense. Then the density is
    solved, one for all layers. Convolutions in groups stay as they are; all else, `layers` and `skipped` too, is as in
    `parallel`.

    `weights="fresh"` draws from the numbers that the layer has, scaled so that outputs vary as they did; layer and pair
    have shares in that as in the operations. `weights="copy"` leaves the layer its weight and begins with a pair whose
    second factor is zero, so that a trained model goes on from its function, up to rounding.

    >>> model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> print(doped(model, density=0.25, inputs=torch.rand(1, 20)))
    layer          old shape  new shape  density  FLOPs before  FLOPs after
    0              64x20      64x20        dense         2,560        2,560
    2.sparse       64x64      64x64         0.25         8,192        2,048
    2.pair.first   64x64      24x64        dense             0        3,072
    2.pair.second  64x64      64x24        dense             0        3,072
    4              10x64      10x64        dense         1,280        1,280
    total                                               12,032       12,032

    Reference: Thangarasa et al., Sparse-IFT, 2024.
    """
    check_given(model, density, weights)

    def make(place: Place) -> tuple[Composite, Collection[nn.Module]]:
        outputs, inputs = place.matrix.shape
        if not (rank := doped_rank(inputs, outputs, density)):
            raise ValueError(
                f"{place.name}: at density={density} a pair of rank 1 costs more than a layer of {inputs} inputs and "
                f"{outputs} outputs saves; use a smaller density, or leave it out of layers"
            )
        first, second = drawn_factors(place, rank, "linear", 1 - density)
        if weights == COPY:
            matrix, second = place.matrix, torch.zeros_like(second)
        else:
            matrix = place.draw("sparse", (outputs, inputs), place.size * math.sqrt(density))
        sparse = place.reading(matrix, place.bias)
        return Doped(sparse, make_pair(place, first, second, "linear", None)), [sparse]

    return exchange_layers(
        *(model, make),
        inputs=inputs,
        layers=layers,
        why_not=why_not_factorize,
        pattern=pattern,
        weights=weights,
        counting=counting,
        seed=seed,
    )

"""Sparse-Factorized: two sparse layers, one behind the other, where one dense one stood."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cutwork.layers.composite import Composite, Factorized
from cutwork.patterns import Pattern
from cutwork.transforms.budget import factor_width
from cutwork.transforms.checking import COPY, check_given
from cutwork.transforms.exchanging import exchange_layers
from cutwork.transforms.larger import Larger
from cutwork.transforms.place import STEPS, Place, check_steps, share_out


def factorized(
    model: nn.Module,
    density: float,
    *,
    inputs: Any,
    layers: str | Iterable[str] | None = None,
    between: str = "linear",
    dense_second: bool = False,
    pattern: str | Pattern | None = None,
    weights: str = "fresh",
    counting: str = "products",
    seed: int = 0,
) -> Larger:
    """Return a model with two factors in the place of each layer, which are to be as sparse as it says.

    The first reads what the layer does, with its kernel, into a width at which both, at this density, cost what the
    layer did; the second mixes the channels of that. `between` is "linear", "norm" (a batch norm behind convolutions, a
    layer norm behind linear layers), "relu" or "norm+relu". With `dense_second` the second stays dense, and the width
    is the smaller that goes with it. Then the density is solved, one for all layers. Convolutions in groups stay as
    they are; all else, `layers` and `skipped` too, is as in `parallel`.

    `weights="fresh"` draws from the numbers that the layer has, scaled so that outputs vary as they did.
    `weights="copy"`, for "linear" only, begins with the function of a trained model, up to rounding: where there are at
    least as many units between as outputs, each unit has a share of one output's weights, tile by tile, and the second
    factor adds them up; else, where there are as many as inputs, the first hands the inputs on and the second has the
    shares. At densities up to 1/2 one of the two always holds. `folded_decay` decays the product of the factors, in the
    place of each by itself.

    >>> model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> print(factorized(model, density=0.25, inputs=torch.rand(1, 20)))
    layer     old shape  new shape  density  FLOPs before  FLOPs after
    0         64x20      64x20        dense         2,560        2,560
    2.first   64x64      128x64        0.25         8,192        4,096
    2.second  64x64      64x128        0.25             0        4,096
    4         10x64      10x64        dense         1,280        1,280
    total                                          12,032       12,032

    Reference: Thangarasa et al., Sparse-IFT, 2024.
    """
    check_given(model, density, weights)
    check_steps("between", between)
    if weights == COPY and STEPS[between]:
        raise ValueError(
            f"weights='copy' computes the same only with between='linear'; with {between!r} use weights='fresh'"
        )

    def make(place: Place) -> tuple[Composite, Collection[nn.Module]]:
        outputs, inputs = place.matrix.shape
        width = factor_width(inputs, outputs, density, dense_second=dense_second)
        first, second = copied_factors(place, width) if weights == COPY else drawn_factors(place, width, between)
        pair = make_pair(place, first, second, between, place.bias)
        return pair, [pair.first] if dense_second else [pair.first, pair.second]

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


def why_not_factorize(layer: nn.Module) -> str:
    """Say why no two factors can stand in the place of a layer; empty where they can."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"its {layer.groups} groups share no inputs, and factors would connect them"
    return ""


def make_pair(place: Place, first: Tensor, second: Tensor, between: str, bias: Tensor | None) -> Factorized:
    """Build two factors, and what stands between them."""
    steps = STEPS[between]
    # A norm takes any shift away, and what is linear needs one only.
    shift = first.new_zeros(len(first)) if steps == ("relu",) and bias is not None else None
    following = place.following(between, len(first))
    middle = nn.Sequential(*following) if len(following) > 1 else next(iter(following), nn.Identity())
    return Factorized(place.reading(first, shift), middle, place.mixing(second, bias))


def drawn_factors(place: Place, width: int, between: str, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return factors by chance whose product, or what comes of it, has this share of the layer's mean square."""
    outputs, inputs = place.matrix.shape
    size = place.size
    steps = STEPS[between]
    # A norm forgets the size of the first: then inputs are taken to have size 1.
    gain = (size * math.sqrt(inputs) if "norm" in steps else float(size > 0)) * math.sqrt(2 if "relu" in steps else 1)
    first = place.draw("first", (width, inputs), size or inputs**-0.5)
    return first, place.draw("second", (outputs, width), gain * math.sqrt(share / width))


def copied_factors(place: Place, width: int) -> tuple[Tensor, Tensor]:
    """Return two factors of equal size whose product is the weight of the layer."""
    matrix = place.matrix
    outputs, inputs = matrix.shape
    if width >= outputs:
        first, second = _divide(matrix, width)
    elif width >= inputs:
        second, first = (each.T for each in _divide(matrix.T, width))
    else:
        raise ValueError(
            f"{place.name}: {width} units between {inputs} inputs and {outputs} outputs cannot hold its weight; use a "
            "density of at most 0.5 and a sparse second factor, or weights='fresh'"
        )
    size, other = (float(each.double().norm()) for each in (first, second))
    balance = math.sqrt(other / size) if size else 1.0
    return first * balance, second / balance


def _divide(matrix: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return a matrix of `width` rows that each have a share of one row of the given, and one that adds them up."""
    rows, columns = matrix.shape
    unit = torch.arange(width)
    source, share = unit % rows, unit // rows
    owner = share_out(columns, source.bincount())
    kept = owner[source] == share[:, None]
    adding = (source == torch.arange(rows)[:, None]).to(matrix)
    return matrix[source.to(matrix.device)] * kept.to(matrix.device), adding

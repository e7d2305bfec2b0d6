"""Wide-Factorized: every width grows, and two dense factors stand where layers would have to be sparse."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import nn

from cutwork.evaluation import call_of
from cutwork.layers.attention import disable_fused_paths
from cutwork.layers.swap import Candidate, exchange
from cutwork.patterns import Pattern
from cutwork.transforms.budget import Work, round_to_units, solve_density
from cutwork.transforms.choosing import choose
from cutwork.transforms.comparing import compare
from cutwork.transforms.factoring import drawn_factors, make_pair, why_not_factorize
from cutwork.transforms.larger import Larger, account, fit, weigh
from cutwork.transforms.place import Place, check_steps
from cutwork.transforms.widening import wide


def wide_factorized(
    model: nn.Module,
    density: float,
    *,
    inputs: Any,
    multiple: int = 32,
    between: str = "linear",
    pattern: str | Pattern | None = None,
    counting: str = "products",
    seed: int = 0,
) -> Larger:
    """Return a model widened as by `wide`, in which dense factors of small rank stand for what that leaves sparse.

    Nothing is sparse, so no kernels are needed. One share of the rank at which factors cost what a layer does, rounded
    to whole ranks, meets the budget. What factors cannot stand for, the projections of `nn.MultiheadAttention` and
    convolutions in groups, is to be sparse as in `wide`: `densities` of the result holds these, often none. `between`
    is what stands between factors, as in `factorized`; first weights are fresh.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    >>> print(wide_factorized(model, density=0.1, inputs=torch.rand(1, 20)))
    layer     old shape  new shape  density  FLOPs before  FLOPs after
    0         512x20     1632x20      dense        20,480       65,280
    2.first   512x512    70x1632      dense       524,288      228,480
    2.second  512x512    1632x70      dense             0      228,480
    4         10x512     10x1632      dense        10,240       32,640
    total                                         555,008      554,880

    Where one rank more makes more than 0.1 % of the model, as in small ones, some densities have no such ranks; that is
    an error.

    Reference: the code of Thangarasa et al., Sparse-IFT, 2024.
    """
    check_steps("between", between)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    call = call_of(model, given)
    wider = wide(model, density, inputs=inputs, multiple=multiple, counting=counting, seed=seed)
    larger, found = wider.model, choose(wider.model, call, None, why_not_factorize)
    places = {name: each for name, each in found.layers.items() if name in wider.densities}
    if not places:
        raise ValueError("no layer that becomes wider on both sides can be two factors; use wide()")
    budget = sum(each.cost.dense for each in weigh(model, given, counting).values())
    works = {
        name: each.work(is_sparse=name in wider.densities) for name, each in weigh(larger, given, counting).items()
    }
    origins: dict[str, str] = {}
    for name, rank in _solve_ranks(works, places, budget).items():
        old = larger.get_submodule(name)
        place = Place(name, old, places[name].layout, seed)
        pair = make_pair(place, *drawn_factors(place, rank, between), between, place.bias)
        exchange(larger, old, pair.train(old.training))
        origins |= {f"{name}.{part}": name for part, _ in pair.named_modules()}
    disable_fused_paths(larger)
    compare(model, larger, call, what="larger", is_copy=False)
    sparse = {*wider.densities} - {*places}
    if sparse:
        result = fit(model, larger, *given, sparse=sparse, origins=origins, pattern=pattern, counting=counting)
    else:
        result = account(model, larger, *given, origins=origins, counting=counting)
    return replace(result, skipped=found.skipped)


def _solve_ranks(works: Mapping[str, Work], places: Mapping[str, Candidate], budget: int) -> dict[str, int]:
    """Return the ranks at which factors in these places, and what else is to be sparse, meet the budget."""
    shapes = {name: each.layout.matrix_shape for name, each in places.items()}
    # A rank is to factors what a unit is to a mask, so the same rule rounds both.
    full = {name: outputs * inputs // (outputs + inputs) for name, (outputs, inputs) in shapes.items()}
    paired = dict(works)
    for name, (outputs, inputs) in shapes.items():
        share = Fraction(full[name] * (outputs + inputs), outputs * inputs)
        paired[name] = Work(round(works[name].products * share), works[name].rest)
    sparse = [name for name, work in paired.items() if work.is_sparse]
    densities = dict.fromkeys(sparse, solve_density(paired, budget))
    num_units = {name: full.get(name, max(1, paired[name].products)) for name in sparse}
    kept = round_to_units(paired, densities, num_units, budget)
    ranks = {name: round(kept[name] * full[name]) for name in places}
    prices = {name: Fraction(paired[name].products, full[name]) for name in places}
    left = budget - sum(work.at(kept.get(name, 1.0)) for name, work in paired.items())
    # What is too little for one more rank of one layer may be several of a cheaper one.
    for name in sorted(prices, key=lambda each: prices[each], reverse=True):
        more = max(round(left / prices[name]), 1 - ranks[name])
        ranks[name] += more
        left -= more * prices[name]
    return ranks

"""The sizes at which a larger, sparser layer costs what the dense one did, and the density at which a model does.

Sizes are exact: a density is read as the fraction it was written as, because `1 - 0.9` in floating point would make
some of them one too large. A linear layer has `inputs` and `outputs`; a k x k convolution k * k times its channels as
`inputs`, and its channels as `outputs`.

Reference: Thangarasa et al., Sparse-IFT, 2024.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from cutwork.patterns.density import check_density
from cutwork.text import label

MOST_DENOMINATOR = 1_000_000
# How far the operations of a larger model may lie from those of the dense one, as a share of these.
TOLERANCE = Fraction(1, 1000)


class Work(NamedTuple):
    """The operations of one layer with its weight whole: those that a mask saves its share of, and the rest."""

    products: int
    rest: int = 0
    is_sparse: bool = True

    def at(self, density: float) -> int:
        """Return the operations at a density, rounded to the nearest.

        >>> Work(products=1000, rest=10).at(0.25)
        260
        """
        return round(self.products * Fraction(density)) + self.rest


def wide_width(width: int, density: float) -> int:
    """Return the width at which a layer, widened on both sides, costs the same at this density; rounded down.

    >>> [wide_width(64, density) for density in (0.5, 0.25, 0.2, 0.1, 0.05, 0.01)]
    [90, 128, 143, 202, 286, 640]
    """
    kept = _exact(density)
    return math.isqrt(width * width * kept.denominator // kept.numerator)


def num_branches(density: float) -> int:
    """Return how many parallel layers of this density cost what one dense layer does; the nearest number.

    >>> num_branches(0.25)
    4
    """
    return math.floor(1 / _exact(density) + Fraction(1, 2))


def factor_width(inputs: int, outputs: int, density: float, *, dense_second: bool = False) -> int:
    """Return the width between two factors that cost, both at this density, what the layer did; rounded up.

    With `dense_second` only the first is at this density.

    >>> factor_width(9 * 64, 64, density=0.5), factor_width(9 * 64, 64, density=0.1)
    (116, 576)
    >>> factor_width(9 * 64, 64, density=0.5, dense_second=True)
    105
    """
    kept = _exact(density)
    return math.ceil(inputs * outputs / (kept * inputs + (1 if dense_second else kept) * outputs))


def doped_rank(inputs: int, outputs: int, density: float) -> int:
    """Return the rank of the dense pair that costs what a layer saves at this density; rounded down.

    >>> doped_rank(9 * 64, 64, density=0.5)
    28
    """
    return math.floor((1 - _exact(density)) * Fraction(inputs * outputs, inputs + outputs))


def solve_density(works: Mapping[str, Work], budget: int) -> float:
    """Return the one density of all sparse layers at which the whole costs the budget; raise ValueError if none does.

    >>> solve_density({"stem": Work(100, is_sparse=False), "body": Work(1600)}, budget=500)
    0.25
    """
    products = sum(work.products for work in works.values() if work.is_sparse)
    fixed = sum(work.rest + (0 if work.is_sparse else work.products) for work in works.values())
    if not products:
        raise ValueError("no layer of the larger model is to be sparse, so nothing can pay for its size")
    if fixed >= budget:
        dense = {name: work.at(0.0 if work.is_sparse else 1.0) for name, work in works.items()}
        most = max(dense, key=lambda name: dense[name])
        raise ValueError(
            f"what stays dense in the larger model needs {fixed:,} operations, of which {label(most)} {dense[most]:,}, "
            f"all of the dense one {budget:,}; a larger density makes it smaller"
        )
    density = Fraction(budget - fixed, products)
    if fixed + products < budget * (1 - TOLERANCE):
        raise ValueError(
            f"even with every weight the larger model needs {fixed + products:,} operations, the dense one {budget:,}; "
            "a smaller density, or a smaller multiple, makes it larger"
        )
    return float(min(density, Fraction(1)))


def round_to_units(
    works: Mapping[str, Work], densities: Mapping[str, float], num_units: Mapping[str, int], budget: int
) -> dict[str, float]:
    """Return densities that keep whole units of each layer, such that the whole stays closest to the budget.

    All are rounded down, to one unit at least; then those that lost most get one back, as far as the budget goes. Where
    single units cost more than there is, layers of many units keep fewer.

    >>> works = {"a": Work(1000), "b": Work(1000)}
    >>> round_to_units(works, {"a": 0.35, "b": 0.35}, {"a": 10, "b": 10}, budget=700)
    {'a': 0.4, 'b': 0.3}
    """
    exact = {name: Fraction(density) * num_units[name] for name, density in densities.items()}
    kept = {name: max(1, math.floor(units)) for name, units in exact.items()}
    price = {name: Fraction(works[name].products, num_units[name]) for name in densities}
    left = budget - sum(
        work.rest + (kept[name] * price[name] if work.is_sparse else work.products) for name, work in works.items()
    )
    for name in sorted(kept, key=lambda each: kept[each] - exact[each]):
        # Half a unit too much is as near as half a unit too little.
        if kept[name] < num_units[name] and price[name] <= 2 * left:
            kept[name] += 1
            left -= price[name]
    # What the one unit of small layers costs too much, those with the most units give.
    for name in sorted(kept, key=lambda each: num_units[each], reverse=True):
        fewer = min(kept[name] - 1, max(0, round(-left / price[name])))
        kept[name] -= fewer
        left += fewer * price[name]
    return {name: kept[name] / num_units[name] for name in densities}


def check_spent(
    works: Mapping[str, Work], densities: Mapping[str, float], budget: int, advice: str = "smaller tiles come closer"
) -> None:
    """Raise ValueError where the operations at these densities are more than 0.1 % off the budget."""
    spent = sum(work.at(densities.get(name, 1.0)) for name, work in works.items())
    if abs(spent - budget) > TOLERANCE * budget:
        raise ValueError(
            f"at these densities the larger model needs {spent:,} operations, {float(spent / budget - 1):+.2%} off the "
            f"{budget:,} of the dense one; {advice}"
        )


def _exact(density: float) -> Fraction:
    return Fraction(check_density(density)).limit_denominator(MOST_DENOMINATOR)

"""The sizes at which a larger, sparser layer costs what the dense one did.

Sizes are exact: a density is read as the fraction it was written as, because `1 - 0.9` in floating point would make
some of them one too large. A linear layer has `inputs` and `outputs`; a k x k convolution k * k times its channels as
`inputs`, and its channels as `outputs`.

Reference: Thangarasa et al., Sparse-IFT, 2024.
"""

import math
from fractions import Fraction

from cutwork.patterns.density import check_density

MOST_DENOMINATOR = 1_000_000


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


def factor_width(inputs: int, outputs: int, density: float) -> int:
    """Return the width between two factors that cost, both at this density, what the layer did; rounded up.

    >>> factor_width(9 * 64, 64, density=0.5), factor_width(9 * 64, 64, density=0.1)
    (116, 576)
    """
    return math.ceil(Fraction(inputs * outputs, inputs + outputs) / _exact(density))


def doped_rank(inputs: int, outputs: int, density: float) -> int:
    """Return the rank of the dense pair that costs what a layer saves at this density; rounded down.

    >>> doped_rank(9 * 64, 64, density=0.5)
    28
    """
    return math.floor((1 - _exact(density)) * Fraction(inputs * outputs, inputs + outputs))


def _exact(density: float) -> Fraction:
    return Fraction(check_density(density)).limit_denominator(MOST_DENOMINATOR)

"""How much of each layer is kept, so that the whole comes out at one density."""

import math
from collections.abc import Callable, Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]
Allocation = Callable[[Shapes, float], dict[str, float]]

PLUS_FLOOR = 0.2
# A share this little above 1 counts as 1: made dense like a larger one, it might leave nobody to take the rest.
ROUNDING = 1e-9


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """Give every layer the same density.

    >>> uniform({"a": (10, 10), "b": (100, 100)}, density=0.3)
    {'a': 0.3, 'b': 0.3}
    """
    return _share(shapes, density, dict.fromkeys(shapes, 1.0))


def er(shapes: Shapes, density: float) -> dict[str, float]:
    """Give each layer a density in proportion to (out + in) / (out * in); kernel sizes do not count.

    A layer whose share passes 1 is made dense and the rest is shared out anew.

    Reference: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, 2018.
    """
    return _share(shapes, density, {name: sum(shape[:2]) / math.prod(shape[:2]) for name, shape in shapes.items()})


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Give each layer a density in proportion to the sum of its dimensions over their product, kernel sizes included.

    A layer whose share passes 1 is made dense and the rest is shared out anew.

    >>> erk({"a": (10, 10), "b": (100, 100)}, density=0.3)["a"]
    1.0

    Reference: Evci et al., Rigging the lottery, 2020.
    """
    return _share(shapes, density, {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()})


def uniform_plus(shapes: Shapes, density: float) -> dict[str, float]:
    """Share out as `uniform`, but keep at least a fifth of the last layer; the others make up for it.

    >>> uniform_plus({"a": (30, 10), "head": (10, 10)}, density=0.1)["head"]
    0.2
    """
    return _with_floor(uniform, shapes, density)


def er_plus(shapes: Shapes, density: float) -> dict[str, float]:
    """Share out as `er`, but keep at least a fifth of the last layer; the others make up for it."""
    return _with_floor(er, shapes, density)


def erk_plus(shapes: Shapes, density: float) -> dict[str, float]:
    """Share out as `erk`, but keep at least a fifth of the last layer; the others make up for it."""
    return _with_floor(erk, shapes, density)


ALLOCATIONS: dict[str, Allocation] = {
    "uniform": uniform,
    "er": er,
    "erk": erk,
    "uniform+": uniform_plus,
    "er+": er_plus,
    "erk+": erk_plus,
}


def _share(shapes: Shapes, density: float, weights: dict[str, float]) -> dict[str, float]:
    """Return densities in proportion to `weights`, at most 1, whose entries add up to `density` of the whole."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = budget / sum(weights[name] * sizes[name] for name in shapes if name not in dense)
        over = {name for name in shapes if name not in dense and scale * weights[name] > 1 + ROUNDING}
        if not over:
            return {name: 1.0 if name in dense else min(1.0, scale * weights[name]) for name in shapes}
        dense |= over


def _with_floor(allocation: Allocation, shapes: Shapes, density: float) -> dict[str, float]:
    densities = allocation(shapes, density)
    last = list(shapes)[-1]
    if densities[last] >= PLUS_FLOOR:
        return densities
    others = {name: shape for name, shape in shapes.items() if name != last}
    total, size = sum(math.prod(shape) for shape in shapes.values()), math.prod(shapes[last])
    left = density * total - PLUS_FLOOR * size
    if left <= 0:
        raise ValueError(
            f"density {density} is too small to keep {PLUS_FLOOR} of the last layer {last!r}, which holds "
            f"{size} of {total} weights; use the allocation without '+'"
        )
    return {**allocation(others, left / (total - size)), last: PLUS_FLOOR}

"""Sparse-Wide: every width of a model grows, and what its layers keep shrinks by as much."""

from typing import Any

from torch import nn

from cutwork.evaluation import call_of
from cutwork.layers.sparse_class import why_not_sparsify
from cutwork.layers.swap import can_swap, candidates
from cutwork.patterns import Pattern
from cutwork.transforms.checking import COPY, check_given
from cutwork.transforms.comparing import compare
from cutwork.transforms.filling import fill
from cutwork.transforms.growth import find_growth
from cutwork.transforms.larger import Larger, fit
from cutwork.transforms.resizing import resize
from cutwork.transforms.sizes import Sizes, trace_sizes

WHY_FAILS = ", so some size is tied in a way that cannot be seen"
WHY_DIFFERS = (
    ": norms other than batch norm need a whole factor, which a density such as 0.25 has, and channels must not be "
    "shuffled"
)


def wide(
    model: nn.Module,
    density: float,
    *,
    inputs: Any,
    multiple: int = 32,
    pattern: str | Pattern | None = None,
    weights: str = "fresh",
    counting: str = "products",
    seed: int = 0,
) -> Larger:
    """Return a wider model that, made as sparse as it says, needs the operations of this one; this one stays as it is.

    Every width grows by the square root of one over the density, rounded to a multiple, or to half of that and so on
    where the width is small; numbers of heads grow, their size stays. Then the density is solved anew, one for all
    layers that grow on both sides. The first layer and the last, whose other side meets the outside, grow on one side
    and stay dense, as do depthwise convolutions; the budget counts that. `inputs` is what the model is called with, a
    tensor or a tuple, with a mapping at the end for what it takes by name. They show which sizes belong together, and
    what a pass costs. What a module computed from its sizes when it was built, such as a scale, stays as it was.

    With a `pattern` densities come in whole units of it. `weights="fresh"` draws first weights from the numbers that
    each layer has; `weights="copy"` repeats channels and divides where they are summed, so that a trained model goes on
    from the function it has. That is exact, up to rounding, where the factor of the widths is whole, at densities such
    as 1/4 and 1/9, and with batch norm at others too; otherwise it is refused.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> larger = wide(model, density=0.25, inputs=torch.rand(1, 20))
    >>> print(larger)
    layer  old shape  new shape  density  FLOPs before  FLOPs after
    0      64x20      128x20       dense         2,560        5,120
    2      64x64      128x128     0.1328         8,192        4,352
    4      10x64      10x128       dense         1,280        2,560
    total                                       12,032       12,032

    Reference: Thangarasa et al., Sparse-IFT, 2024.
    """
    check_given(model, density, weights)
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"multiple={multiple!r} is no whole number above 0; 32 suits blocks, 1 rounds to whole widths")
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    call = call_of(model, given)
    sizes = trace_sizes(model, call)
    growth = find_growth(sizes, float(density) ** -0.5, multiple)
    tensors = fill(model, sizes, growth, weights=weights, seed=seed)
    larger = resize(model, sizes, growth, tensors)
    is_copy = weights == COPY
    compare(model, larger, call, what="wider", is_copy=is_copy, why_fails=WHY_FAILS, why_differs=WHY_DIFFERS)
    sparse = _find_sparse(model, larger, sizes)
    try:
        return fit(model, larger, *given, sparse=sparse, pattern=pattern, counting=counting)
    except ValueError as error:
        raise ValueError(f"{error}{_say_what_stays_dense(larger, sparse)}") from error


def _find_sparse(model: nn.Module, larger: nn.Module, sizes: Sizes) -> set[str]:
    """Return the layers that are to be sparse: those wider on both sides, and on one if that lies inside the model."""
    old, new = candidates(model), candidates(larger)
    sides: dict[str, int] = {}
    for name, each in old.items():
        before, after = each.layout.channels, new[name].layout.channels
        if can_swap(each.kind) and not each.obstacle and min(after) > 1 and before != after:
            sides[name] = sum(a != b for a, b in zip(before, after, strict=True))
    runs = {name: old[name].attention or name for name in sides}
    for name, run in runs.items():
        if run not in sizes.called | sizes.called_in_training:
            raise ValueError(
                f"{name} is not called: other code reads its weight, so a mask there would do nothing; change that "
                "code to call the layer"
            )
    sides = {name: number for name, number in sides.items() if runs[name] in sizes.called}
    both = [name for name, number in sides.items() if number == 2]
    is_stem = {name for name in sides if runs[name] in sizes.stems}
    if not both:
        return {*sides} - is_stem
    order = list(sides)
    return {name for name in order[: order.index(both[-1]) + 1] if name not in is_stem}


def _say_what_stays_dense(larger: nn.Module, sparse: set[str]) -> str:
    reasons = {
        name: each.obstacle or why_not_sparsify(each.kind)
        for name, each in candidates(larger).items()
        if name not in sparse
    }
    first = next((name for name, reason in reasons.items() if reason), None)
    return "" if first is None else f"; {first} stays dense because {reasons[first]}"

"""How much of each chosen layer is kept: one density for all, or one for each."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from numbers import Real

import torch
from torch import Tensor

from cutwork.patterns import Pattern
from cutwork.patterns.density import check_density
from cutwork.sparsity.layout import Layout
from cutwork.text import label
from cutwork.training.allocation import Allocation, Shapes, uniform
from cutwork.training.selection import Choice, leave_out

Amounts = float | Mapping[str, float]
# One unit is always kept; of fewer than half a unit asked for, that would be more than twice as much.
LEAST_UNITS = 0.5


def give_densities(
    choices: Mapping[str, Choice],
    amounts: Amounts | None,
    *,
    allocation: Allocation,
    skipped: dict[str, str] | None = None,
) -> dict[str, Choice]:
    """Return the choices at the densities asked for, without those whose units are too large for that.

    These are an error unless `skipped` is given; then they are entered there with the reason.
    """
    while True:
        densities = _share_out(choices, amounts, allocation, skipped or ())
        choices = {name: replace(choice, density=densities[name]) for name, choice in choices.items()}
        coarse = {
            each: reason
            for choice in choices.values()
            if (reason := why_not_give(choice.pattern, choice.layout, choice.density))
            for each in choice.names
        }
        if not coarse:
            return choices
        # The others share out the density anew.
        choices = leave_out(choices, coarse, skipped)


def give_densities_of(choices: Mapping[str, Choice], masks: Mapping[str, Tensor]) -> dict[str, Choice]:
    """Return the choices at the densities of their masks; exactly these layers must have one."""
    if missing := sorted(set(choices) ^ set(masks)):
        raise ValueError(f"masks and patterns must name the same layers; they differ in {', '.join(missing[:8])}")
    return {name: _at_density_of(choice, masks[name]) for name, choice in choices.items()}


def as_density(density: Amounts | None, sparsity: Amounts | None) -> Amounts | None:
    """Return the density meant by exactly one of the two, or None where neither is given."""
    if density is not None and sparsity is not None:
        raise ValueError(f"density={density} and sparsity={sparsity} say the same thing twice; give one of them")
    if sparsity is None:
        return density
    if isinstance(sparsity, Mapping):
        return {glob: _to_density(amount) for glob, amount in sparsity.items()}
    return _to_density(sparsity)


def why_not_give(pattern: Pattern, layout: Layout, density: float) -> str:
    """Say why a pattern cannot give a weight this density, and what to do; empty where it can."""
    num_units = pattern.num_units(layout.matrix_shape)
    if pattern.density is not None or density * num_units >= LEAST_UNITS:
        return ""
    return (
        f"{pattern} cuts its {'x'.join(map(str, layout.shape))} weight into {num_units} unit{'s' * (num_units > 1)}, "
        f"too coarse to keep {density:.4g} of it; use smaller tiles, a larger density"
    )


def _at_density_of(choice: Choice, mask: Tensor) -> Choice:
    name, shape = label(choice.candidate.name), choice.layout.shape
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(
            f"{name}: a mask is a bool tensor shaped like the weight, {shape}; got {mask.dtype}, {tuple(mask.shape)}"
        )
    matrix = choice.layout.to_matrix(mask)
    if not choice.pattern.allows(matrix):
        raise ValueError(f"{name}: the mask is not legal for {choice.pattern}; give a pattern that allows it")
    if not mask.any():
        raise ValueError(f"{name}: the mask keeps none of its weight {shape}; keep some of it, or leave the layer out")
    return replace(choice, density=choice.pattern.density or float(matrix.float().mean()))


def _share_out(
    choices: Mapping[str, Choice], amounts: Amounts | None, allocation: Allocation, skipped: Iterable[str]
) -> dict[str, float]:
    fixed = {name: choice.density for name, choice in choices.items() if choice.pattern.density is not None}
    shapes = {name: choice.layout.shape for name, choice in choices.items() if name not in fixed}
    if isinstance(amounts, Mapping):
        if shapes and allocation is not uniform:
            raise ValueError(
                f"density={dict(amounts)} says itself how much each layer keeps, so the allocation would go unread; "
                "give one number to share out, or leave the allocation out"
            )
        asked = _by_glob(choices, amounts, skipped)
        _check_fixed(choices, {name: asked[name] for name in fixed if name in asked})
        if missing := [label(name) for name in shapes if name not in asked]:
            raise ValueError(f"none of the globs {list(amounts)} gives an amount to {', '.join(missing)}; add one")
        return asked | fixed
    amount = None if amounts is None else _read_amount(amounts)
    if not shapes:
        _check_fixed(choices, {} if amount is None else dict.fromkeys(fixed, amount))
        return fixed
    if amount is None:
        raise ValueError(
            f"{choices[next(iter(shapes))].pattern} needs density=... or sparsity=...; 2:4 and its like need none"
        )
    return _by_allocation(shapes, amount, allocation) | fixed


def _check_fixed(choices: Mapping[str, Choice], asked: Mapping[str, float]) -> None:
    """Refuse an amount for a layer whose pattern fixes another one itself."""
    for name, amount in asked.items():
        choice = choices[name]
        if not math.isclose(amount, choice.density):
            raise ValueError(
                f"{label(name)}: {choice.pattern} fixes the density at {choice.density:g}; got density={amount:g} for "
                "it; leave that out"
            )


def _by_allocation(shapes: Shapes, density: float, allocation: Allocation) -> dict[str, float]:
    densities = allocation(shapes, density)
    if not isinstance(densities, Mapping):
        raise TypeError(
            f"an allocation returns a mapping from layer names to densities; got {densities!r} "
            f"({type(densities).__name__})"
        )
    for name in shapes:
        if name not in densities:
            raise ValueError(
                f"{label(name)}: the allocation gives it no density, only {', '.join(densities) or 'nothing at all'}; "
                "return one for each name in shapes"
            )
    return {name: check_density(densities[name], f"{label(name)}: the allocation's density") for name in shapes}


def _by_glob(choices: Iterable[str], amounts: Mapping[str, float], skipped: Iterable[str]) -> dict[str, float]:
    densities: dict[str, float] = {}
    for glob, amount in amounts.items():
        names = [name for name in choices if fnmatchcase(name, glob)]
        if not names and not any(fnmatchcase(name, glob) for name in skipped):
            raise ValueError(
                f"an amount is given for {glob!r}, which matches no chosen layer; the chosen ones are "
                f"{', '.join(map(label, choices))}"
            )
        densities.update(dict.fromkeys(names, _read_amount(amount)))
    return densities


def _read_amount(density: float) -> float:
    if not isinstance(density, Real):
        raise TypeError(_not_a_number("density", density, 0.1))
    return check_density(density)


def _to_density(sparsity: float) -> float:
    if not isinstance(sparsity, Real):
        raise TypeError(_not_a_number("sparsity", sparsity, 0.9))
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} is outside [0, 1); 0.9 keeps a tenth of the weights")
    return 1 - float(sparsity)


def _not_a_number(what: str, given: object, example: float) -> str:
    return (
        f"{what} is a number, or a mapping from globs to numbers; got {given!r} ({type(given).__name__}); "
        f"write {what}={example}"
    )

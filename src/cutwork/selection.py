"""Which layers of a model become sparse, in which pattern and how much of each is kept; and making them so."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import cast, final

import torch
from torch import Tensor, nn

from cutwork.allocation import Allocation, uniform
from cutwork.layers.swap import (
    Candidate,
    SparseLayer,
    can_swap,
    candidates,
    is_conv1d_class,
    make_sparse,
    open_attentions,
    sparse_layers,
    weight_of,
)
from cutwork.matrix import matrix_shape, to_matrix
from cutwork.methods import Method, View, generator_for
from cutwork.patterns import Pattern, parse
from cutwork.scores import Score
from cutwork.sparsity import Sparsity

DENSE = "dense"
Patterns = str | Pattern | Mapping[str, str | Pattern]
Amounts = float | Mapping[str, float]


@final
@dataclass(frozen=True)
class Choice:
    """What is to become of one layer, and of those that share its weight."""

    candidate: Candidate
    pattern: Pattern
    density: float
    tied: tuple[str, ...] = ()

    @property
    def transposed(self) -> bool:
        """Say whether the weight is stored `[in, out]`."""
        return is_conv1d_class(self.candidate.kind)


def choose_layers(
    model: nn.Module, patterns: Patterns, *, density: Amounts | None, allocation: Allocation
) -> dict[str, Choice]:
    """Return what is to become of each chosen layer, by name; raise ValueError where that cannot be done in full."""
    found = candidates(model)
    wanted = _match_patterns(model, found, patterns)
    tied = _tied_names(model, found, wanted)
    first = {name: wanted[name] for name in wanted if name not in {other for rest in tied.values() for other in rest}}
    for name, pattern in first.items():
        _check_layer(model, found[name], pattern)
    densities = _densities(found, first, density, allocation)
    return {name: Choice(found[name], first[name], densities[name], tied.get(name, ())) for name in first}


def choose_masked(model: nn.Module, patterns: Patterns, masks: Mapping[str, Tensor]) -> dict[str, Choice]:
    """Return the choice of exactly the layers that have masks, at the density of these."""
    choices = choose_layers(model, patterns, density=1.0, allocation=uniform)
    if missing := sorted(set(choices) ^ set(masks)):
        raise ValueError(f"masks and patterns must name the same layers; they differ in {', '.join(missing[:8])}")
    return {name: _at_density_of(choice, masks[name]) for name, choice in choices.items()}


def install(
    model: nn.Module,
    choices: Mapping[str, Choice],
    method: Method,
    *,
    init: Score,
    masks: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, SparseLayer]:
    """Make the chosen layers sparse, in place, and return them; all that can fail comes before the first change."""
    views = {name: _first_view(model, choice, seed, name == list(choices)[-1]) for name, choice in choices.items()}
    if masks is None:
        matrices = {name: method.start(view, init) for name, view in views.items()}
    else:
        matrices = {name: to_matrix(masks[name], transposed=choice.transposed) for name, choice in choices.items()}
    open_attentions(model, (choice.candidate for choice in choices.values()))
    sparsities: dict[str, Sparsity] = {}
    for name, choice in choices.items():
        weight = cast(nn.Parameter, model.get_submodule(name).weight)
        held = method.hold(matrices[name], weight, view=views[name], transposed=choice.transposed)
        sparsities |= dict.fromkeys((name, *choice.tied), held)
    make_sparse(model, sparsities)
    layers = {name: cast(SparseLayer, model.get_submodule(name)) for name in choices}
    with torch.no_grad():
        for layer in layers.values():
            layer.sparsity.settle(layer.weight)
    return layers


def one_amount(density: Amounts | None, sparsity: Amounts | None) -> Amounts | None:
    """Return the density meant by exactly one of the two, or None where neither is given."""
    if density is not None and sparsity is not None:
        raise ValueError(f"density={density} and sparsity={sparsity} say the same thing twice; give one of them")
    if sparsity is None:
        return density
    if isinstance(sparsity, Mapping):
        return {glob: 1 - amount for glob, amount in sparsity.items()}
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} is outside [0, 1); 0.9 keeps a tenth of the weights")
    return 1 - sparsity


def _first_view(model: nn.Module, choice: Choice, seed: int, is_last: bool) -> View:
    weight = to_matrix(weight_of(model, choice.candidate).detach(), transposed=choice.transposed)
    return View(
        pattern=choice.pattern,
        density=choice.density,
        weight=weight,
        mask=torch.ones_like(weight, dtype=torch.bool),
        grad=None,
        learned=None,
        step=0,
        generator=generator_for(seed, 0, choice.candidate.name),
        is_last=is_last,
    )


def _at_density_of(choice: Choice, mask: Tensor) -> Choice:
    name, shape = choice.candidate.name, choice.candidate.shape
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(
            f"{name}: a mask is a bool tensor shaped like the weight, {shape}; got {mask.dtype}, {tuple(mask.shape)}"
        )
    matrix = to_matrix(mask, transposed=choice.transposed)
    if not choice.pattern.allows(matrix):
        raise ValueError(f"{name}: the mask is not legal for {choice.pattern}; give a pattern that allows it")
    return replace(choice, density=choice.pattern.density or float(matrix.float().mean()))


def _match_patterns(model: nn.Module, found: Mapping[str, Candidate], patterns: Patterns) -> dict[str, Pattern]:
    rules = patterns if isinstance(patterns, Mapping) else {"*": patterns}
    wanted: dict[str, Pattern] = {}
    for glob, text in rules.items():
        names = [name for name in found if fnmatchcase(name, glob)]
        if not names:
            raise ValueError(_nothing_matches(model, found, glob))
        for name in names:
            if text == DENSE:
                wanted.pop(name, None)
            else:
                wanted[name] = parse(text)
    if not wanted:
        raise ValueError(f"{dict(rules)} leaves every layer dense; give at least one of them a pattern")
    return {name: wanted[name] for name in found if name in wanted}


def _nothing_matches(model: nn.Module, found: Mapping[str, Candidate], glob: str) -> str:
    if any(fnmatchcase(name, glob) for name in sparse_layers(model)):
        return f"{glob!r} matches only layers that are sparse already; bake() them first to choose anew"
    others = {type(module).__name__ for name, module in model.named_modules() if fnmatchcase(name, glob)}
    if others:
        return f"{glob!r} matches only {', '.join(sorted(others))}; linear layers and 2-d convolutions can be sparse"
    names = ", ".join(repr(name) for name in list(found)[:8]) + (", ..." if len(found) > 8 else "")
    return f"no layer matches {glob!r}; the layers that can be sparse are {names or 'none at all in this model'}"


def _tied_names(
    model: nn.Module, found: Mapping[str, Candidate], wanted: Mapping[str, Pattern]
) -> dict[str, tuple[str, ...]]:
    """Return, for the first of several layers that share one weight, the names of the others."""
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}
    tied: dict[str, tuple[str, ...]] = {}
    for name in wanted:
        if found[name].attention is not None:
            continue
        weight = model.get_submodule(name).weight
        modules = [path.rpartition(".")[0] for path in owners[id(weight)]]
        sharers = list(dict.fromkeys(names[id(model.get_submodule(module))] for module in modules))
        for other in sharers:
            if other not in wanted:
                kind = type(model.get_submodule(other)).__name__
                both = "make both sparse, or " if other in found else ""
                raise ValueError(
                    f"{name} shares its weight with {other} ({kind}), which would stay dense; {both}"
                    f"leave {name} out with {{{name!r}: 'dense'}}"
                )
            if wanted[other] != wanted[name] or found[other].kind is not found[name].kind:
                raise ValueError(f"{name} and {other} share one weight; give both the same pattern")
        if sharers[0] == name and len(sharers) > 1:
            tied[name] = tuple(sharers[1:])
    return tied


def _check_layer(model: nn.Module, candidate: Candidate, pattern: Pattern) -> None:
    name, kind = candidate.name or "(the model itself)", candidate.kind
    if not can_swap(kind):
        raise ValueError(
            f"{name} is a {kind.__module__}.{kind.__qualname__}, a subclass that may compute something else; leave it "
            f"out with {{{candidate.name!r}: 'dense'}}, or replace it by a plain layer"
        )
    if candidate.device_type == "meta":
        raise ValueError(f"{name} is on the meta device and has no weights yet; materialise the model, then sparsify")
    try:
        pattern.check(matrix_shape(candidate.shape, transposed=is_conv1d_class(kind)))
    except ValueError as error:
        raise ValueError(f"{name}: {error}, or {{{candidate.name!r}: 'dense'}} to leave it out") from None


def _densities(
    found: Mapping[str, Candidate],
    wanted: Mapping[str, Pattern],
    amounts: Amounts | None,
    allocation: Allocation,
) -> dict[str, float]:
    fixed = {name: pattern.density for name, pattern in wanted.items() if pattern.density is not None}
    shapes = {name: found[name].shape for name in wanted if name not in fixed}
    if not shapes and isinstance(amounts, float | int) and any(amounts != density for density in fixed.values()):
        pattern = wanted[next(name for name, density in fixed.items() if density != amounts)]
        raise ValueError(f"{pattern} fixes the density at {pattern.density:g}; got density={amounts:g}, leave it out")
    if not shapes:
        return fixed
    if amounts is None:
        raise ValueError(f"{wanted[next(iter(shapes))]} needs density=... or sparsity=...; 2:4 and its like need none")
    shared = _by_glob(shapes, amounts) if isinstance(amounts, Mapping) else allocation(shapes, _checked(amounts))
    return {name: fixed[name] if name in fixed else shared[name] for name in wanted}


def _by_glob(shapes: Mapping[str, object], amounts: Mapping[str, float]) -> dict[str, float]:
    densities: dict[str, float] = {}
    for glob, amount in amounts.items():
        names = [name for name in shapes if fnmatchcase(name, glob)]
        if not names:
            raise ValueError(f"density: no chosen layer matches {glob!r}; the layers are {', '.join(shapes)}")
        densities.update(dict.fromkeys(names, _checked(amount)))
    if missing := [name for name in shapes if name not in densities]:
        raise ValueError(f"density: no glob of {list(amounts)} gives one to {', '.join(missing)}")
    return densities


def _checked(density: float) -> float:
    if not 0 < density <= 1:
        raise ValueError(f"density={density} is outside (0, 1]; 0.1 keeps a tenth of the weights")
    return density

"""Which layers of a model become sparse, in which pattern and how much of each is kept; and making them so."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, cast, final

import torch
from torch import Generator, Tensor, nn

from cutwork.layers.attention import disable_fused_paths
from cutwork.layers.compressed import why_no_storage
from cutwork.layers.initialised import initialised, take_over, why_not_initialised
from cutwork.layers.sparse_class import is_conv1d_class, why_not_sparse
from cutwork.layers.storage import store, to_index
from cutwork.layers.swap import (
    Candidate,
    SparseLayer,
    candidates,
    make_sparse,
    open_attentions,
    sparse_layers,
    weight_of,
)
from cutwork.methods import Method, View, generator_for
from cutwork.methods.scores import Score
from cutwork.patterns import Pattern, parse
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.compressed import FixedIndex
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.matrix import matrix_shape, to_matrix
from cutwork.text import label
from cutwork.training.allocation import Allocation, Shapes, uniform

DENSE = "dense"
Patterns = str | Pattern | Mapping[str, str | Pattern]
Amounts = float | Mapping[str, float]
# One unit is always kept; of fewer than half a unit asked for, that would be more than twice as much.
LEAST_UNITS = 0.5

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Choice:
    """What is to become of one layer, and of those that share its weight."""

    candidate: Candidate
    pattern: Pattern
    density: float
    tied: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all that it is the choice for."""
        return self.candidate.name, *self.tied

    @property
    def transposed(self) -> bool:
        """Say whether the weight is stored `[in, out]`."""
        return is_conv1d_class(self.candidate.kind)


def choose_layers(
    model: nn.Module,
    patterns: Patterns,
    *,
    density: Amounts | None,
    allocation: Allocation,
    skipped: dict[str, str] | None = None,
    device: torch.device | None = None,
) -> dict[str, Choice]:
    """Return what is to become of each chosen layer, by name; raise ValueError where that cannot be done in full.

    If `skipped` is given, layers that cannot be sparse are left out, and entered there with the reason. On `device`
    layers that are on the meta device will get their numbers.
    """
    choices = match_layers(model, patterns, skipped, device)
    while True:
        densities = _densities(choices, density, allocation, skipped or ())
        choices = {name: replace(choice, density=densities[name]) for name, choice in choices.items()}
        coarse = {name: reason for name, choice in choices.items() if (reason := _too_coarse(choice))}
        if not coarse:
            return choices
        # The others share out the density anew.
        choices = _without(choices, {each: coarse[name] for name in coarse for each in choices[name].names}, skipped)


def match_layers(
    model: nn.Module,
    patterns: Patterns,
    skipped: dict[str, str] | None = None,
    device: torch.device | None = None,
) -> dict[str, Choice]:
    """Return the chosen layers by name, each as dense as its pattern allows; the rest is as in `choose_layers`."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model must be an nn.Module; got {type(model).__name__}; write sparsify(model, patterns, ...)"
        )
    found = candidates(model)
    wanted = _match_patterns(model, found, patterns)
    objections = {
        name: reason for name, pattern in wanted.items() if (reason := _objection(found[name], pattern, device))
    }
    wanted = _without(wanted, objections, skipped)
    sharers = _sharers(model, found, wanted)
    while divided := _divided(model, found, wanted, sharers):
        wanted = _without(wanted, divided, skipped)
    return {
        name: Choice(found[name], pattern, pattern.density or 1.0, sharers[name][1:])
        for name, pattern in wanted.items()
        if sharers[name][0] == name
    }


def choose_masked(
    model: nn.Module,
    patterns: Patterns,
    masks: Mapping[str, Tensor],
    skipped: dict[str, str] | None = None,
    device: torch.device | None = None,
) -> dict[str, Choice]:
    """Return the choice of exactly the layers that have masks, at the density of these."""
    choices = match_layers(model, patterns, skipped, device)
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
    is_compressed: bool = False,
    device: torch.device | None = None,
) -> dict[str, SparseLayer]:
    """Make the chosen layers sparse, in place, and return them; all that can fail comes before the first change.

    One layer after the other is looked at, and then changed, so that memory for one of them is enough. Those on the
    meta device are initialised on `device`, and compressed at once.
    """
    chances = {name: generator_for(seed, 0, name) for name in choices}
    beginning = _Beginning(choices, method, init, masks, chances)
    if is_compressed:
        _compress(model, beginning, device)
    else:
        _mask(model, beginning)
    layers = {name: cast(SparseLayer, model.get_submodule(name)) for name in choices}
    with torch.no_grad():
        for layer in layers.values():
            layer.sparsity.after_update(layer.trained)
    return layers


def one_amount(density: Amounts | None, sparsity: Amounts | None) -> Amounts | None:
    """Return the density meant by exactly one of the two, or None where neither is given."""
    if density is not None and sparsity is not None:
        raise ValueError(f"density={density} and sparsity={sparsity} say the same thing twice; give one of them")
    if sparsity is None:
        return density
    if isinstance(sparsity, Mapping):
        return {glob: _density_at(amount) for glob, amount in sparsity.items()}
    return _density_at(sparsity)


def _density_at(sparsity: float) -> float:
    if not isinstance(sparsity, Real):
        raise TypeError(_not_a_number("sparsity", sparsity, 0.9))
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} is outside [0, 1); 0.9 keeps a tenth of the weights")
    return 1 - float(sparsity)


def _mask(model: nn.Module, beginning: "_Beginning") -> None:
    choices = beginning.choices
    masks = {name: beginning.mask(name, weight_of(model, each.candidate).detach()) for name, each in choices.items()}
    open_attentions(model, (choice.candidate for choice in choices.values()))
    sparsities: dict[str, Sparsity] = {}
    for name, choice in choices.items():
        weight = cast(nn.Parameter, model.get_submodule(name).weight)
        sparsities |= dict.fromkeys(choice.names, beginning.hold(name, masks.pop(name), weight))
    make_sparse(model, sparsities)


def _compress(model: nn.Module, beginning: "_Beginning", device: torch.device | None) -> None:
    choices = beginning.choices
    decided = {name: _index_or_twins(model, beginning, choice, device) for name, choice in choices.items()}
    open_attentions(model, (choice.candidate for choice in choices.values()))
    for name, choice in choices.items():
        layers, form = [model.get_submodule(each) for each in choice.names], decided.pop(name)
        if isinstance(form, FixedIndex):
            store(layers, form)
        else:
            for layer, twin in zip(layers, form, strict=True):
                take_over(layer, twin)
    disable_fused_paths(model)


def _index_or_twins(
    model: nn.Module, beginning: "_Beginning", choice: Choice, device: torch.device | None
) -> FixedIndex | list[Any]:
    """Return the index of a layer's first mask; of layers on the meta device compressed copies that have numbers."""
    name = choice.candidate.name
    if device is None or not choice.candidate.is_meta:
        return beginning.index(name, weight_of(model, choice.candidate).detach())
    twins = [initialised(model.get_submodule(each), device) for each in choice.names]
    store(twins, beginning.index(name, twins[0].weight.detach()))
    return twins


@final
@dataclass(frozen=True)
class _Beginning:
    """How the chosen layers begin: where their first masks come from, and what holds these."""

    choices: Mapping[str, Choice]
    method: Method
    init: Score
    masks: Mapping[str, Tensor] | None
    chances: Mapping[str, Generator]

    def mask(self, name: str, weight: Tensor) -> Tensor:
        """Return the first mask of a layer, as a matrix; that takes the time, so the log says how far it is."""
        names = list(self.choices)
        logger.info("sparsify: %d of %d layers, %s", names.index(name) + 1, len(names), label(name))
        if self.masks is not None:
            return to_matrix(self.masks[name].to(weight.device), transposed=self.choices[name].transposed)
        try:
            return self.method.start(self._view(name, weight), self.init)
        except ValueError as error:
            raise ValueError(f"{label(name)}: {error}") from error

    def hold(self, name: str, mask: Tensor, weight: nn.Parameter) -> Sparsity:
        """Return what holds the mask of a layer."""
        view = self._view(name, weight.detach())
        return self.method.hold(mask, weight, view=view, transposed=self.choices[name].transposed)

    def index(self, name: str, weight: Tensor) -> FixedIndex:
        """Return the first mask of a layer as compressed storage holds it; raise ValueError where that cannot."""
        if reason := why_no_storage(self.choices[name].pattern):
            raise ValueError(f"{label(name)}: {reason}, or leave it dense with {{{name!r}: 'dense'}}")
        # To see how the method holds a mask costs no memory; the parameter is another, so nothing has changed.
        held = self.hold(name, self.mask(name, weight), nn.Parameter(weight))
        if not isinstance(held, Fixed):
            raise ValueError(
                f"{label(name)}: {type(self.method).__name__} trains the whole weight behind the mask, which "
                "compressed storage does not have; use storage='dense', or a method with fixed masks such as RigL"
            )
        try:
            return to_index(held)
        except ValueError as error:
            raise ValueError(f"{label(name)}: {error}") from error

    def _view(self, name: str, weight: Tensor) -> View:
        choice = self.choices[name]
        matrix = to_matrix(weight, transposed=choice.transposed)
        return View(
            pattern=choice.pattern,
            density=choice.density,
            weight=matrix,
            # Of one number, which stands for all.
            mask=torch.ones((), dtype=torch.bool, device=weight.device).expand(matrix.shape),
            grad=None,
            learned=None,
            step=0,
            generator=self.chances[name],
            is_last=name == list(self.choices)[-1],
        )


def _at_density_of(choice: Choice, mask: Tensor) -> Choice:
    name, shape = label(choice.candidate.name), choice.candidate.shape
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(
            f"{name}: a mask is a bool tensor shaped like the weight, {shape}; got {mask.dtype}, {tuple(mask.shape)}"
        )
    matrix = to_matrix(mask, transposed=choice.transposed)
    if not choice.pattern.allows(matrix):
        raise ValueError(f"{name}: the mask is not legal for {choice.pattern}; give a pattern that allows it")
    if not mask.any():
        raise ValueError(f"{name}: the mask keeps none of its weight {shape}; keep some of it, or leave the layer out")
    return replace(choice, density=choice.pattern.density or float(matrix.float().mean()))


def _match_patterns(model: nn.Module, found: Mapping[str, Candidate], patterns: Patterns) -> dict[str, Pattern]:
    rules = patterns if isinstance(patterns, Mapping) else {"*": patterns}
    wanted: dict[str, Pattern] = {}
    if not found and not sparse_layers(model):
        raise ValueError("this model has no linear layer or 2-d convolution that could be sparse")
    for glob, text in rules.items():
        if not isinstance(glob, str):
            raise TypeError(
                f"a glob over layer names is a str; got {glob!r} ({type(glob).__name__}); write {str(glob)!r}"
            )
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
    return f"no layer matches {glob!r}; the layers that can be sparse are {names or 'all sparse already'}"


def _sharers(
    model: nn.Module, found: Mapping[str, Candidate], wanted: Mapping[str, Pattern]
) -> dict[str, tuple[str, ...]]:
    """Return, for each layer, the names of all modules that share its weight, itself among them."""
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)
    names = {id(module): name for name, module in reversed(list(model.named_modules()))}
    sharers: dict[str, tuple[str, ...]] = {}
    for name in wanted:
        if found[name].attention is not None:
            sharers[name] = (name,)
            continue
        modules = [path.rpartition(".")[0] for path in owners[id(model.get_submodule(name).weight)]]
        sharers[name] = tuple(dict.fromkeys(names[id(model.get_submodule(module))] for module in modules))
    return sharers


def _divided(
    model: nn.Module,
    found: Mapping[str, Candidate],
    wanted: Mapping[str, Pattern],
    sharers: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """Say which layers share their weight with one that cannot have the same mask, and what to do."""
    reasons: dict[str, str] = {}
    for name in wanted:
        for other in (each for each in sharers[name] if each != name):
            kind = type(model.get_submodule(other)).__name__
            if other not in wanted:
                both = "make both sparse" if other in found else "give it a weight of its own"
                reasons[name] = f"it shares its weight with {label(other)} ({kind}), which would stay dense; {both}"
            elif is_conv1d_class(found[other].kind) != is_conv1d_class(found[name].kind):
                reasons[name] = f"it shares its weight with {label(other)} ({kind}), which transposes it; part them"
            elif wanted[other] != wanted[name]:
                raise ValueError(f"{name} and {other} share one weight; give both the same pattern")
    return reasons


def describe_reasons(reasons: Mapping[str, str]) -> list[str]:
    """Say why each of these layers is not sparse; those that have the same reason are counted together.

    >>> describe_reasons({"0": "it is empty", "2": "it is empty", "head": "it is tied"})
    ['0 and 1 other: it is empty', 'head: it is tied']
    """
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(label(name))
    return [f"{first}{_and_others(len(rest))}: {reason}" for reason, (first, *rest) in names.items()]


def _and_others(number: int) -> str:
    return f" and {number} other{'s' * (number > 1)}" if number else ""


def _without(items: Mapping[str, Any], reasons: Mapping[str, str], skipped: dict[str, str] | None) -> dict[str, Any]:
    """Return what is left without the layers that cannot be sparse; refuse these unless they may be skipped."""
    left = {name: item for name, item in items.items() if name not in reasons}
    if reasons and (skipped is None or not left):
        first = next(iter(reasons))
        others = ", ..." * (list(reasons.values()).count(reasons[first]) > 1)
        todo = f"or {{{first!r}: 'dense'{others}}}" if skipped is None else "and no other layer is left to be sparse"
        raise ValueError(f"{describe_reasons(reasons)[0]}, {todo}")
    if skipped is not None:
        skipped |= reasons
    return left


def _objection(candidate: Candidate, pattern: Pattern, device: torch.device | None) -> str:
    """Say why a layer cannot be sparse in this pattern; empty where it can."""
    if reason := candidate.obstacle or why_not_sparse(candidate.kind):
        return reason
    if candidate.is_meta and device is None:
        return (
            "it is on the meta device and has no weights yet; materialise the model, then sparsify, or make it "
            "compressed at once with storage='compressed' and device='cpu'"
        )
    if candidate.is_meta and candidate.attention is not None:
        return (
            f"{label(candidate.attention)} is on the meta device, and its parts get their first numbers together; "
            "materialise it, with to_empty() and _reset_parameters(), then sparsify"
        )
    if candidate.is_meta and (reason := why_not_initialised(candidate.kind)):
        return f"it is on the meta device, and {reason}"
    try:
        pattern.check(matrix_shape(candidate.shape, transposed=is_conv1d_class(candidate.kind)))
    except ValueError as error:
        return str(error)
    return ""


def too_coarse(pattern: Pattern, shape: Sequence[int], density: float, *, transposed: bool) -> str:
    """Say so where the one unit that is always kept would be more than twice what was asked for."""
    num_units = pattern.num_units(matrix_shape(shape, transposed=transposed))
    if pattern.density is not None or density * num_units >= LEAST_UNITS:
        return ""
    return (
        f"{pattern} cuts its {'x'.join(map(str, shape))} weight into {num_units} unit{'s' * (num_units > 1)}, "
        f"too coarse to keep {density:.4g} of it; use smaller tiles, a larger density"
    )


def _too_coarse(choice: Choice) -> str:
    return too_coarse(choice.pattern, choice.candidate.shape, choice.density, transposed=choice.transposed)


def _densities(
    choices: Mapping[str, Choice], amounts: Amounts | None, allocation: Allocation, skipped: Iterable[str]
) -> dict[str, float]:
    fixed = {name: choice.density for name, choice in choices.items() if choice.pattern.density is not None}
    shapes = {name: choice.candidate.shape for name, choice in choices.items() if name not in fixed}
    if not shapes:
        _check_fixed(choices, amounts)
        return fixed
    if amounts is None:
        raise ValueError(
            f"{choices[next(iter(shapes))].pattern} needs density=... or sparsity=...; 2:4 and its like need none"
        )
    if not isinstance(amounts, Mapping):
        return _by_allocation(shapes, _checked(amounts), allocation) | fixed
    if allocation is not uniform:
        raise ValueError(
            f"density={dict(amounts)} says itself how much each layer keeps, so the allocation would go unread; "
            "give one number to share out, or leave the allocation out"
        )
    return _by_glob(shapes, amounts, skipped) | fixed


def _check_fixed(choices: Mapping[str, Choice], amounts: Amounts | None) -> None:
    """Refuse an amount where every pattern fixes another one itself."""
    for choice in choices.values():
        if isinstance(amounts, Mapping) or (amounts is not None and _checked(amounts) != choice.density):
            given = dict(amounts) if isinstance(amounts, Mapping) else f"{amounts:g}"
            raise ValueError(
                f"{choice.pattern} fixes the density at {choice.density:g}; got density={given}, leave it out"
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
        if not 0 < densities[name] <= 1:
            raise ValueError(
                f"{label(name)}: the allocation gives it density {densities[name]}, which is outside (0, 1]; "
                "return how much of the layer is kept"
            )
    return {name: float(densities[name]) for name in shapes}


def _by_glob(shapes: Shapes, amounts: Mapping[str, float], skipped: Iterable[str]) -> dict[str, float]:
    densities: dict[str, float] = {}
    for glob, amount in amounts.items():
        names = [name for name in shapes if fnmatchcase(name, glob)]
        if not names and not any(fnmatchcase(name, glob) for name in skipped):
            raise ValueError(f"density: no chosen layer matches {glob!r}; the layers are {', '.join(shapes)}")
        densities.update(dict.fromkeys(names, _checked(amount)))
    if missing := [label(name) for name in shapes if name not in densities]:
        raise ValueError(f"density: no glob of {list(amounts)} gives one to {', '.join(missing)}")
    return densities


def _checked(density: float) -> float:
    if not isinstance(density, Real):
        raise TypeError(_not_a_number("density", density, 0.1))
    if not 0 < density <= 1:
        raise ValueError(f"density={density} is outside (0, 1]; 0.1 keeps a tenth of the weights")
    # A number of numpy could not be written to a file.
    return float(density)


def _not_a_number(what: str, given: object, example: float) -> str:
    return (
        f"{what} is a number, or a mapping from globs to numbers; got {given!r} ({type(given).__name__}); "
        f"write {what}={example}"
    )

"""Which layers of a model become sparse, and in which pattern."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, final

import torch
from torch import nn

from cutwork.layers.initialised import why_not_initialise
from cutwork.layers.sparse_class import why_not_sparsify
from cutwork.layers.swap import Candidate, candidates, sparse_layers
from cutwork.patterns import Pattern, parse
from cutwork.sparsity.layout import Layout
from cutwork.text import label

DENSE = "dense"
Patterns = str | Pattern | Mapping[str, str | Pattern]


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
        """Return the names of all layers that it is about."""
        return self.candidate.name, *self.tied

    @property
    def layout(self) -> Layout:
        """Return how the numbers of the weight lie."""
        return self.candidate.layout


def match_layers(
    model: nn.Module,
    patterns: Patterns,
    skipped: dict[str, str] | None = None,
    device: torch.device | None = None,
) -> dict[str, Choice]:
    """Return the chosen layers by name, as dense as their patterns allow; raise ValueError where one cannot be sparse.

    If `skipped` is given, layers that cannot be sparse are left out instead, and entered there with the reason. On
    `device` layers that are on the meta device will get their numbers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model must be an nn.Module; got {type(model).__name__}; write sparsify(model, patterns, ...)"
        )
    found = candidates(model)
    wanted = _match_patterns(model, found, patterns)
    reasons = {name: reason for name, pattern in wanted.items() if (reason := _why_not(found[name], pattern, device))}
    wanted = leave_out(wanted, reasons, skipped)
    sharers = _find_sharers(model, found, wanted)
    while divided := _find_divided(model, found, wanted, sharers):
        wanted = leave_out(wanted, divided, skipped)
    return {
        name: Choice(found[name], pattern, pattern.density or 1.0, sharers[name][1:])
        for name, pattern in wanted.items()
        if sharers[name][0] == name
    }


def describe_reasons(reasons: Mapping[str, str]) -> list[str]:
    """Say why each of these layers is not sparse; those that have the same reason are counted together.

    >>> describe_reasons({"0": "it is empty", "2": "it is empty", "head": "it is tied"})
    ['0 and 1 other: it is empty', 'head: it is tied']
    """
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(label(name))
    return [f"{first}{_and_others(len(rest))}: {reason}" for reason, (first, *rest) in names.items()]


def leave_out(items: Mapping[str, Any], reasons: Mapping[str, str], skipped: dict[str, str] | None) -> dict[str, Any]:
    """Return what is left without the layers that cannot be sparse, for these reasons.

    Without `skipped` that is an error; otherwise the reasons are entered there.
    """
    left = {name: item for name, item in items.items() if name not in reasons}
    if reasons and (skipped is None or not left):
        first = next(iter(reasons))
        others = ", ..." * (list(reasons.values()).count(reasons[first]) > 1)
        todo = f"or {{{first!r}: 'dense'{others}}}" if skipped is None else "and no other layer is left to be sparse"
        raise ValueError(f"{describe_reasons(reasons)[0]}, {todo}")
    if skipped is not None:
        skipped |= reasons
    return left


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
                wanted[name] = parse(text).for_kernel(found[name].layout.taps)
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


def _find_sharers(
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


def _find_divided(
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
            elif found[other].layout != found[name].layout:
                reasons[name] = f"it shares its weight with {label(other)} ({kind}), which transposes it; part them"
            elif wanted[other] != wanted[name]:
                raise ValueError(f"{name} and {other} share one weight; give both the same pattern")
    return reasons


def _why_not(candidate: Candidate, pattern: Pattern, device: torch.device | None) -> str:
    """Say why a layer cannot be sparse in this pattern; empty where it can."""
    if reason := candidate.obstacle or why_not_sparsify(candidate.kind):
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
    if candidate.is_meta and (reason := why_not_initialise(candidate.kind)):
        return f"it is on the meta device, and {reason}"
    try:
        pattern.check(candidate.layout.matrix_shape)
    except ValueError as error:
        return str(error)
    return ""


def _and_others(number: int) -> str:
    return f" and {number} other{'s' * (number > 1)}" if number else ""

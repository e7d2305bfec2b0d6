"""Choosing the form that each sparse layer of a model should take on this machine, by measuring them."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from cutwork.evaluation import call_of
from cutwork.layers.compressed import CompressedConv2d
from cutwork.layers.conv2d import SparseConv2d
from cutwork.layers.swap import SparseLayer, sparse_layers, why_not_find
from cutwork.speed.cache import TimingCache, cache_file
from cutwork.speed.forms import DENSE, FORMS, TILES
from cutwork.speed.layer_timing import FormTimer, Usage, find_usages
from cutwork.speed.plan import LayerPlan, Plan, group_by_weight
from cutwork.speed.timing import MARGIN, Timing
from cutwork.text import did_you_mean, label

# Numbers of tokens that a linear layer is measured with where no inputs are given.
USUAL_TOKENS = (1, 32, 197, 1024)
AS_ASKED = "as asked"

# One form for all layers, or forms by globs over their names; after an exclamation mark a form is forbidden.
Wishes = str | Mapping[str, str]


def choose_forms(
    model: nn.Module,
    inputs: Sequence[Any],
    *,
    forms: Wishes | None,
    precisions: str | Sequence[str],
    training: bool,
    seconds: float,
    cache: bool,
) -> Plan:
    """Return the plan by which each sparse layer takes the form that is fastest here, or the one asked for."""
    check_question(model, seconds)
    layers = sparse_layers(model)
    if not layers:
        raise ValueError(why_not_find(model))
    groups = group_by_weight(layers)
    wishes = _match_wishes(layers, groups, forms)
    offered = _offer(precisions, training=training)
    seen = find_usages(model, layers, call_of(model, inputs)) if inputs else {}
    timer = FormTimer(training, seconds, TimingCache(cache_file()) if cache else None)
    rows = []
    for first, sharers in groups.items():
        layer = layers[first]
        usages = [seen[name] for name in sharers if name in seen] if inputs else _usual(layer)
        rows.append(_plan_layer(first, layer, usages, wishes[first], offered, timer))
    return Plan(tuple(rows), training)


def check_question(model: nn.Module, seconds: float) -> None:
    """Raise an error unless this is a model, and some time to measure it in."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model must be an nn.Module; got {model!r} ({type(model).__name__}); pass the model first, and then "
            "its inputs"
        )
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"seconds={seconds!r}; give some time to measure each layer, such as 0.2")


def _plan_layer(
    name: str, layer: SparseLayer, usages: Sequence[Usage], wish: str | None, offered: Sequence[str], timer: FormTimer
) -> LayerPlan:
    sparsity = layer.sparsity
    timings: list[dict[str, Timing]] = []
    form, reason, possible = _without_measuring(name, layer, wish, offered)
    if not form and not usages:
        form, reason = DENSE, "not called, so nothing was measured; pass inputs of the model that reach it"
    elif not form:
        timings = [timer.time(layer, usage, possible) for usage in usages]
        form, reason = _fastest([_seconds(each) for each in timings], usages)
    times = [_seconds(each) for each in timings]
    is_steady = all(timing.is_steady for each in timings for timing in each.values())
    least = min(times, key=lambda taken: taken.get(DENSE, 0.0) / taken[form], default={})
    matrix = sparsity.mask_matrix()
    return LayerPlan(
        layer=name,
        shape=tuple(matrix.shape),
        pattern=str(sparsity.pattern),
        density=float(matrix.double().mean()),
        input=usages[times.index(least)].shape if times else (),
        calls=sum(usage.calls for usage in usages),
        seconds=least,
        form=form,
        reason=reason if is_steady else f"about {reason}; runs lie far apart, the machine is busy",
        is_steady=is_steady,
    )


def _without_measuring(
    name: str, layer: SparseLayer, wish: str | None, offered: Sequence[str]
) -> tuple[str, str, list[str]]:
    """Return the only form that a layer may take, and why, or else no form, and those to choose among."""
    if wish and not wish.startswith("!"):
        if reason := FORMS[wish].why_not(name, layer):
            raise ValueError(f"{label(name)} cannot take the form {wish!r}: {reason}")
        return wish, AS_ASKED, []
    obstacles = {form: FORMS[form].why_not(name, layer) for form in offered}
    possible = [form for form, obstacle in obstacles.items() if not obstacle and f"!{form}" != wish]
    if not possible:
        raise ValueError(f"{label(name)} has no form left: {DENSE} is forbidden, and the others not possible")
    if len(possible) > 1:
        return "", "", possible
    reason = f"{wish[1:]} is forbidden" if wish else next(filter(None, obstacles.values()), "")
    return possible[0], reason, []


def _seconds(timings: Mapping[str, Timing]) -> dict[str, float]:
    return {form: timing.median_s for form, timing in timings.items()}


def _fastest(times: Sequence[Mapping[str, float]], usages: Sequence[Usage]) -> tuple[str, str]:
    """Return the form that gains most where it gains least, and why."""
    base, *others = times[0]
    gains = {form: min((taken[base] / taken[form], place) for place, taken in enumerate(times)) for form in others}
    best = max(gains, key=lambda form: gains[form][0])
    gain, place = gains[best]
    at = "x".join(map(str, usages[place].shape))
    if gain >= MARGIN:
        return best, f"{gain:.1f}x faster than {base} for {at}"
    if gain >= 1:
        return base, f"{best} only {gain:.2f}x faster for {at}, which may be chance"
    return base, f"{best} {1 / gain:.1f}x slower here for {at}"


def _offer(precisions: str | Sequence[str], *, training: bool) -> list[str]:
    """Return the forms that a layer may take if it can: those that change no results, and others on request."""
    given = [precisions] if isinstance(precisions, str) or not isinstance(precisions, Iterable) else precisions
    known = _by_precision()
    for precision in given:
        if precision not in known:
            names, near = ", ".join(map(repr, known)), did_you_mean(precision, known)
            raise ValueError(f"unknown precision {precision!r}{near}; write one of {names}, or none")
        if training and not FORMS[known[precision]].trains:
            raise ValueError(f"{precision} is for inference; leave it out, or training=True")
    alike = [name for name, form in FORMS.items() if form.precision is None and (form.trains or not training)]
    return [*alike, *(known[precision] for precision in given)]


def _by_precision() -> dict[str, str]:
    return {form.precision: name for name, form in FORMS.items() if form.precision is not None}


def _read_wishes(wishes: Wishes | None) -> dict[str, str]:
    """Return the forms asked for and forbidden under their own names, by globs."""
    if not isinstance(wishes, str | Mapping | None):
        raise TypeError(
            f"forms={wishes!r} ({type(wishes).__name__}); name one form, or write a mapping from globs over layer "
            "names to forms"
        )
    by_precision = _by_precision()
    found = {}
    for glob, given in ({"*": wishes} if isinstance(wishes, str) else wishes or {}).items():
        ban, name = ("!", given[1:]) if isinstance(given, str) and given.startswith("!") else ("", given)
        if name not in (*FORMS, *by_precision):
            names, near = ", ".join(map(repr, FORMS)), did_you_mean(name, [*FORMS, *by_precision])
            raise ValueError(
                f"unknown form {given!r}{near}; write one of {names}, or one of them after '!' to forbid it"
            )
        found[glob] = ban + by_precision.get(name, name)
    return found


def _match_wishes(
    layers: Mapping[str, SparseLayer], groups: Mapping[str, list[str]], wishes: Wishes | None
) -> dict[str, str | None]:
    """Return the form asked of each layer, or forbidden for it."""
    if wishes == TILES:
        # Asked of all at once it means all that can; named by a glob, a layer that cannot is an error.
        obstacles = {name: FORMS[TILES].why_not(name, layer) for name, layer in layers.items()}
        if all(obstacles.values()):
            name = next(iter(layers))
            raise ValueError(f"no layer can take the form {TILES!r}; {label(name)}: {obstacles[name]}")
        return {name: DENSE if obstacle else TILES for name, obstacle in obstacles.items()}
    wanted: dict[str, str | None] = dict.fromkeys(layers)
    for glob, form in _read_wishes(wishes).items():
        if not (matched := [name for name in layers if fnmatchcase(name, glob)]):
            raise ValueError(f"no sparse layer matches {glob!r}; they are {', '.join(map(repr, layers))}")
        wanted |= dict.fromkeys(matched, form)
    for sharers in groups.values():
        if len(different := {wanted[name] for name in sharers}) > 1:
            asked = ", ".join(f"{name} {wanted[name] or 'the fastest'}" for name in sharers)
            raise ValueError(f"layers that share a weight have one form; asked for {asked} ({len(different)} forms)")
    return wanted


def _usual(layer: SparseLayer) -> list[Usage]:
    """Return what a linear layer is often called with; what a convolution sees, only the model's inputs tell."""
    if isinstance(layer, SparseConv2d | CompressedConv2d):
        return []
    inputs = layer.sparsity.mask_matrix().shape[1]
    return [Usage((tokens, inputs), layer.trained.dtype) for tokens in USUAL_TOKENS]

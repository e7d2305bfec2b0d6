"""Which form each layer should take on this machine, measured at the shapes that a model really sees, and why."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, final

from torch import nn

from cutwork.evaluation import call_of
from cutwork.layers.compressed import CompressedConv2d
from cutwork.layers.conv2d import SparseConv2d
from cutwork.layers.int8 import why_none
from cutwork.layers.swap import SparseLayer, sparse_layers
from cutwork.patterns import Pattern
from cutwork.speed.cache import TimingCache, cache_file
from cutwork.speed.forms import BF16, DENSE, INT8, MARGIN, TILES, Usage, change, form_of, obstacle, time_forms, usages
from cutwork.speed.packing import check_free, grouped
from cutwork.speed.proposal import DENSITIES, PATTERNS, propose
from cutwork.speed.timing import Timing
from cutwork.speed.trial import Trial
from cutwork.text import did_you_mean, in_columns

FORMS = (DENSE, TILES, BF16, INT8)
# By the names under which people ask for fewer bits.
PRECISIONS = {"bf16": BF16, "int8": INT8}
# What a linear layer is measured with when nobody says what it will see.
USUAL_TOKENS = (1, 32, 197, 1024)

AS_ASKED = "as asked"

Forms = str | Mapping[str, str]


@final
@dataclass(frozen=True)
class LayerPlan:
    """What one layer, with those that share its weight, was measured to take in each form, and the form chosen.

    `seconds` are of one call; of the slowest call compared with dense, if several shapes were measured. They are not
    steady if their runs lie far apart, as on a machine that is busy with something else.
    """

    layer: str
    shape: tuple[int, ...]
    pattern: str
    density: float
    input: tuple[int, ...]
    calls: int
    seconds: dict[str, float]
    form: str
    reason: str
    is_steady: bool = True

    @property
    def gain(self) -> float | None:
        """Return how many times faster than dense the form is, if both were measured."""
        if self.form not in self.seconds or DENSE not in self.seconds:
            return None
        return self.seconds[DENSE] / self.seconds[self.form]


@final
@dataclass(frozen=True)
class Plan:
    """A row for each sparse layer, in the order of the model; `apply` gives the layers of a model their forms."""

    rows: tuple[LayerPlan, ...]
    training: bool

    def apply(self, model: nn.Module) -> None:
        """Give the layers of a model, in place, the forms chosen for them."""
        layers = sparse_layers(model)
        if not layers:
            raise ValueError(f"apply: {why_none(model)}")
        if missing := [row.layer for row in self.rows if row.layer not in layers]:
            raise ValueError(
                f"apply: the plan is for a model with a sparse layer {missing[0]!r}; this one has none; make a plan "
                "for this model"
            )
        for row in self.rows:
            _check_alike(row, layers[row.layer])
        groups = grouped(layers)
        check_free("pack", layers)
        for form in FORMS:
            chosen = [name for row in self.rows if row.form == form for name in groups[row.layer]]
            change(model, chosen, form, training=self.training)

    def __str__(self) -> str:
        """Write the plan as a table."""
        return "\n".join(in_columns([HEAD, *map(_cells, self.rows)], FLUSH))

    def to_json(self) -> str:
        """Write the plan as JSON, with exact numbers."""
        return json.dumps(asdict(self), indent=2)


def plan(
    model: nn.Module,
    *inputs: Any,
    speedup: float | None = None,
    patterns: str | Pattern | Sequence[str | Pattern] = PATTERNS,
    densities: float | Sequence[float] = DENSITIES,
    layers: str | Sequence[str] = "*",
    forms: Forms | None = None,
    precisions: str | Sequence[str] = (),
    training: bool = False,
    seconds: float = 0.2,
    cache: bool = True,
) -> Any:
    """Measure the forms that each sparse layer can take here, and return which it should take and why.

    The `inputs` are those of the model, a mapping at the end holding what it takes by name: they tell what each layer
    sees. Without any, linear layers are measured with a few usual numbers of tokens, and leave dense only where that is
    faster for all of them. `forms` forces a form, or forbids one with an exclamation mark ("!tiles"), everywhere or by
    globs over layer names, of which the last that matches decides. `precisions` adds forms of linear layers in fewer
    bits, "bf16" and, for inference, "int8", whose results differ by their rounding. With `training` the backward pass
    counts too. Each distinct layer is measured for `seconds` with each input. What is steady is kept in a file in the
    user's cache folder unless `cache` is False; `cutwork doctor` says where, and it may be deleted. What is not steady
    is marked with "~".

    With a `speedup`, the model is one to be made sparse: return the `Proposal` of `patterns` and `densities` by which
    the whole model would get so much faster, with most weights left. `layers` chooses among the layers that could be
    sparse: a glob over their names or several, of which the last that matches decides, with an exclamation mark before
    those to leave out (["*", "!head"]). What cannot be sparse stays dense, and the proposal says why. Each pattern at
    each density is timed inside the model for five times `seconds`, and nothing of that is kept.
    """
    _check("plan", model, seconds)
    if speedup is None:
        if layers != "*":
            raise ValueError("plan: layers are for a speedup; to choose forms of sparse layers by name, use forms")
        return _plan("plan", model, inputs, forms, precisions, training=training, seconds=seconds, cache=cache)
    if forms is not None:
        raise ValueError("plan: forms are for a sparse model, and a speedup for one to be made sparse; give one")
    if training or precisions:
        raise ValueError(
            "plan: a speedup is predicted for inference at the model's own precision; leave training and "
            "precisions out, and measure the step of a sparse model with 'cutwork benchmark train'"
        )
    return propose(
        *(model, inputs),
        speedup=speedup,
        patterns=patterns,
        densities=densities,
        seconds=seconds,
        layers=layers,
    )


def pack(
    model: nn.Module,
    *inputs: Any,
    forms: Forms | None = None,
    precisions: str | Sequence[str] = (),
    training: bool = False,
    seconds: float = 0.2,
    cache: bool = True,
) -> Plan:
    """Give each sparse layer, in place, the form that measures fastest here, and return the plan that says why.

    The arguments are those of `plan`. Given inputs, the whole model is tried before and after: a layer with whose new
    form it fails, or returns something else, has its old one again, and the row says why. Layers in the form "tiles"
    store only what their masks keep: the parameter that they train is then `values` instead of `weight`, so pack before
    building an optimizer. `unpack` undoes it.

    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.25)
    >>> print(pack(model, forms="tiles"))
    layer  shape  pattern   density  form   gain  reason
    0      64x64  block:16     0.25  tiles        as asked
    >>> model[0].values.shape
    torch.Size([4, 16, 16])
    """
    _check("pack", model, seconds)
    result = _plan("pack", model, inputs, forms, precisions, training=training, seconds=seconds, cache=cache)
    if not inputs:
        result.apply(model)
        return result
    groups = grouped(sparse_layers(model))
    trial = Trial(model, call_of(model, inputs), groups, training=training)
    try:
        result.apply(model)
        harms = trial.take_back()
        # Of all layers at once tiles are asked where they can be had.
        _check_harmless(result, {} if forms == TILES else harms)
        dense = [name for first in harms for name in groups[first] if form_of(model.get_submodule(name)) == DENSE]
        change(model, dense, DENSE, training=training)
    except BaseException:
        trial.undo()
        raise
    return _without(result, harms, model)


def _check_harmless(plan: Plan, harms: Mapping[str, str]) -> None:
    """Raise ValueError where the model breaks with a form that was asked of a layer by its name."""
    for row in plan.rows:
        if row.layer in harms and row.reason == AS_ASKED:
            raise ValueError(
                f"pack: {row.layer or 'the model itself'} cannot take the form {row.form!r}: {harms[row.layer]}; leave "
                "its form out of forms, or forbid this one"
            )


def _without(plan: Plan, harms: Mapping[str, str], model: nn.Module) -> Plan:
    """Return a plan in which layers that a model breaks with have the forms which they were given back."""
    forms = {name: form_of(model.get_submodule(name)) for name in harms}
    rows = [
        replace(row, form=forms[row.layer], reason=f"{row.form}: {harms[row.layer]}") if row.layer in harms else row
        for row in plan.rows
    ]
    return replace(plan, rows=tuple(rows))


def _check(what: str, model: nn.Module, seconds: float) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{what}: the model must be an nn.Module; got {model!r} ({type(model).__name__}); write {what}(model, x)"
        )
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"{what}: seconds={seconds!r}; give some time to measure each layer, such as 0.2")


def _plan(
    what: str,
    model: nn.Module,
    inputs: Sequence[Any],
    forms: Forms | None,
    precisions: str | Sequence[str],
    *,
    training: bool,
    seconds: float,
    cache: bool,
) -> Plan:
    """Return the plan that `plan` or `pack`, whichever errors should name, was asked for."""
    layers = sparse_layers(model)
    if not layers:
        raise ValueError(f"{what}: {why_none(model)}")
    kept = TimingCache(cache_file()) if cache else None
    groups = grouped(layers)
    wanted = _wanted(what, layers, groups, forms)
    offered = _offered(what, precisions, training=training)
    seen = usages(model, layers, call_of(model, inputs)) if inputs else {}
    measured: dict[Any, list[dict[str, Timing]]] = {}
    rows = []
    for first, sharers in groups.items():
        layer = layers[first]
        uses = [seen[name] for name in sharers if name in seen] if inputs else _usual(layer)
        rows.append(
            _plan_layer(
                *(what, first, layer, uses, wanted[first], offered),
                training=training,
                seconds=seconds,
                cache=kept,
                known=measured,
            )
        )
    return Plan(tuple(rows), training)


def _check_alike(row: LayerPlan, layer: SparseLayer) -> None:
    """Raise ValueError where a layer is not the one that was measured."""
    sparsity = layer.sparsity
    found = tuple(sparsity.mask_matrix().shape), str(sparsity.pattern)
    if found != (row.shape, row.pattern):
        (shape, pattern), name = found, row.layer or "the model itself"
        raise ValueError(
            f"apply: {name} was planned as {'x'.join(map(str, row.shape))} {row.pattern}; in this model it is "
            f"{'x'.join(map(str, shape))} {pattern}; make a plan for this model"
        )


def _plan_layer(
    what: str,
    name: str,
    layer: SparseLayer,
    uses: Sequence[Usage],
    wanted: str | None,
    offered: Sequence[str],
    *,
    training: bool,
    seconds: float,
    cache: TimingCache | None,
    known: dict[Any, list[dict[str, Timing]]],
) -> LayerPlan:
    sparsity = layer.sparsity
    matrix = sparsity.mask_matrix()
    density = float(matrix.double().mean())
    timings: list[dict[str, Timing]] = []
    is_forced = wanted is not None and not wanted.startswith("!")
    if is_forced and (reason := _obstacle(name, layer, wanted or "")):
        raise ValueError(f"{what}: {name or 'the model itself'} cannot take the form {wanted!r}: {reason}")
    possible = [form for form in offered if not _obstacle(name, layer, form) and f"!{form}" != wanted]
    if not possible:
        raise ValueError(
            f"{what}: {name or 'the model itself'} has no form left: {DENSE} is forbidden, and the others not possible"
        )
    if is_forced:
        form, reason = wanted or "", AS_ASKED
    elif len(possible) < 2:
        form = possible[0]
        reason = f"{wanted[1:]} is forbidden" if wanted else obstacle(layer, TILES if form == DENSE else DENSE)
    elif not uses:
        form, reason = DENSE, "not called, so nothing was measured; pass inputs of the model that reach it"
    else:
        key = (tuple(matrix.shape), str(sparsity.pattern), round(density, 3), layer.trained.dtype, *possible, *uses)
        if key not in known:
            known[key] = [
                time_forms(layer, use, possible, training=training, seconds=seconds, cache=cache) for use in uses
            ]
        timings = known[key]
        form, reason = _choose([_seconds(each) for each in timings], uses)
    times = [_seconds(each) for each in timings]
    is_steady = all(timing.is_steady for each in timings for timing in each.values())
    least = min(times, key=lambda taken: taken.get(DENSE, 0.0) / taken[form], default={})
    return LayerPlan(
        layer=name,
        shape=tuple(matrix.shape),
        pattern=str(sparsity.pattern),
        density=density,
        input=uses[times.index(least)].shape if times else (),
        calls=sum(use.calls for use in uses),
        seconds=least,
        form=form,
        reason=reason if is_steady else f"about {reason}; runs lie far apart, the machine is busy",
        is_steady=is_steady,
    )


def _obstacle(name: str, layer: SparseLayer, form: str) -> str:
    if form == INT8 and not name:
        return "an int8 layer takes the place of another in a model; put it into a module, such as nn.Sequential"
    return obstacle(layer, form)


def _seconds(timings: Mapping[str, Timing]) -> dict[str, float]:
    return {form: timing.median_s for form, timing in timings.items()}


def _choose(times: Sequence[Mapping[str, float]], uses: Sequence[Usage]) -> tuple[str, str]:
    """Return the form that gains most where it gains least, and why."""
    base, *others = times[0]
    gains = {form: min((taken[base] / taken[form], place) for place, taken in enumerate(times)) for form in others}
    best = max(gains, key=lambda form: gains[form][0])
    gain, place = gains[best]
    at = "x".join(map(str, uses[place].shape))
    if gain >= MARGIN:
        return best, f"{gain:.1f}x faster than {base} for {at}"
    if gain >= 1:
        return base, f"{best} only {gain:.2f}x faster for {at}, which may be chance"
    return base, f"{best} {1 / gain:.1f}x slower here for {at}"


def _offered(what: str, precisions: str | Sequence[str], *, training: bool) -> list[str]:
    """Return the forms that a layer may take if it can, dense first."""
    given = [precisions] if isinstance(precisions, str) or not isinstance(precisions, Iterable) else precisions
    for precision in given:
        if precision not in PRECISIONS:
            names, near = ", ".join(map(repr, PRECISIONS)), did_you_mean(precision, PRECISIONS)
            raise ValueError(f"{what}: unknown precision {precision!r}{near}; write one of {names}, or none")
    if training and "int8" in given:
        raise ValueError(f"{what}: int8 is for inference; leave it out, or training=True")
    return [DENSE, TILES, *(PRECISIONS[precision] for precision in given)]


def _by_globs(what: str, forms: Forms | None) -> dict[str, str]:
    """Return the forms asked for under their own names, by globs."""
    if not isinstance(forms, str | Mapping | None):
        raise TypeError(
            f"{what}: forms={forms!r} ({type(forms).__name__}); name one form, or write a mapping from globs over "
            "layer names to forms"
        )
    found = {}
    for glob, given in ({"*": forms} if isinstance(forms, str) else forms or {}).items():
        ban, name = ("!", given[1:]) if isinstance(given, str) and given.startswith("!") else ("", given)
        if name not in (*FORMS, *PRECISIONS):
            names, near = ", ".join(map(repr, FORMS)), did_you_mean(name, [*FORMS, *PRECISIONS])
            raise ValueError(
                f"{what}: unknown form {given!r}{near}; write one of {names}, or one of them after '!' to forbid it"
            )
        found[glob] = ban + PRECISIONS.get(name, name)
    return found


def _wanted(
    what: str, layers: Mapping[str, SparseLayer], groups: Mapping[str, list[str]], forms: Forms | None
) -> dict[str, str | None]:
    """Return the form forced or forbidden for each layer."""
    wanted: dict[str, str | None] = dict.fromkeys(layers)
    if forms == TILES:
        # Asked of all at once it means all that can; named by a glob, a layer that cannot is an error.
        reasons = {name: obstacle(layer, TILES) for name, layer in layers.items()}
        if all(reasons.values()):
            name = next(iter(layers))
            raise ValueError(
                f"{what}: no layer can take the form {TILES!r}; {name or 'the model itself'}: {reasons[name]}"
            )
        return {name: DENSE if reason else TILES for name, reason in reasons.items()}
    for glob, form in _by_globs(what, forms).items():
        if not (matched := [name for name in layers if fnmatchcase(name, glob)]):
            raise ValueError(f"{what}: no sparse layer matches {glob!r}; they are {', '.join(map(repr, layers))}")
        wanted |= dict.fromkeys(matched, form)
    for sharers in groups.values():
        if len(different := {wanted[name] for name in sharers}) > 1:
            asked = ", ".join(f"{name} {wanted[name] or 'the fastest'}" for name in sharers)
            raise ValueError(
                f"{what}: layers that share a weight have one form; asked for {asked} ({len(different)} forms)"
            )
    return wanted


def _usual(layer: SparseLayer) -> list[Usage]:
    """Return what a linear layer is often called with; what a convolution sees, only the model's inputs tell."""
    if isinstance(layer, SparseConv2d | CompressedConv2d):
        return []
    inputs = layer.sparsity.mask_matrix().shape[1]
    return [Usage((tokens, inputs), layer.trained.dtype) for tokens in USUAL_TOKENS]


HEAD = ("layer", "shape", "pattern", "density", "form", "gain", "reason")
FLUSH = "<<<><><"


def _cells(row: LayerPlan) -> list[str]:
    return [
        row.layer or "(the model itself)",
        "x".join(map(str, row.shape)),
        row.pattern,
        f"{row.density:.4g}",
        row.form,
        "" if row.gain is None else f"{'' if row.is_steady else '~'}{row.gain:.2f}x",
        row.reason,
    ]

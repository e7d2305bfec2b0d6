"""Which form each layer should take on this machine, measured at the shapes that a model really sees, and why."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, final

from torch import nn

from cutwork.columns import in_columns
from cutwork.forms import BF16, DENSE, INT8, TILES, Usage, change, obstacle, time_forms, usages
from cutwork.layers.compressed import CompressedConv2d
from cutwork.layers.conv2d import SparseConv2d
from cutwork.layers.swap import SparseLayer, sparse_layers
from cutwork.packing import check_free, grouped
from cutwork.proposal import DENSITIES, PATTERNS, propose
from cutwork.timing_cache import TimingCache, cache_file

FORMS = (DENSE, TILES, BF16, INT8)
# By the names under which people ask for fewer bits.
PRECISIONS = {"bf16": BF16, "int8": INT8}
# Another form must be faster by this much: a smaller difference may be chance, and dense layers are simpler.
MARGIN = 1.03
# What a linear layer is measured with when nobody says what it will see.
USUAL_TOKENS = (1, 32, 197, 1024)

Forms = str | Mapping[str, str]


@final
@dataclass(frozen=True)
class LayerPlan:
    """What one layer, with those that share its weight, was measured to take in each form, and the form chosen.

    `seconds` are of one call; of the slowest call compared with dense, if several shapes were measured.
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
        if missing := [row.layer for row in self.rows if row.layer not in layers]:
            raise ValueError(f"the plan is for a model with a sparse layer {missing[0]!r}; this one has none")
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
    patterns: Sequence[str] = PATTERNS,
    densities: Sequence[float] = DENSITIES,
    forms: Forms | None = None,
    precisions: Sequence[str] = (),
    training: bool = False,
    seconds: float = 0.2,
    cache: bool = True,
) -> Any:
    """Measure the forms that each sparse layer can take here, and return which it should take and why.

    The `inputs` are those of the model: they tell what each layer sees. Without any, linear layers are measured with a
    few usual numbers of tokens, and leave dense only where that is faster for all of them. `forms` forces a form, or
    forbids one with an exclamation mark ("!tiles"), everywhere or by globs over layer names, of which the last that
    matches decides. `precisions` adds forms of linear layers in fewer bits, "bf16" and, for inference, "int8", whose
    results differ by their rounding. With `training` the backward pass counts too. Each distinct layer is measured for
    `seconds`, and the result kept in the user's cache folder unless `cache` is False.

    With a `speedup`, the model is one to be made sparse: return the `Proposal` of `patterns` and `densities` by which
    the whole model would get so much faster, with most weights left.
    """
    kept = TimingCache(cache_file()) if cache else None
    if speedup is not None:
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
            cache=kept,
        )
    layers = sparse_layers(model)
    if not layers:
        raise ValueError("plan: the model has no sparse layer; sparsify() it or load a sparse checkpoint first")
    groups = grouped(layers)
    wanted = _wanted(layers, groups, forms)
    offered = _offered(precisions, training=training)
    seen = usages(model, layers, *inputs) if inputs else {}
    measured: dict[Any, list[dict[str, float]]] = {}
    rows = []
    for first, sharers in groups.items():
        layer = layers[first]
        uses = [seen[name] for name in sharers if name in seen] if inputs else _usual(layer)
        rows.append(
            _plan_layer(
                *(first, layer, uses, wanted[first], offered),
                training=training,
                seconds=seconds,
                cache=kept,
                known=measured,
            )
        )
    return Plan(tuple(rows), training)


def pack(
    model: nn.Module,
    *inputs: Any,
    forms: Forms | None = None,
    precisions: Sequence[str] = (),
    training: bool = False,
    seconds: float = 0.2,
    cache: bool = True,
) -> Plan:
    """Give each sparse layer, in place, the form that measures fastest here, and return the plan that says why.

    The arguments are those of `plan`. Layers in the form "tiles" store only what their masks keep: the parameter that
    they train is then `values` instead of `weight`, so pack before building an optimizer. `unpack` undoes it.

    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.25)
    >>> print(pack(model, forms="tiles"))
    layer  shape  pattern   density  form   gain  reason
    0      64x64  block:16     0.25  tiles        as asked
    >>> model[0].values.shape
    torch.Size([4, 16, 16])
    """
    options = {"forms": forms, "precisions": precisions, "training": training, "seconds": seconds, "cache": cache}
    result = plan(model, *inputs, **options)  # pyrefly: ignore
    result.apply(model)
    return result


def _plan_layer(
    name: str,
    layer: SparseLayer,
    uses: Sequence[Usage],
    wanted: str | None,
    offered: Sequence[str],
    *,
    training: bool,
    seconds: float,
    cache: TimingCache | None,
    known: dict[Any, list[dict[str, float]]],
) -> LayerPlan:
    sparsity = layer.sparsity
    matrix = sparsity.mask_matrix()
    density = float(matrix.double().mean())
    times: list[dict[str, float]] = []
    is_forced = wanted is not None and not wanted.startswith("!")
    if is_forced and (reason := obstacle(layer, wanted or "")):
        raise ValueError(f"plan: {name or 'the model itself'} cannot take the form {wanted!r}: {reason}")
    possible = [form for form in offered if not obstacle(layer, form) and f"!{form}" != wanted]
    if not possible:
        raise ValueError(
            f"plan: {name or 'the model itself'} has no form left: {DENSE} is forbidden, and the others not possible"
        )
    if is_forced:
        form, reason = wanted or "", "as asked"
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
        times = known[key]
        form, reason = _choose(times, uses)
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
        reason=reason,
    )


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


def _offered(precisions: Sequence[str], *, training: bool) -> list[str]:
    """Return the forms that a layer may take if it can, dense first."""
    for precision in precisions:
        if precision not in PRECISIONS:
            names = ", ".join(map(repr, PRECISIONS))
            raise ValueError(f"plan: unknown precision {precision!r}; write one of {names}, or none")
    if training and "int8" in precisions:
        raise ValueError("plan: int8 is for inference; leave it out, or training=True")
    return [DENSE, TILES, *(PRECISIONS[precision] for precision in precisions)]


def _wanted(
    layers: Mapping[str, SparseLayer], groups: Mapping[str, list[str]], forms: Forms | None
) -> dict[str, str | None]:
    """Return the form forced or forbidden for each layer."""
    wanted: dict[str, str | None] = dict.fromkeys(layers)
    if forms == TILES:
        # Asked of all at once it means all that can; named by a glob, a layer that cannot is an error.
        reasons = {name: obstacle(layer, TILES) for name, layer in layers.items()}
        if all(reasons.values()):
            name = next(iter(layers))
            raise ValueError(
                f"pack: no layer can take the form {TILES!r}; {name or 'the model itself'}: {reasons[name]}"
            )
        return {name: DENSE if reason else TILES for name, reason in reasons.items()}
    for glob, form in ({"*": forms} if isinstance(forms, str) else forms or {}).items():
        if form.removeprefix("!") not in FORMS:
            names = ", ".join(map(repr, FORMS))
            raise ValueError(
                f"plan: unknown form {form!r}; write one of {names}, or one of them after '!' to forbid it"
            )
        if not (matched := [name for name in layers if fnmatchcase(name, glob)]):
            raise ValueError(f"plan: no sparse layer matches {glob!r}; they are {', '.join(map(repr, layers))}")
        wanted |= dict.fromkeys(matched, form)
    for sharers in groups.values():
        if len(different := {wanted[name] for name in sharers}) > 1:
            asked = ", ".join(f"{name} {wanted[name] or 'the fastest'}" for name in sharers)
            raise ValueError(
                f"plan: layers that share a weight have one form; asked for {asked} ({len(different)} forms)"
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
        "" if row.gain is None else f"{row.gain:.2f}x",
        row.reason,
    ]

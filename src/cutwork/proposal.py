"""Which pattern and density would make a model as fast as wished, predicted from its layers measured here."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import nn

from cutwork.columns import in_columns
from cutwork.forms import DENSE, TILES, Usage, dense_call, obstacle, time_forms, usages
from cutwork.layers.swap import SparseLayer, sparse_layers
from cutwork.patterns import Pattern, parse
from cutwork.sparsify import sparsify
from cutwork.sparsity import Fixed
from cutwork.timing import measure
from cutwork.timing_cache import TimingCache

# The finest first: where two reach the goal with as much left, it keeps accuracy better.
PATTERNS = ("vector:16", "block:16", "block:32")
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)


@final
@dataclass(frozen=True)
class LayerProposal:
    """What one layer takes in a pass, dense and in the proposed form, in seconds; it stays dense without a pattern."""

    layer: str
    shape: tuple[int, ...]
    input: tuple[int, ...]
    pattern: str | None
    density: float
    dense_s: float
    proposed_s: float
    reason: str


@final
@dataclass(frozen=True)
class Proposal:
    """The pattern and density proposed, with predicted speedups of the whole model for all that were tried.

    `patterns` and `density` are what `sparsify` takes; None where the goal is out of reach. `outside` is the share of
    the time that no layer which could be sparse accounts for.
    """

    goal: float
    pattern: str | None
    density: float | None
    rows: tuple[LayerProposal, ...]
    speedups: dict[str, dict[float, float]]
    dense_s: float
    outside: float

    @property
    def patterns(self) -> dict[str, str] | None:
        """Return the pattern of each layer that should be sparse, by its name, as `sparsify` takes them."""
        if self.pattern is None:
            return None
        return {"*": "dense", **{row.layer: row.pattern for row in self.rows if row.pattern is not None}}

    @property
    def speedup(self) -> float:
        """Return the predicted speedup of what is proposed, or else the best there is."""
        if self.pattern is None or self.density is None:
            return max(max(by_density.values()) for by_density in self.speedups.values())
        return self.speedups[self.pattern][self.density]

    def __str__(self) -> str:
        """Write the proposal as tables."""
        return "\n".join(_lines(self))

    def to_json(self) -> str:
        """Write the proposal as JSON, with exact numbers."""
        return json.dumps(asdict(self), indent=2)


def propose(
    model: nn.Module,
    inputs: Sequence[Any],
    *,
    speedup: float,
    patterns: Sequence[str],
    densities: Sequence[float],
    seconds: float,
    cache: TimingCache | None,
) -> Proposal:
    """Return the pattern that reaches a speedup of the whole model with most weights left."""
    if not speedup > 1:
        raise ValueError(f"plan: speedup={speedup:g}; give a number above 1")
    if not inputs:
        raise ValueError(
            "plan: how much faster a model gets depends on its inputs; pass them: plan(model, x, speedup=2)"
        )
    # With attentions open, and masks only to have layers that can be asked for their forms.
    trial = copy.deepcopy(model)
    sparsify(trial, "unstructured", density=0.5)
    layers = sparse_layers(trial)
    seen = usages(trial, layers, *inputs)
    forms = _measure_all(layers, seen, patterns, densities, seconds=seconds, cache=cache)
    dense_s, dense_of = _time_dense(model, inputs, layers, seen)
    outside = max(0.0, 1 - sum(dense_of.values()) / dense_s)

    def predicted(pattern: str, density: float) -> float:
        saved = sum(dense_of[name] * max(0.0, 1 - taken.get((pattern, density), 1.0)) for name, taken in forms.items())
        return dense_s / max(dense_s - saved, 1e-12)

    speedups = {pattern: {density: predicted(pattern, density) for density in densities} for pattern in patterns}
    reaching = [
        (density, -place, pattern)
        for place, pattern in enumerate(patterns)
        for density in densities
        if speedups[pattern][density] >= speedup
    ]
    density, _, pattern = max(reaching, default=(None, 0, None))
    rows = tuple(
        _row(name, layers[name], seen[name], dense_of[name], forms[name], pattern, density)
        for name in layers
        if name in forms
    )
    return Proposal(speedup, pattern, density, rows, speedups, dense_s, outside)


def _measure_all(
    layers: Mapping[str, SparseLayer],
    seen: Mapping[str, Usage],
    patterns: Sequence[str],
    densities: Sequence[float],
    *,
    seconds: float,
    cache: TimingCache | None,
) -> dict[str, dict[Any, float]]:
    """Return what share of its dense time each layer takes as tiles, by pattern and density."""
    known: dict[Any, dict[Any, float]] = {}
    found = {}
    for name, layer in layers.items():
        if name not in seen:
            continue
        key = (type(layer), tuple(layer.trained.shape), str(layer.extra_repr()), seen[name])
        if key not in known:
            known[key] = _measure_one(layer, seen[name], patterns, densities, seconds, cache)
        found[name] = known[key]
    return found


def _measure_one(
    layer: SparseLayer,
    usage: Usage,
    patterns: Sequence[str],
    densities: Sequence[float],
    seconds: float,
    cache: TimingCache | None,
) -> dict[Any, float]:
    taken: dict[Any, float] = {}
    for text in patterns:
        pattern = parse(text)
        for density in densities:
            masked = _with_mask(layer, pattern, density)
            if masked is None or obstacle(masked, TILES):
                continue
            forms = [DENSE, TILES]
            times = time_forms(masked, usage, forms, training=False, seconds=seconds, cache=cache)
            taken[text, density] = times[TILES] / times[DENSE]
    return taken


def _with_mask(layer: SparseLayer, pattern: Pattern, density: float) -> SparseLayer | None:
    """Return a copy of a layer with some mask of this pattern; None where the pattern is too coarse for it."""
    twin = copy.deepcopy(layer)
    matrix = twin.sparsity.mask_matrix()
    generator = torch.Generator().manual_seed(0)
    try:
        pattern.check((matrix.shape[0], matrix.shape[1]))
        mask = pattern.project(torch.rand(matrix.shape, generator=generator), density)
    except ValueError:
        return None
    fixed = Fixed(
        mask.to(matrix.device),
        twin.weight.shape,  # pyrefly: ignore
        pattern=pattern,
        density=density,
        transposed=twin.sparsity.transposed,
    )
    del twin.sparsity
    with torch.no_grad():
        twin.weight.mul_(fixed.mask)  # pyrefly: ignore
    twin.add_module("sparsity", fixed)
    return twin


def _time_dense(
    model: nn.Module, inputs: Sequence[Any], layers: Mapping[str, SparseLayer], seen: Mapping[str, Usage]
) -> tuple[float, dict[str, float]]:
    """Return the seconds of a pass of the model, and of those all calls of each layer take, from the same rounds."""
    # A copy: hooks may count calls, and the mode of each module is its own.
    twin = copy.deepcopy(model).eval()

    def infer() -> None:
        with torch.no_grad():
            twin(*inputs)

    # Layers that are alike take as long as each other.
    alike = {name: (type(layers[name]), tuple(layers[name].trained.shape), seen[name]) for name in seen}
    first = {key: name for name, key in reversed(alike.items())}
    calls = {name: dense_call(layers[name], seen[name]) for name in first.values()}
    timings = measure({"": infer, **calls}, seconds=3.0, min_rounds=3)
    each = {name: seen[name].calls * timings[first[key]].median_s for name, key in alike.items()}
    return timings[""].median_s, each


def _row(
    name: str,
    layer: SparseLayer,
    usage: Usage,
    dense_s: float,
    taken: Mapping[Any, float],
    pattern: str | None,
    density: float | None,
) -> LayerProposal:
    share = taken.get((pattern, density))
    if share is None or pattern is None or density is None:
        form, proposed, reason = None, dense_s, "no tiles of this pattern fit" if pattern else ""
    elif share < 1:
        form, proposed, reason = pattern, dense_s * share, f"{1 / share:.1f}x faster"
    else:
        form, proposed, reason = None, dense_s, f"tiles {share:.1f}x slower here"
    return LayerProposal(
        layer=name,
        shape=tuple(layer.sparsity.mask_matrix().shape),
        input=usage.shape,
        pattern=form,
        density=1.0 if form is None or density is None else density,
        dense_s=dense_s,
        proposed_s=proposed,
        reason=reason,
    )


HEAD = ("layer", "shape", "input", "form", "dense", "then", "")
FLUSH = "<<<<>><"


def _lines(proposal: Proposal) -> Iterator[str]:
    yield "Predicted speedup of the whole model by pattern and density, from each layer measured alone"
    densities = list(next(iter(proposal.speedups.values())))
    table = [["", *(f"{density:g}" for density in densities)]]
    for pattern, by_density in proposal.speedups.items():
        table.append([pattern, *(f"{by_density[density]:.2f}x" for density in densities)])
    yield from in_columns(table, "<" + ">" * len(densities))
    yield ""
    if proposal.pattern is None:
        yield (
            f"{proposal.goal:g}x is out of reach: at most {proposal.speedup:.2f}x. {proposal.outside:.0%} of the time "
            f"of a pass is outside the layers that could be sparse, so {1 / max(proposal.outside, 1e-9):.3g}x is the "
            "end of all sparsity."
        )
        return
    yield from in_columns([HEAD, *map(_cells, proposal.rows)], FLUSH)
    yield ""
    chosen = f"{proposal.pattern} at density {proposal.density:g}"
    yield f"{proposal.goal:g}x is reached by {chosen}, {proposal.speedup:.2f}x:"
    yield f"    proposal = plan(...); sparsify(model, proposal.patterns, density={proposal.density:g})"


def _cells(row: LayerProposal) -> list[str]:
    return [
        row.layer or "(the model itself)",
        "x".join(map(str, row.shape)),
        "x".join(map(str, row.input)),
        row.pattern or "dense",
        f"{row.dense_s * 1e3:.3g} ms",
        f"{row.proposed_s * 1e3:.3g} ms",
        row.reason,
    ]

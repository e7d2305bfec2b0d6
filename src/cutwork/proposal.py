"""Which pattern and density would make a model as fast as wished, predicted from its layers measured here."""

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch
from torch import nn

from cutwork.columns import in_columns
from cutwork.forms import DENSE, TILES, Usage, at_rest, obstacle, time_forms, usages
from cutwork.kernels import REFERENCE, tile_kernel
from cutwork.layers.attention import OpenAttention
from cutwork.layers.swap import SparseLayer, sparse_layers
from cutwork.patterns import Pattern, parse
from cutwork.pieces import Pieces, time_pieces
from cutwork.selection import too_coarse
from cutwork.sparsify import sparsify
from cutwork.sparsity import Fixed
from cutwork.timing import STEADY_SPREAD
from cutwork.timing_cache import TimingCache

# The finest first: where two reach the goal with as much left, it keeps accuracy better.
PATTERNS = ("vector:16", "block:16", "block:32")
# How long passes of the whole model are timed.
PASS_SECONDS = 2.0
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

    `patterns` and `density` are what `sparsify` takes; None where the goal is out of reach. `obstacles` says of a
    pattern why no layer would be faster in it. `outside` is the share of a dense pass that no layer which could be
    sparse accounts for. What was measured `is_steady` where its runs agree within a tenth.
    """

    goal: float
    pattern: str | None
    density: float | None
    rows: tuple[LayerProposal, ...]
    speedups: dict[str, dict[float, float]]
    obstacles: dict[str, str]
    dense_s: float
    outside: float
    is_steady: bool

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
    patterns: str | Pattern | Sequence[str | Pattern],
    densities: float | Sequence[float],
    seconds: float,
    cache: TimingCache | None,
) -> Proposal:
    """Return the pattern that reaches a speedup of the whole model with most weights left."""
    goal, offered, amounts = _goal(speedup), _patterns(patterns), _densities(densities)
    if not inputs:
        raise ValueError(
            "plan: how much faster a model gets depends on its inputs; pass them: plan(model, x, speedup=2)"
        )
    # With attentions open, and masks only to have layers that can be asked for their forms.
    trial = copy.deepcopy(model)
    sparsify(trial, "unstructured", density=0.5)
    layers = sparse_layers(trial)
    seen = usages(trial, layers, *inputs)
    later = _seen_beside_tiles(trial, layers, inputs)
    measured = _measure_all(layers, seen, later, offered, amounts, seconds=seconds, cache=cache)
    dense, opened = _time_passes(model, trial, inputs)
    dense_of = {name: opened.layers[name] for name in seen}

    def predicted(pattern: str, density: float) -> float:
        saved = sum(
            dense_of[name] * max(0.0, 1 - found.shares.get((pattern, density), 1.0)) for name, found in measured.items()
        )
        return dense.total_s / max(opened.total_s - saved, 1e-12)

    speedups = {pattern: {density: predicted(pattern, density) for density in amounts} for pattern in offered}
    reaching = [
        (density, -place, pattern)
        for place, pattern in enumerate(offered)
        for density in amounts
        if speedups[pattern][density] >= goal
    ]
    density, _, pattern = max(reaching, default=(None, 0, None))
    return Proposal(
        goal=goal,
        pattern=pattern,
        density=density,
        rows=tuple(
            _row(name, layers[name], seen[name], dense_of[name], found, pattern, density)
            for name, found in measured.items()
        ),
        speedups=speedups,
        obstacles={pattern: reason for pattern in offered if (reason := _obstacle(pattern, measured))},
        dense_s=dense.total_s,
        outside=opened.outside_s / max(opened.total_s, 1e-12),
        is_steady=dense.spread <= STEADY_SPREAD and all(found.is_steady for found in measured.values()),
    )


def _goal(speedup: float) -> float:
    if not isinstance(speedup, int | float) or not 1 < speedup < math.inf:
        raise ValueError(f"plan: speedup={speedup!r}; give a number above 1, such as 1.5")
    return speedup


def _patterns(patterns: str | Pattern | Sequence[str | Pattern]) -> list[str]:
    given = [patterns] if isinstance(patterns, str | Pattern) else list(patterns)
    if not given:
        raise ValueError(f"plan: patterns={patterns!r}; name at least one, such as 'block:16'")
    return [str(parse(pattern)) for pattern in given]


def _densities(densities: float | Sequence[float]) -> list[float]:
    given = [densities] if isinstance(densities, int | float | str) else list(densities)
    if not given:
        raise ValueError(f"plan: densities={densities!r}; give at least one, such as 0.2")
    for density in given:
        if not isinstance(density, int | float) or not 0 < density <= 1:
            raise ValueError(f"plan: {density!r} among the densities; one is a number above 0 and up to 1")
    return given


@final
@dataclass
class _Measured:
    """What share of its dense time a layer takes as tiles, by pattern and density, and why it has no tiles of one."""

    shares: dict[tuple[str, float], float] = field(default_factory=dict)
    obstacles: dict[str, str] = field(default_factory=dict)
    is_steady: bool = True
    is_reference: bool = False


def _measure_all(
    layers: Mapping[str, SparseLayer],
    seen: Mapping[str, Usage],
    later: Mapping[str, Usage],
    patterns: Sequence[str],
    densities: Sequence[float],
    *,
    seconds: float,
    cache: TimingCache | None,
) -> dict[str, _Measured]:
    """Return what tiles would do for each layer that is called."""
    known: dict[Any, _Measured] = {}
    found = {}
    for name, layer in layers.items():
        if name not in seen:
            continue
        key = (type(layer), tuple(layer.trained.shape), str(layer.extra_repr()), seen[name], later[name])
        if key not in known:
            known[key] = _measure_one(layer, seen[name], later[name], patterns, densities, seconds, cache)
        found[name] = known[key]
    return found


def _measure_one(
    layer: SparseLayer,
    usage: Usage,
    later: Usage,
    patterns: Sequence[str],
    densities: Sequence[float],
    seconds: float,
    cache: TimingCache | None,
) -> _Measured:
    is_convolution = isinstance(layer, nn.Conv2d)
    kernel = tile_kernel(layer.trained.device, layer.trained.dtype, is_convolution=is_convolution)
    found = _Measured(is_reference=kernel == REFERENCE)
    for text in patterns:
        for density in densities:
            try:
                masked = _with_mask(layer, parse(text), density)
            except ValueError as error:
                found.obstacles[text] = str(error)
                continue
            if reason := obstacle(masked, TILES):
                found.obstacles[text] = reason
                continue
            options = {"training": False, "seconds": seconds, "cache": cache}
            times = time_forms(masked, usage, [DENSE, TILES], **options)  # pyrefly: ignore
            if later != usage:
                times |= time_forms(masked, later, [TILES], **options)  # pyrefly: ignore
            found.shares[text, density] = times[TILES].median_s / times[DENSE].median_s
            found.is_steady &= all(timing.is_steady for timing in times.values())
    return found


def _seen_beside_tiles(trial: nn.Module, layers: Mapping[str, SparseLayer], inputs: Sequence[Any]) -> dict[str, Usage]:
    """Return what layers are called with once others are tiles: those return images channels last."""
    handles = [
        layer.register_forward_hook(
            lambda _, x, y: y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y
        )
        for layer in layers.values()
        if isinstance(layer, nn.Conv2d)
    ]
    try:
        return usages(trial, layers, *inputs)
    finally:
        for handle in handles:
            handle.remove()


def _obstacle(pattern: str, measured: Mapping[str, _Measured]) -> str:
    """Say why no layer is faster in a pattern; empty where one is."""
    tried = {key: found for key, found in measured.items() if any(text == pattern for text, _ in found.shares)}
    if any(share < 1 for found in tried.values() for (text, _), share in found.shares.items() if text == pattern):
        return ""
    if not measured:
        return "the model calls no layer that could be sparse"
    if not tried:
        name, found = next(iter(measured.items()))
        return f"no layer can take it; {name or 'the model itself'}: {found.obstacles[pattern]}"
    if all(found.is_reference for found in tried.values()):
        return (
            "no layer is faster: there are no kernels for these layers here, only the reference in plain PyTorch; "
            "'cutwork doctor' says why"
        )
    return "no layer is faster as tiles than dense here, at any of these densities"


def _with_mask(layer: SparseLayer, pattern: Pattern, density: float) -> SparseLayer:
    """Return a copy of a layer with some mask of this pattern; ValueError where it is too coarse for the layer."""
    twin = copy.deepcopy(layer)
    matrix = twin.sparsity.mask_matrix()
    generator = torch.Generator().manual_seed(0)
    shape, transposed = tuple(twin.trained.shape), twin.sparsity.transposed
    if reason := too_coarse(pattern, shape, density, transposed=transposed):
        raise ValueError(reason)
    mask = pattern.project(torch.rand(matrix.shape, generator=generator), density)
    if density < 1 and mask.all():
        raise ValueError(f"{pattern} is too coarse for its {'x'.join(map(str, shape))} weight and keeps all of it")
    fixed = Fixed(
        mask.to(matrix.device),
        twin.weight.shape,  # pyrefly: ignore
        pattern=pattern,
        density=density,
        transposed=transposed,
    )
    del twin.sparsity
    with torch.no_grad():
        twin.weight.mul_(fixed.mask)  # pyrefly: ignore
    twin.add_module("sparsity", fixed)
    return twin


def _time_passes(model: nn.Module, trial: nn.Module, inputs: Sequence[Any]) -> tuple[Pieces, Pieces]:
    """Return where the time of a pass goes: of the model as it is, and of one whose attentions are open.

    Layers are timed inside the model: alone they find their weights in the caches, and what they lose by that would be
    taken for time outside of them.
    """
    # A copy: hooks may count calls, and the mode of each module is its own.
    twin = copy.deepcopy(model).eval()
    opened = any(isinstance(module, OpenAttention) for module in trial.modules())
    layers = sparse_layers(trial)
    at_rest(trial.eval(), layers)

    def timed(subject: nn.Module, names: Iterable[str]) -> Pieces:
        def infer() -> None:
            with torch.no_grad():
                subject(*inputs)

        cuts = {name: subject.get_submodule(name) for name in names}
        return time_pieces(infer, cuts, seconds=PASS_SECONDS)

    if not opened:
        pieces = timed(twin, layers)
        return pieces, pieces
    # The fused path of a closed attention calls none of its projections.
    inside = [name for name, module in twin.named_modules() if isinstance(module, nn.MultiheadAttention)]
    return timed(twin, [name for name in layers if not name.startswith(tuple(inside))]), timed(trial, layers)


def _row(
    name: str,
    layer: SparseLayer,
    usage: Usage,
    dense_s: float,
    found: _Measured,
    pattern: str | None,
    density: float | None,
) -> LayerProposal:
    share = None if pattern is None or density is None else found.shares.get((pattern, density))
    if share is None or pattern is None:
        form, proposed, reason = None, dense_s, found.obstacles.get(pattern or "", "")
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
    yield "Predicted speedup of the whole model by pattern and density, from where the time of its pass goes and what"
    yield "each layer takes as tiles" + ("" if proposal.is_steady else "; ~: runs lie far apart, the machine is busy")
    about = "" if proposal.is_steady else "~"
    densities = list(next(iter(proposal.speedups.values())))
    table = [["", *(f"{density:g}" for density in densities)]]
    for pattern, by_density in proposal.speedups.items():
        table.append([pattern, *(f"{about}{by_density[density]:.2f}x" for density in densities)])
    yield from in_columns(table, "<" + ">" * len(densities))
    yield from (f"{pattern}: {reason}" for pattern, reason in proposal.obstacles.items())
    yield ""
    if proposal.pattern is None:
        yield (
            f"{proposal.goal:g}x is out of reach of these patterns and densities: at most "
            f"{about}{proposal.speedup:.2f}x. About {proposal.outside:.0%} of the time of a dense pass is outside the "
            "layers that could be sparse; fuse() may take some of that off."
        )
        return
    yield from in_columns([HEAD, *map(_cells, proposal.rows)], FLUSH)
    yield ""
    chosen = f"{proposal.pattern} at density {proposal.density:g}"
    yield f"{proposal.goal:g}x is reached by {chosen}, {about}{proposal.speedup:.2f}x:"
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

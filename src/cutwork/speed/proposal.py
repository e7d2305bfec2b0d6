"""Which pattern and density would make a model as fast as wished, predicted from its layers measured here."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from glob import escape
from typing import Any, final

import torch
from torch import nn

from cutwork.evaluation import Call, call_of, copy_model
from cutwork.kernels import REFERENCE
from cutwork.layers.attention import OpenAttention
from cutwork.layers.swap import SparseLayer, candidates, sparse_layers
from cutwork.patterns import Pattern, parse
from cutwork.speed.forms import DENSE, FORMS, TILES
from cutwork.speed.layer_timing import Usage, find_usages
from cutwork.speed.plan import group_by_weight
from cutwork.speed.profile import Profile, profile
from cutwork.speed.timing import MARGIN, STEADY_SPREAD
from cutwork.speed.trial import Trial
from cutwork.text import in_columns, label
from cutwork.training.amounts import why_not_give
from cutwork.training.selection import describe_reasons, match_layers
from cutwork.training.sparsify import sparsify

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

    `patterns` and `density` are what `sparsify` takes; None where the goal is out of reach. `obstacles` says of a
    pattern why no layer would be faster in it, and `left_out` of a layer why it cannot be sparse. `outside` is the
    share of a dense pass that no layer which could be sparse accounts for. What was measured `is_steady` where its runs
    agree within a tenth.
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
    left_out: dict[str, str]

    @property
    def patterns(self) -> dict[str, str] | None:
        """Return the pattern of each layer that should be sparse, by its name, as `sparsify` takes them."""
        if self.pattern is None:
            return None
        return {"*": "dense", **{escape(row.layer): row.pattern for row in self.rows if row.pattern is not None}}

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
    layers: str | Sequence[str] = "*",
) -> Proposal:
    """Return the pattern that reaches a speedup of the whole model with most weights left."""
    goal, offered, amounts = _goal(speedup), _patterns(patterns), _densities(densities)
    if not inputs:
        raise ValueError("how much faster a model gets depends on its inputs; pass them: plan(model, x, speedup=2)")
    call = call_of(model, inputs)
    chosen, left_out = _choose(model, layers)
    # A copy: hooks may count calls, and the mode of each module is its own.
    dense = copy_model(model).eval()
    # With attentions open, and masks only to have layers that can become tiles.
    trial = copy_model(model).eval()
    sparsify(trial, _only(chosen, "unstructured"), density=0.5)
    made_sparse = {name: layer for name, layer in sparse_layers(trial).items() if name in chosen}
    seen = find_usages(trial, made_sparse, call)
    FORMS[DENSE].give(trial, list(made_sparse), training=False)
    tried = {
        (pattern, density): _try(dense, trial, call, list(seen), parse(pattern), density, seconds)
        for pattern in offered
        for density in amounts
    }
    reaching = [
        (density, -offered.index(pattern), pattern)
        for (pattern, density), trial_of in tried.items()
        if trial_of.speedup >= goal
    ]
    density, _, pattern = max(reaching, default=(None, 0, None))
    best = max(tried.values(), key=lambda trial_of: trial_of.speedup)
    shown = best if pattern is None or density is None else tried[pattern, density]
    return Proposal(
        goal=goal,
        pattern=pattern,
        density=density,
        rows=tuple(_row(name, made_sparse[name], seen[name], shown, pattern, density) for name in seen),
        speedups={pattern: {density: tried[pattern, density].speedup for density in amounts} for pattern in offered},
        obstacles={
            pattern: reason
            for pattern in offered
            if (reason := _why_not_gain([tried[pattern, density] for density in amounts]))
        },
        dense_s=shown.whole_s,
        outside=shown.dense.outside_s / max(shown.dense.total_s, 1e-12),
        is_steady=all(trial_of.is_steady for trial_of in tried.values()),
        left_out=left_out,
    )


def _choose(model: nn.Module, layers: str | Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the layers to make sparse, and of those that cannot be the reasons."""
    wanted = _matching(candidates(model), layers)
    if not wanted:
        raise ValueError("no layer of this model could be made sparse: it has no dense linear layer or 2-d convolution")
    left_out: dict[str, str] = {}
    try:
        match_layers(model, _only(wanted, "unstructured"), left_out)
    except ValueError as error:
        raise ValueError(f"no layer of this model could be made sparse: {error}") from error
    return [name for name in wanted if name not in left_out], left_out


def _only(names: Iterable[str], pattern: str | Pattern) -> dict[str, str | Pattern]:
    """Return what makes these layers sparse, and no others."""
    return {"*": DENSE, **dict.fromkeys(map(escape, names), pattern)}


def _matching(found: Iterable[str], layers: str | Sequence[str]) -> list[str]:
    """Return the names that globs choose, of which the last that matches decides; one after '!' leaves layers out."""
    if not isinstance(layers, str | Sequence) or not all(isinstance(glob, str) for glob in layers) or not layers:
        raise TypeError(
            f"layers={layers!r} ({type(layers).__name__}); give a glob over layer names or several, with "
            "'!' before those to leave out"
        )
    globs = [layers] if isinstance(layers, str) else list(layers)
    is_wanted = dict.fromkeys(found, globs[0].startswith("!"))
    for glob in globs:
        matched = [name for name in is_wanted if fnmatchcase(name, glob.removeprefix("!"))]
        if not matched and is_wanted:
            raise ValueError(
                f"no layer that could be sparse matches {glob!r}; they are {', '.join(map(repr, is_wanted))}"
            )
        is_wanted |= dict.fromkeys(matched, not glob.startswith("!"))
    return [name for name, wanted in is_wanted.items() if wanted]


def _goal(speedup: float) -> float:
    if not isinstance(speedup, int | float) or not 1 < speedup < math.inf:
        raise ValueError(f"speedup={speedup!r}; give a number above 1, such as 1.5")
    return speedup


def _patterns(patterns: str | Pattern | Sequence[str | Pattern]) -> list[str]:
    given = [patterns] if isinstance(patterns, str) or not isinstance(patterns, Iterable) else list(patterns)
    if not given:
        raise ValueError(f"patterns={patterns!r}; name at least one, such as 'block:16'")
    return [str(parse(pattern)) for pattern in given]


def _densities(densities: float | Sequence[float]) -> list[float]:
    given = [densities] if isinstance(densities, str) or not isinstance(densities, Iterable) else list(densities)
    if not given:
        raise ValueError(f"densities={densities!r}; give at least one, such as 0.2")
    for density in given:
        if not isinstance(density, int | float) or not 0 < density <= 1:
            raise ValueError(f"{density!r} is among the densities; each is a number above 0 and up to 1")
    return given


@final
@dataclass(frozen=True)
class _Trial:
    """Where the time of a pass goes in a pattern at a density, dense and as tiles, and which layers have no tiles, why.

    `whole_s` is what the model takes as it is, with its attentions closed; `kernels` are those that multiply tiles.
    """

    whole_s: float
    dense: Profile
    tiles: Profile
    obstacles: dict[str, str]
    kernels: set[str]
    is_steady: bool

    @property
    def speedup(self) -> float:
        """Return how many times faster the model is if layers that tiles make slower stay dense."""
        gaining = {name for name in self.dense.layers if self.gains(name)}
        if not gaining:
            return 1.0
        kept = sum((self.tiles if name in gaining else self.dense).layers[name] for name in self.dense.layers)
        return self.whole_s / max(kept + self.tiles.outside_s, 1e-12)

    def gains(self, name: str) -> bool:
        """Say whether a layer is faster as tiles, by more than may be chance."""
        return name not in self.obstacles and MARGIN * self.tiles.layers[name] <= self.dense.layers[name]


def _try(
    model: nn.Module,
    trial: nn.Module,
    call: Call,
    names: Sequence[str],
    pattern: Pattern,
    density: float,
    seconds: float,
) -> _Trial:
    """Pack a copy of a model and time its passes beside dense ones; layers without tiles stay dense."""
    packed, obstacles = _pack(model, trial, call, names, pattern, density)

    def timed(subject: nn.Module) -> tuple[Callable[[], object], dict[str, nn.Module]]:
        def infer() -> None:
            with torch.no_grad():
                call(subject)

        # The fused path of a closed attention calls none of its projections.
        return infer, {name: subject.get_submodule(name) for name in names if _is_called(subject, name)}

    passes = {"as it is": timed(model), "tiles": timed(packed)}
    if any(isinstance(module, OpenAttention) for module in trial.modules()):
        passes["dense"] = timed(trial)
    # A whole pass varies more than a layer alone.
    profiles = profile(passes, seconds=5 * seconds)
    is_steady = all(each.spread <= STEADY_SPREAD for each in profiles.values())
    whole = profiles["as it is"]
    layers = sparse_layers(packed)
    kernels = {layers[name].describe_weight().kernel for name in names if name not in obstacles}
    return _Trial(whole.total_s, profiles.get("dense", whole), profiles["tiles"], obstacles, kernels, is_steady)


def _is_called(model: nn.Module, name: str) -> bool:
    parents = [name[:place] for place in range(len(name)) if name[place] == "."]
    return not any(type(model.get_submodule(parent)) is nn.MultiheadAttention for parent in ["", *parents])


def _pack(
    model: nn.Module, trial: nn.Module, call: Call, names: Sequence[str], pattern: Pattern, density: float
) -> tuple[nn.Module, dict[str, str]]:
    """Return a copy of a model with layers as tiles in a pattern, and the reasons of those that stay dense."""
    shaped = sparse_layers(trial)
    obstacles = {name: reason for name in names if (reason := _why_not_mask(shaped[name], pattern, density))}
    packed = copy_model(model)
    # Those that stay dense have masks too, so that the same attentions are open.
    sparsify(packed, _only(names, pattern) | _only(obstacles, "unstructured"), density=density)
    layers = sparse_layers(packed)
    groups = group_by_weight({name: layers[name] for name in names})
    for first, sharers in groups.items():
        if first not in obstacles and (reason := _why_not_tile(first, layers[first], pattern, density)):
            obstacles |= dict.fromkeys(sharers, reason)
    able = {first: sharers for first, sharers in groups.items() if first not in obstacles}
    tried = Trial(packed, call, able, training=False)
    FORMS[TILES].give(packed, [name for sharers in able.values() for name in sharers], training=False)
    for first, harm in tried.take_back().items():
        obstacles |= dict.fromkeys(able[first], harm)
    FORMS[DENSE].give(packed, list(obstacles), training=False)
    return packed, obstacles


def _why_not_mask(layer: SparseLayer, pattern: Pattern, density: float) -> str:
    """Say why a layer cannot have a mask of a pattern at a density; empty where it can."""
    try:
        pattern.check(tuple(layer.sparsity.mask_matrix().shape))
    except ValueError as error:
        return str(error)
    return why_not_give(pattern, layer.sparsity.layout, density)


def _why_not_tile(name: str, layer: SparseLayer, pattern: Pattern, density: float) -> str:
    """Say why a layer with such a mask cannot be tiles, or cannot gain by it; empty where it may."""
    if density < 1 and layer.sparsity.mask_matrix().all():
        return f"{pattern} is too coarse for its {'x'.join(map(str, layer.trained.shape))} weight and keeps all of it"
    return FORMS[TILES].why_not(name, layer)


def _why_not_gain(trials: Sequence[_Trial]) -> str:
    """Say why no layer is faster in a pattern at any density; empty where one is."""
    names = list(trials[0].dense.layers)
    if any(trial.gains(name) for trial in trials for name in names):
        return ""
    if not names:
        return "the model calls no layer that could be sparse"
    tiled = [name for name in names if any(name not in trial.obstacles for trial in trials)]
    if not tiled:
        return f"no layer can take it; {label(names[0])}: {trials[0].obstacles[names[0]]}"
    if all(trial.kernels <= {REFERENCE} for trial in trials):
        return (
            "no layer is faster: there are no kernels for these layers here, only the reference in plain PyTorch; "
            "'cutwork doctor' says why"
        )
    return "no layer is faster as tiles than dense here, at any of these densities"


def _row(
    name: str, layer: SparseLayer, usage: Usage, trial: _Trial, pattern: str | None, density: float | None
) -> LayerProposal:
    dense_s, tiles_s = trial.dense.layers[name], trial.tiles.layers[name]
    is_sparse = pattern is not None and trial.gains(name)
    if is_sparse:
        reason = f"{dense_s / max(tiles_s, 1e-12):.1f}x faster"
    elif pattern is None or name in trial.obstacles:
        reason = trial.obstacles.get(name, "")
    else:
        reason = f"tiles take {tiles_s / max(dense_s, 1e-12):.2f}x as long here"
    return LayerProposal(
        layer=name,
        shape=tuple(layer.sparsity.mask_matrix().shape),
        input=usage.shape,
        pattern=pattern if is_sparse else None,
        density=density if is_sparse and density is not None else 1.0,
        dense_s=dense_s,
        proposed_s=tiles_s if is_sparse else dense_s,
        reason=reason,
    )


HEAD = ("layer", "shape", "input", "form", "dense", "then", "")
FLUSH = "<<<<>><"


def _lines(proposal: Proposal) -> Iterator[str]:
    yield "Predicted speedup of the whole model by pattern and density, from what each layer takes inside it as tiles"
    yield "and dense, whichever is less" + (
        "" if proposal.is_steady else "; ~: runs lie far apart, the machine is busy"
    )
    about = "" if proposal.is_steady else "~"
    densities = list(next(iter(proposal.speedups.values())))
    table = [["", *(f"{density:g}" for density in densities)]]
    for pattern, by_density in proposal.speedups.items():
        table.append([pattern, *(f"{about}{by_density[density]:.2f}x" for density in densities)])
    yield from in_columns(table, "<" + ">" * len(densities))
    yield from (f"{pattern}: {reason}" for pattern, reason in proposal.obstacles.items())
    yield from (f"stays dense: {line}" for line in describe_reasons(proposal.left_out))
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
        label(row.layer),
        "x".join(map(str, row.shape)),
        "x".join(map(str, row.input)),
        row.pattern or "dense",
        f"{row.dense_s * 1e3:.3g} ms",
        f"{row.proposed_s * 1e3:.3g} ms",
        row.reason,
    ]

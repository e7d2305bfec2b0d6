"""One sparse model beside its dense form, whole and layer by layer."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.benchmark.comparison import Candidate, Group, Run, Runnable
from cutwork.benchmark.models import TOLERANCES, tensor_of
from cutwork.benchmark.passes import DTYPES
from cutwork.benchmark.results import DENSE, Results, Row, duration
from cutwork.columns import in_columns
from cutwork.layers.swap import sparse_layers

SPARSE = "sparse"
# The whole model gets this share of the time, its layers the rest.
SHARE_OF_MODEL = 0.5
HEAD = ("layer", "pattern", "density", "dense", "sparse", "x dense", "ideal", "error")
FLUSH = "<<>>>>>>"


@final
@dataclass(frozen=True)
class ModelComparison:
    """What `benchmark` returns: the whole model and each of its sparse layers, beside their dense forms."""

    results: Results

    @property
    def ratio(self) -> float | None:
        """Return how many times as fast as the dense model the sparse one is; None if its outputs differ."""
        return next(row.ratio for row in self.results.rows if row.what == "model" and row.form == SPARSE)

    def __str__(self) -> str:
        """Write a table: the whole model first, then the layers in the order of the model."""
        rows = self.results.rows
        dense = {row.shape: row for row in rows if row.form == DENSE}
        lines = [_line(dense[row.shape], row) for row in rows if row.form == SPARSE]
        return "\n".join(
            [str(self.results.machine), "", *in_columns([HEAD, *lines], FLUSH, gap=" "), *self.results.notes]
        )


def benchmark(model: nn.Module, *, against: nn.Module, inputs: Any, seconds: float = 10.0) -> ModelComparison:
    """Measure a sparse model against a dense one that computes the same: forward, whole and layer by layer.

    `inputs` is what the models are called with: a tensor, several in a tuple, or a mapping by name. A model or layer
    whose outputs differ from the dense one's gets no time and no ratio: take `bake` of a copy as the dense form. Layers
    run on random numbers of the shapes that they see. Both models are put into evaluation for the measurement.

    >>> import copy
    >>> from cutwork import bake, pack, sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.25)
    >>> dense = copy.deepcopy(model)
    >>> masks = bake(dense)
    >>> plan = pack(model, forms="tiles")
    >>> compared = benchmark(model, against=dense, inputs=torch.rand(8, 64), seconds=0.01)
    >>> compared.ratio is not None, [row.shape for row in compared.results.rows if row.form == "sparse"]
    (True, ['the whole model', '0', '2'])
    """
    arguments, options = _call_of(inputs)
    layers = sparse_layers(model)
    if not layers:
        raise ValueError("benchmark: the model has no sparse layer; sparsify() it, or load a sparse checkpoint")
    training = [(module, module.training) for side in (model, against) for module in side.modules()]
    try:
        model.eval()
        against.eval()
        with torch.no_grad():
            seen = _inputs_of(layers, model, arguments, options)
        run = Run()
        run.compare(_whole(model, against, arguments, options), seconds=SHARE_OF_MODEL * seconds)
        for name, x in seen.items():
            twin = _twin(against, name)
            if twin is None:
                run.notes[f"{name} has no dense form of this name to compare with"] = None
                continue
            group = _layer(name, layers[name], twin, x)
            run.compare(group, seconds=(1 - SHARE_OF_MODEL) * seconds / len(seen))
    finally:
        for module, was_training in training:
            module.training = was_training
    return ModelComparison(run.results(""))


def _call_of(inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), inputs
    return (inputs if isinstance(inputs, tuple | list) else (inputs,)), {}


def _inputs_of(
    layers: Mapping[str, nn.Module], model: nn.Module, arguments: Sequence[Any], options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return random numbers of the shape and layout of the first input that each layer sees, for those that run."""
    seen: dict[str, Tensor] = {}

    def look(name: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        seen.setdefault(name, torch.randn_like(given[0]))

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(partial(look, name)))
        model(*arguments, **options)
    return {name: seen[name] for name in layers if name in seen}


def _whole(model: nn.Module, against: nn.Module, arguments: Sequence[Any], options: Mapping[str, Any]) -> Group:
    first = tensor_of([held for held in (*arguments, *options.values()) if isinstance(held, Tensor)])
    weights = next(parameter for parameter in against.parameters())
    row = Row(
        "model", "the whole model", len(first), "forward", "", 1.0, DENSE, _precision(weights), equal=False, error=None
    )
    calls = [partial(side, *arguments, **options) for side in (against, model)]
    return _group(row, *calls, model=model)


def _layer(name: str, layer: nn.Module, twin: nn.Module, x: Tensor) -> Group:
    tokens = len(x) if x.ndim == 4 else x.numel() // x.shape[-1]
    row = Row("layer", name, tokens, "forward", "", 1.0, DENSE, _precision(x), equal=False, error=None)
    return _group(row, partial(twin, x), partial(layer, x), model=layer)


def _group(row: Row, dense: Any, sparse: Any, *, model: nn.Module) -> Group:
    layers = sparse_layers(model).values()
    kept = sum(int(layer.sparsity.mask.sum()) for layer in layers)
    density = kept / sum(layer.sparsity.mask.numel() for layer in layers)
    patterns = " ".join(dict.fromkeys(str(layer.sparsity.pattern) for layer in layers))
    # Of a whole model the layers that are not sparse count too, so one over the density is none of its limits.
    ideal = 1 / density if row.what == "layer" else 1.0
    described = replace(row, pattern=patterns, density=density, form=SPARSE, ideal=ideal)
    tolerance = TOLERANCES["forward"][row.precision] if row.what == "model" else None

    def results(call: Any) -> list[Tensor]:
        return [tensor_of(call()).float()]

    candidates = tuple(
        Candidate(
            about,
            build=lambda call=call: Runnable(call, partial(results, call)),
            expected=partial(results, dense),
            tolerance=tolerance,
        )
        for about, call in ((row, dense), (described, sparse))
    )
    return Group(row.shape, lambda: candidates)


def _twin(against: nn.Module, name: str) -> nn.Module | None:
    return dict(against.named_modules(remove_duplicate=False)).get(name)


def _precision(tensor: Tensor) -> str:
    for name, dtype in DTYPES.items():
        if tensor.dtype == dtype:
            return name
    raise ValueError(
        f"benchmark: the model computes in {tensor.dtype}; measured are {', '.join(map(str, DTYPES.values()))}"
    )


def _line(dense: Row, row: Row) -> tuple[str, ...]:
    wrong = "differs" if row.error is None else f"{row.error:.0e}"
    ideal = f"{row.ideal:.2f}" if row.what == "layer" else ""
    start = (row.shape, row.pattern, f"{row.density:.3g}", duration(dense.median_ms))
    if row.ratio is None:
        return *start, "differs", "", ideal, wrong
    return *start, duration(row.median_ms), f"{row.ratio:.2f}", ideal, wrong

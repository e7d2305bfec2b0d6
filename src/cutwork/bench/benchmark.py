"""One sparse model beside its dense form, whole and layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

from torch import Tensor, nn

from cutwork.bench.passes import DTYPES
from cutwork.bench.results import Measurement, Results, time_of
from cutwork.bench.run import Candidate, Group, Run, Runnable, tensor_of
from cutwork.evaluation import Call, call_of, in_evaluation
from cutwork.layers.sparse import Sparse
from cutwork.speed.forms import DENSE, find_precisions, form_of
from cutwork.speed.layer_timing import find_usages
from cutwork.speed.tolerance import MEASURED, loosest
from cutwork.text import in_columns

SPARSE = "sparse"
WHOLE = "the whole model"
# The whole model gets this share of the time, its layers the rest.
SHARE_OF_MODEL = 0.5
HEAD = ("layer", "form", "pattern", "density", "dense", "sparse", "x dense", "ideal", "error")
FLUSH = "<<<>>>>>>"


@final
@dataclass(frozen=True)
class ModelComparison:
    """What `benchmark` returns: the whole model and each of its sparse layers, beside their dense forms."""

    results: Results
    # Of each sparse layer that it measured, and of the whole model: dense, tiles, tiles-bf16 or tiles-int8.
    forms: Mapping[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Return how many times as fast as the dense model the sparse one is; None if its outputs differ."""
        return next(row.ratio for row in self.results.rows if row.what == "model" and row.form == SPARSE)

    def __str__(self) -> str:
        """Write a table: the whole model first, then the layers in the order of the model."""
        rows = self.results.rows
        dense = {row.shape: row for row in rows if row.form == DENSE}
        lines = [_line(dense[row.shape], row, self.forms.get(row.shape, "")) for row in rows if row.form == SPARSE]
        return "\n".join(
            [str(self.results.machine), "", *in_columns([HEAD, *lines], FLUSH, gap=" "), *self.results.notes]
        )


def benchmark(model: nn.Module, *, against: nn.Module, inputs: Any, seconds: float = 10.0) -> ModelComparison:
    """Measure a sparse model against a dense one that computes the same: forward, whole and layer by layer.

    `inputs` is what the models are called with: a tensor, several in a tuple, or a mapping by name, which may be the
    last of several. A model or layer whose outputs differ from the dense one's gets no time and no ratio: take `bake`
    of a copy as the dense form. Layers run on random numbers of the shapes that they see. Both models are put into
    evaluation for the measurement.

    >>> import copy
    >>> import torch
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
    call = call_of(model, inputs if isinstance(inputs, tuple | list) else (inputs,))
    layers = _sparse_layers(model)
    if not layers:
        raise ValueError("the model has no sparse layer; sparsify() it, or load a sparse checkpoint")
    if seconds <= 0:
        raise ValueError(f"seconds={seconds:g}; give more than 0")
    with in_evaluation(model), in_evaluation(against):
        seen = find_usages(model, layers, call)
        run = Run()
        run.compare(_whole(model, against, call), seconds=SHARE_OF_MODEL * seconds)
        for name, usage in seen.items():
            twin = _twin(against, name)
            if twin is None:
                run.notes[f"{name} has no dense form of this name to compare with"] = None
                continue
            x = usage.example(layers[name].describe_weight().numbers.device)
            group = _layer(name, layers[name], twin, x)
            run.compare(group, seconds=(1 - SHARE_OF_MODEL) * seconds / len(seen))
    forms = {name: form_of(layers[name]) for name in seen}
    return ModelComparison(run.results(""), {WHOLE: " ".join(dict.fromkeys(forms.values())), **forms})


def _whole(model: nn.Module, against: nn.Module, call: Call) -> Group:
    first = tensor_of([held for held in (*call.args, *call.kwargs.values()) if isinstance(held, Tensor)])
    weights = next(parameter for parameter in against.parameters())
    row = Measurement.dense("model", WHOLE, len(first), "forward", _precision(weights))
    calls = [partial(call, side) for side in (against, model)]
    return _group(row, *calls, model=model)


def _layer(name: str, layer: nn.Module, twin: nn.Module, x: Tensor) -> Group:
    tokens = len(x) if x.ndim == 4 else x.numel() // x.shape[-1]
    row = Measurement.dense("layer", name, tokens, "forward", _precision(x))
    return _group(row, partial(twin, x), partial(layer, x), model=layer)


def _group(row: Measurement, dense: Any, sparse: Any, *, model: nn.Module) -> Group:
    layers = list(_sparse_layers(model).values())
    weights = [layer.describe_weight() for layer in layers]
    density = sum(weight.num_kept for weight in weights) / sum(weight.num_weights for weight in weights)
    patterns = " ".join(dict.fromkeys(str(weight.pattern) for weight in weights))
    # Of a whole model the layers that are not sparse count too, so one over the density is none of its limits.
    ideal = 1 / density if row.what == "layer" else 1.0
    described = replace(row, pattern=patterns, density=density, form=SPARSE, ideal=ideal)
    tolerances = loosest(MEASURED, [row.precision, *find_precisions(map(form_of, layers))])
    tolerance = tolerances.model if row.what == "model" else tolerances.layer

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
    return Group(row.shape, lambda: candidates, is_essential=True)


def _sparse_layers(model: nn.Module) -> dict[str, Sparse]:
    """Return the layers with a sparse weight by name, also those that no longer train."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Sparse)}


def _twin(against: nn.Module, name: str) -> nn.Module | None:
    return dict(against.named_modules(remove_duplicate=False)).get(name)


def _precision(tensor: Tensor) -> str:
    for name, dtype in DTYPES.items():
        if tensor.dtype == dtype:
            return name
    raise ValueError(
        f"the model computes in {tensor.dtype}; what can be measured is {', '.join(map(str, DTYPES.values()))}"
    )


def _line(dense: Measurement, row: Measurement, form: str) -> tuple[str, ...]:
    wrong = "not finite" if row.error is None else f"{row.error:.0e}"
    ideal = f"{row.ideal:.2f}" if row.what == "layer" else ""
    start = (row.shape, form, row.pattern, f"{row.density:.3g}", time_of(dense))
    if row.ratio is None:
        return *start, "differs", "", ideal, wrong
    return *start, time_of(row), f"{row.ratio:.2f}", ideal, wrong

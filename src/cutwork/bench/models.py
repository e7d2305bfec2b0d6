"""Whole models, forward and a training step, with compressed layers beside their dense twins."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import product
from typing import Literal, final

import torch
from torch import Tensor, nn

from cutwork.bench.baselines import transform_of
from cutwork.bench.choices import check_counts, check_given
from cutwork.bench.layers import Choices, dense_forms
from cutwork.bench.passes import DTYPES
from cutwork.bench.results import Measurement
from cutwork.bench.run import Candidate, Group, Runnable, tensor_of
from cutwork.costs.flops import flops
from cutwork.layers.compressed import Compressed
from cutwork.layers.swap import candidates as layers_that_can_be_sparse
from cutwork.layers.swap import sparse_layers
from cutwork.memory import check_memory
from cutwork.methods import RigL
from cutwork.models.named import FORWARD_ONLY, Subject, make_subject, title_of
from cutwork.patterns import Pattern
from cutwork.speed.forms import DENSE
from cutwork.speed.fusion import fuse
from cutwork.speed.packing import pack
from cutwork.speed.tolerance import MEASURED, MEASURED_STEP
from cutwork.text import did_you_mean
from cutwork.training.sparsifier import Sparsifier
from cutwork.training.sparsify import sparsify

PACKED, FUSED, MOVING = "packed", "fused", "moving"
# By the pass that is measured. A `moving` model is a packed one of which each step ends in a move of RigL.
MODEL_FORMS = {"forward": (DENSE, "compiled", PACKED, FUSED), "step": (DENSE, "compiled", PACKED, FUSED, MOVING)}
# After so many steps methods move their masks, unless they are told otherwise.
USUAL_EVERY = 100
LAYERS: dict[str, Callable[[str, type[nn.Module]], bool]] = {
    "all": lambda name, kind: True,
    "linears": lambda name, kind: kind is not nn.Conv2d,
    "mlp": lambda name, kind: kind is not nn.Conv2d and "mlp" in name,
    "convs": lambda name, kind: kind is nn.Conv2d,
}
LEARNING_RATE = 1e-3
# What results call a model, by the pass that is measured.
WHAT = {"forward": "model", "step": "train"}


def groups(*, names: Sequence[str], layers: Sequence[str], batches: Sequence[int], choices: Choices) -> list[Group]:
    """Return what to measure: a group of all densities for each model, choice of layers, batch, precision, pattern."""
    for given, of, example in ((names, "model", "tiny"), (layers, "layer", "all")):
        check_given(of, given, example)
    patterns = choices.checked_patterns()
    check_counts("batch", batches)
    if "step" in choices.passes and (refused := [name for name in names if name in FORWARD_ONLY]):
        raise ValueError(f"train cannot take {refused[0]}: it decodes one token from a cache; `model` measures that")
    found = []
    for name, chosen, batch, precision, work, pattern in product(
        names, layers, batches, choices.precisions, choices.passes, patterns
    ):
        title = title_of(name) if chosen == "all" else f"{title_of(name)} {chosen}"
        about = Measurement.dense(WHAT[work], title, batch, work)
        make = partial(_seeded, name, choices.seed)
        build = partial(_candidates, about, make, chosen, pattern, precision, choices)
        found.append(Group(f"{about.what} {title}, batch {batch}, {work}, {precision}, {pattern}", build))
    return found


def names_of(model: nn.Module, choice: str) -> list[str]:
    """Return the layers of a model by the name of a choice, or by a glob; never the first convolution.

    >>> names_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)), "all")
    ['1', '2']
    """
    found = layers_that_can_be_sparse(model)
    convolutions = [name for name, layer in found.items() if layer.kind is nn.Conv2d]
    wanted = LAYERS.get(choice, lambda name, kind: fnmatchcase(name, choice))
    names = [name for name, layer in found.items() if wanted(name, layer.kind) and name not in convolutions[:1]]
    if not names:
        raise ValueError(
            f"no layer is meant by {choice!r}{did_you_mean(choice, [*LAYERS, *found])}; write {', '.join(LAYERS)} or a "
            f"glob over the names: {', '.join(found)}"
        )
    return names


def _seeded(name: str, seed: int) -> Subject:
    torch.manual_seed(seed)
    return make_subject(name)


def _candidates(
    about: Measurement,
    make: Callable[[], Subject],
    choice: str,
    pattern: Pattern,
    precision: str,
    choices: Choices,
) -> list[Candidate]:
    made = make()
    dense = made.model
    with torch.device("meta"):
        num_bytes = sum(held.nbytes for held in made.inputs(about.tokens))
    check_memory(f"the input of {about.shape} in batch {about.tokens}", num_bytes)
    inputs = made.inputs(about.tokens)
    names = names_of(dense, choice)
    # All operations are those of a sample, as often as there are samples: counting them takes a pass.
    sample, few = made.inputs(1), made.inputs(min(2, about.tokens))
    operations = about.tokens * flops(dense, *sample).dense
    expected = _reference(dense, about.work, inputs)
    found = [_candidate(about, dense, expected, inputs, operations)]
    found += [
        _candidate(replace(about, form=form, precision=kind), dense, expected, inputs, operations)
        for form, kind in dense_forms(choices.forms, precision)
        if form in MODEL_FORMS[about.work]
    ]
    for density in choices.densities:
        row = replace(about, pattern=str(pattern), density=density, form=PACKED, precision=precision)
        prepare = cache(partial(_prepare, row, dense, names, pattern, inputs, sample))
        found += [
            _sparse(replace(row, form=form), prepare, inputs, few) for form in (PACKED, FUSED) if form in choices.forms
        ]
        if MOVING in choices.forms and precision == "fp32":
            found.append(_moving(replace(row, form=MOVING), prepare, dense, names, pattern, inputs))
    return found


def cost_of_moves(rows: Sequence[Measurement]) -> str:
    """Say how much longer training takes when masks move as often as usual; empty where nothing moved."""
    packed = {_key(row): row.median_ms for row in rows if row.form == PACKED and row.median_ms}
    said = [
        f"{row.shape}, {row.pattern} at {row.density:.3g}: "
        f"{(row.median_ms - packed[_key(row)]) / packed[_key(row)] / USUAL_EVERY:.1%}"
        for row in rows
        if row.form == MOVING and row.median_ms and _key(row) in packed
    ]
    if not said:
        return ""
    return f"Training by RigL, with a move every {USUAL_EVERY} steps, takes longer than packed by: {'; '.join(said)}."


def _key(row: Measurement) -> tuple[str, int, str, float]:
    return row.shape, row.tokens, row.pattern, row.density


@final
@dataclass(frozen=True)
class Prepared:
    """A model whose layers are sparse at some density: stored dense, and packed; with what is known about it."""

    masked: nn.Module
    packed: nn.Module
    row: Measurement
    operations: int
    note: str
    expected: Callable[[], Sequence[Tensor]]


def _prepare(
    row: Measurement,
    dense: nn.Module,
    names: Sequence[str],
    pattern: Pattern,
    inputs: tuple[Tensor, ...],
    sample: tuple[Tensor, ...],
) -> Prepared:
    masked = copy.deepcopy(dense)
    sparsify(masked, dict.fromkeys(names, pattern), density=row.density, rescale=False)
    cost = flops(masked, *sample)
    masks = [layer.sparsity.mask for layer in sparse_layers(masked).values()]
    kept = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    row = replace(row, density=kept, ideal=cost.dense / cost.sparse)
    packed = copy.deepcopy(masked)
    pack(packed, forms="tiles")
    note = " ".join(filter(None, (_left_dense(packed, pattern), _memory(packed, masked, row))))
    return Prepared(masked, packed, row, row.tokens * cost.sparse, note, _reference(masked, row.work, inputs))


def _sparse(
    row: Measurement, prepare: Callable[[], Prepared], inputs: tuple[Tensor, ...], few: tuple[Tensor, ...]
) -> Candidate:
    """Return a form of a sparse model, which is made only when it is built."""

    def build() -> Runnable:
        prepared = prepare()
        model = prepared.packed
        if row.form == FUSED:
            model = copy.deepcopy(model).train(row.work == "step")
            fuse(model, *few)
        known = replace(prepared.row, form=row.form)
        candidate = _candidate(known, model, prepared.expected, inputs, prepared.operations)
        return replace(candidate.build(), candidate=replace(candidate, note=prepared.note))

    return Candidate(row, build, lambda: prepare().expected(), tolerance=_tolerance(row))


def _moving(
    row: Measurement,
    prepare: Callable[[], Prepared],
    dense: nn.Module,
    names: Sequence[str],
    pattern: Pattern,
    inputs: tuple[Tensor, ...],
) -> Candidate:
    """Return a sparse model that moves its masks in each step; the right results are those of dense storage."""

    def train(storage: Literal["dense", "compressed"]) -> Runnable:
        model, method = copy.deepcopy(dense), RigL(every=1, until=10**9)
        patterns = dict.fromkeys(names, pattern)
        sparsifier = sparsify(model, patterns, density=row.density, method=method, storage=storage)
        return _runnable("step", model, inputs, DENSE, sparsifier)

    expected = cache(lambda: train("dense").results())

    def build() -> Runnable:
        known = Candidate(replace(prepare().row, form=row.form), build, expected, tolerance=_tolerance(row))
        return replace(train("compressed" if pattern.tiling else "dense"), candidate=known)

    return Candidate(row, build, expected, tolerance=_tolerance(row))


def _candidate(
    row: Measurement,
    model: nn.Module,
    expected: Callable[[], Sequence[Tensor]],
    inputs: tuple[Tensor, ...],
    operations: int,
) -> Candidate:
    """Return a form of a model."""
    step = row.work == "step"

    def build() -> Runnable:
        ready = _build(row, model, inputs)
        # It is itself what the others are compared with: computing that twice would take long and show nothing.
        return replace(ready, results=expected) if row.is_base else ready

    return Candidate(
        row,
        build,
        expected,
        operations=float(operations * (3 if step else 1)),
        bytes=None if step else float(_bytes(model, DTYPES[row.precision])),
        tolerance=_tolerance(row),
    )


def _tolerance(row: Measurement) -> float:
    return MEASURED_STEP[row.precision] if row.work == "step" else MEASURED[row.precision].model


def _reference(model: nn.Module, work: str, inputs: tuple[Tensor, ...]) -> Callable[[], Sequence[Tensor]]:
    """Return what computes the right results once, on PyTorch's dense kernels in fp32."""
    return cache(lambda: _runnable(work, _own(model, work, "fp32"), inputs, DENSE).results())


def _build(row: Measurement, model: nn.Module, inputs: tuple[Tensor, ...]) -> Runnable:
    dtype = DTYPES[row.precision]
    own = _own(model, row.work, row.precision)
    moved = tuple(held.to(dtype) if held.is_floating_point() else held for held in inputs)
    return _runnable(row.work, own, moved, row.form)


def _own(model: nn.Module, work: str, precision: str) -> nn.Module:
    """Return a copy that may train or be rounded; a forward pass in fp32 leaves a model as it is, however large."""
    return model if (work, precision) == ("forward", "fp32") else copy.deepcopy(model).to(DTYPES[precision])


def _runnable(
    work: str, model: nn.Module, inputs: tuple[Tensor, ...], form: str, sparsifier: Sparsifier | None = None
) -> Runnable:
    transform = transform_of(form)
    if work == "forward":
        forward = transform(model.eval())
        return Runnable(lambda: forward(*inputs), lambda: [tensor_of(forward(*inputs))])
    forward = transform(model.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    if sparsifier is not None:
        sparsifier.attach(optimizer)

    @torch.enable_grad()
    def run() -> Tensor:
        optimizer.zero_grad()
        y = tensor_of(forward(*inputs))
        # Any loss will do: what it costs does not depend on its value.
        y.float().square().mean().backward()
        optimizer.step()
        return y

    @torch.no_grad()
    def results() -> list[Tensor]:
        # The second output has seen what the step did to the weights; a second step would take three times as long.
        return [run().detach(), tensor_of(model(*inputs))]

    return Runnable(run, results)


def _left_dense(packed: nn.Module, pattern: Pattern) -> str:
    """Say how many sparse layers still multiply their whole weights; empty where none does."""
    layers = sparse_layers(packed)
    left = [name for name, layer in layers.items() if not isinstance(layer, Compressed)]
    if not left:
        return ""
    return f"{pattern}: of {len(layers)} sparse layers {len(left)} run on dense kernels (first: {left[0]})."


def _memory(packed: nn.Module, masked: nn.Module, row: Measurement) -> str:
    """Say what training the sparse layers takes in memory, as a share of what the dense ones take."""
    if row.work != "step":
        return ""
    dense = sum(layer.trained.nbytes for layer in sparse_layers(masked).values())
    layers = sparse_layers(packed).values()
    kept = sum(layer.trained.nbytes for layer in layers)
    index = sum(buffer.nbytes for layer in layers for buffer in layer.sparsity.buffers())
    # The weight, its gradient and the two moments of AdamW.
    share = (4 * kept + index) / (4 * dense)
    about = f"{row.shape}, {row.pattern}, {row.density:.3g}"
    return f"{about}: weights, gradients, moments and index take {share:.1%} of dense."


def _bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of all weights and indices; of tables of embeddings only single rows are read."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    held = [one for one in (*model.parameters(), *model.buffers()) if id(one) not in tables]
    return sum(one.numel() * (dtype.itemsize if one.is_floating_point() else one.itemsize) for one in held)

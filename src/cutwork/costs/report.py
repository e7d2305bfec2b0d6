"""What is sparse in a model and how much of it, as a table and as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from textwrap import wrap
from typing import Any, final

from torch import Tensor, nn

from cutwork.costs.flops import Flops, LayerFlops, flops, has_matrix
from cutwork.layers.sparse import Sparse, WeightFacts
from cutwork.methods import Method, find_method
from cutwork.sparsity.base import Sparsity
from cutwork.text import in_columns, label, shorten

DENSE = "dense"
REST = "(all else)"
WIDTH = 120
# Each column with the side on which it is flush.
COLUMNS = {
    "layer": "<",
    "kind": "<",
    "shape": "<",
    "pattern": "<",
    "density": ">",
    "parameters": ">",
    "FLOPs": ">",
    "bytes": ">",
    "kernel": "<",
}
GAP = "  "


@final
@dataclass(frozen=True)
class Row:
    """One layer, or several taken together: what there is of it, and what its mask keeps.

    `bytes` is the memory its parameters take as they are stored, `kept_bytes` what the kept ones alone would take; in
    compressed storage both are what the values and their index take.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    pattern: str
    density: float
    parameters: int
    kept_parameters: int
    flops: int | None
    kept_flops: int | None
    bytes: int
    kept_bytes: int
    kernel: str


@final
@dataclass(frozen=True)
class Training:
    """The operations of a training step, dense and by a method."""

    method: str
    flops: int
    kept_flops: float


@final
@dataclass(frozen=True)
class Report:
    """A row for each layer that computes or holds a weight matrix, one for the rest if there is any, and the total.

    `skipped` says of layers that were to be sparse and could not why they stay dense.
    """

    rows: tuple[Row, ...]
    total: Row
    training: Training | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Write the report as a table, and sentences below it, at most 120 columns wide."""
        return "\n".join(_lines(self))

    def to_json(self) -> str:
        """Write the report as JSON, with exact numbers."""
        return json.dumps(asdict(self), indent=2)


def report(
    model: nn.Module,
    *inputs: Any,
    method: str | Method | None = None,
    steps: int | None = None,
    skipped: Mapping[str, str] | None = None,
) -> Report:
    """Return what is sparse in a model and how much of it; given inputs, also the operations of a pass over these.

    A mapping given last holds what the model takes by name. `method` adds what a training step by it costs; one that is
    dense for a part of the run needs its length in `steps`, unless it speaks in shares. `skipped`, which a sparsifier
    has, adds why layers stay dense; the model itself does not know. Parameters that only serve to
    learn masks do not count; one that several layers share counts for the first. Operations are those of `flops` with
    its "products".

    >>> from cutwork.training.sparsify import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    >>> sparsifier = sparsify(model, {"0": "block:16"}, density=0.25)
    >>> print(report(model))
    layer  kind    shape   pattern   density   parameters  FLOPs        bytes  kernel
    0      Linear  256x64  block:16     0.25  4.35k/16.6k         17.4k/66.6k  dense
    2      Linear  10x256  dense           1        2.57k               10.3k  dense
    total                             0.3603  6.92k/19.2k         27.7k/76.8k
    ...
    """
    if method is not None and not inputs:
        raise ValueError(
            f"method={method!r} needs inputs to count a training step by; pass them: report(model, x, method=...)"
        )
    cost = flops(model, *inputs) if inputs else None
    rows = _rows(model, {} if cost is None else {layer.name: layer for layer in cost.layers})
    total = _add_up(rows, cost)
    training = None if cost is None or method is None else _count_training(cost, find_method(method), steps)
    return Report(rows, total, training, dict(skipped or {}))


def _count_training(cost: Flops, method: Method, steps: int | None) -> Training:
    return Training(type(method).__name__, cost.dense_training, cost.sparse_training(method, steps))


def _rows(model: nn.Module, costs: Mapping[str, LayerFlops]) -> tuple[Row, ...]:
    rows: list[Row] = []
    taken: set[Tensor] = set()
    for name, module in model.named_modules():
        weight = module.describe_weight() if isinstance(module, Sparse) else None
        own = [tensor for tensor in _find_counted(module, weight) if tensor not in taken]
        if weight is not None or has_matrix(module) or name in costs:
            rows.append(_row(name, module, weight, own, costs.get(name)))
            taken.update(own)
        elif isinstance(module, Sparsity):
            taken.update(own)
    rest = [parameter for parameter in model.parameters() if parameter not in taken]
    return (*rows, _row(REST, None, None, rest, None)) if rest else tuple(rows)


def _find_counted(module: nn.Module, weight: WeightFacts | None) -> list[Tensor]:
    """Return the tensors that count as parameters of a module: also what a layer that does not train has instead."""
    buffers = [] if weight is None else [weight.numbers, module._buffers.get("bias")]
    return [*module.parameters(recurse=False), *(each for each in buffers if each is not None)]


def _row(
    name: str, layer: nn.Module | None, weight: WeightFacts | None, own: Sequence[Tensor], cost: LayerFlops | None
) -> Row:
    others = [tensor for tensor in own if weight is None or tensor is not weight.numbers]
    num_others, bytes_others = sum(map(Tensor.numel, others)), sum(tensor.nbytes for tensor in others)
    # A weight that several layers share counts for the first.
    counted = weight if len(others) < len(own) else None
    matrices = [] if layer is None else [p for p in layer.parameters(recurse=False) if p.dim() > 1]
    shape = tuple(matrices[0].shape) if matrices else ()
    return Row(
        layer=name,
        kind="" if layer is None else type(layer).__name__ if weight is None else weight.kind,
        shape=shape if weight is None else weight.shape,
        pattern=DENSE if weight is None else str(weight.pattern),
        density=1.0 if weight is None else weight.density,
        parameters=num_others + (0 if counted is None else counted.num_weights),
        kept_parameters=num_others + (0 if counted is None else counted.num_kept),
        flops=None if cost is None else cost.dense,
        kept_flops=None if cost is None else cost.sparse,
        bytes=bytes_others + (0 if counted is None else counted.stored_bytes),
        kept_bytes=bytes_others + (0 if counted is None else counted.kept_bytes),
        kernel="" if layer is None else DENSE if weight is None else weight.kernel,
    )


def _add_up(rows: Sequence[Row], cost: Flops | None) -> Row:
    parameters, kept = sum(row.parameters for row in rows), sum(row.kept_parameters for row in rows)
    return Row(
        layer="total",
        kind="",
        shape=(),
        pattern="" if any(row.pattern != DENSE for row in rows) else "all dense",
        density=kept / parameters if parameters else 1.0,
        parameters=parameters,
        kept_parameters=kept,
        flops=None if cost is None else cost.dense,
        kept_flops=None if cost is None else cost.sparse,
        bytes=sum(row.bytes for row in rows),
        kept_bytes=sum(row.kept_bytes for row in rows),
        kernel="",
    )


def _lines(report: Report) -> Iterator[str]:
    table = [list(COLUMNS), *(_cells(row) for row in (*report.rows, report.total))]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(COLUMNS))]
    widths[0] = min(widths[0], max(12, WIDTH - sum(widths[1:]) - len(GAP) * len(widths[1:])))
    table = [[shorten(cells[0], widths[0]), *cells[1:]] for cells in table]
    yield from in_columns(table, "".join(COLUMNS.values()), gap=GAP, widths=widths)
    if any(row.kept_parameters < row.parameters for row in report.rows):
        yield ""
        is_multiplied = any(row.kept_parameters < row.parameters and row.kernel == DENSE for row in report.rows)
        remark = " The dense kernel multiplies the whole masked weight, so it costs b." if is_multiplied else ""
        yield f"a/b: a is what the masks keep of b.{remark}"
    if report.training is not None:
        cost = report.training
        yield (
            f"A training step by {cost.method} needs {_abbreviate(cost.kept_flops)} of {_abbreviate(cost.flops)} "
            f"FLOPs, {cost.kept_flops / cost.flops:.3g} of a dense one."
        )
    for name, reason in report.skipped.items():
        yield from wrap(f"{label(name)} stays dense: {reason}", WIDTH, subsequent_indent=GAP)


def _cells(row: Row) -> list[str]:
    return [
        label(row.layer),
        shorten(row.kind, 18),
        "x".join(map(str, row.shape)),
        row.pattern,
        f"{row.density:.4g}",
        _write_share(row.kept_parameters, row.parameters),
        "" if row.flops is None or row.kept_flops is None else _write_share(row.kept_flops, row.flops),
        _write_share(row.kept_bytes, row.bytes),
        row.kernel,
    ]


def _write_share(kept: int, total: int) -> str:
    return _abbreviate(total) if kept == total else f"{_abbreviate(kept)}/{_abbreviate(total)}"


def _abbreviate(number: float) -> str:
    """Write a number with three digits and a unit.

    >>> _abbreviate(1), _abbreviate(1536), _abbreviate(999_500), _abbreviate(4.089e9), _abbreviate(2e15)
    ('1', '1.54k', '1M', '4.09G', '2P')
    """
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}P"

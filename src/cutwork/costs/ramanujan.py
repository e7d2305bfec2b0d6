"""How well masks connect inputs and outputs, by the spectra of their graphs."""

import json
import math
from dataclasses import asdict, dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn

from cutwork.layers.swap import sparse_layers, why_not_find
from cutwork.text import arrow, in_columns

# Bounds say nothing about nodes with fewer neighbours; a subgraph of fewer inputs is left out.
LEAST_DEGREE = 3
# Of the smaller side up to so much, all singular values are computed; of a larger one two are found by iterations. In
# random graphs with up to 2304 nodes on a side the second then came out at most 2e-7 too small.
EXACT_SIZE, STEPS, WIDTH = 128, 24, 4
HEAD = ("layer", "graph", "degrees", "gap", "mean gap", "weighted gap", "mean weighted gap")


@final
@dataclass(frozen=True)
class Gaps:
    """The spectral gaps of a mask, as the graph of the inputs and outputs that it connects.

    `num_inputs` and `num_outputs` count those with a connection, and the degrees are their means. `gap` is the bound of
    a Ramanujan graph, the sum of the roots of both degrees less one, minus the second largest singular value of the
    mask: such a graph has none below zero. `weighted_gap` is the difference of the two largest ones of the absolute
    weights. Both have means over subgraphs, each of all inputs with equally many connections, of which there are
    `num_subgraphs`. What has nodes with fewer than three connections on average has no gap.
    """

    num_inputs: int
    num_outputs: int
    input_degree: float
    output_degree: float
    gap: float | None
    mean_gap: float | None
    weighted_gap: float | None
    mean_weighted_gap: float | None
    num_subgraphs: int


@final
@dataclass(frozen=True)
class GapReport:
    """The gaps of the sparse layers of a model, by name."""

    layers: dict[str, Gaps]

    def __str__(self) -> str:
        """Write the gaps as a table."""
        lines = [HEAD, *(_line(name, gaps) for name, gaps in self.layers.items())]
        return "\n".join(in_columns(lines, "<>>>>>>"))

    def to_json(self) -> str:
        """Write the gaps as JSON, with exact numbers."""
        return json.dumps(asdict(self), indent=2)


def ramanujan_gaps(model: nn.Module) -> GapReport:
    """Return how well the masks of a model connect inputs and outputs: the larger the gaps, the better.

    Inputs of a convolution are counted at each place of the kernel.

    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.5, init="balanced")
    >>> print(ramanujan_gaps(model))  # doctest: +ELLIPSIS
    layer   graph  degrees     gap  mean gap  weighted gap  mean weighted gap
    0      64->64   32, 32 ...

    Reference: Hoang et al., Revisiting pruning at initialization through the lens of Ramanujan graph, 2023.
    """
    layers = sparse_layers(model)
    if not layers:
        raise ValueError(why_not_find(model))
    return GapReport(
        {
            name: measure_gaps(layer.sparsity.mask_matrix(), layer.sparsity.matrix(layer.trained))
            for name, layer in layers.items()
        }
    )


@torch.no_grad()
def measure_gaps(mask: Tensor, weight: Tensor | None = None) -> Gaps:
    """Return the gaps of a mask `[out, in]`; without weights each connection weighs one.

    >>> gaps = measure_gaps(torch.ones(5, 10, dtype=torch.bool))  # all are connected: the second singular value is zero
    >>> round(gaps.gap, 3), round(gaps.weighted_gap, 3)
    (5.0, 7.071)
    """
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"a mask is a bool matrix [out, in]; got {mask.dtype} of shape {list(mask.shape)}")
    if weight is not None and weight.shape != mask.shape:
        raise ValueError(f"weights must be shaped like their mask, {list(mask.shape)}; got {list(weight.shape)}")
    weight = mask.double() if weight is None else weight.double().abs() * mask
    linked = mask[mask.any(1)][:, mask.any(0)]
    num_outputs, num_inputs = linked.shape
    gap, weighted_gap = _gaps(mask, weight)
    degrees = mask.sum(0)
    subgraphs = [degrees == degree for degree in degrees.unique().tolist() if degree]
    pairs = [_gaps(mask[:, each], weight[:, each]) for each in subgraphs if int(each.sum()) >= LEAST_DEGREE]
    found = [(plain, weighted) for plain, weighted in pairs if plain is not None and weighted is not None]
    return Gaps(
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        input_degree=int(mask.sum()) / max(1, num_inputs),
        output_degree=int(mask.sum()) / max(1, num_outputs),
        gap=gap,
        mean_gap=sum(plain for plain, _ in found) / len(found) if found else None,
        weighted_gap=weighted_gap,
        mean_weighted_gap=sum(weighted for _, weighted in found) / len(found) if found else None,
        num_subgraphs=len(found),
    )


def _gaps(mask: Tensor, weight: Tensor) -> tuple[float | None, float | None]:
    """Return the gap of a graph and the weighted one; None where nodes have too few neighbours."""
    rows, columns = mask.any(1), mask.any(0)
    mask, weight = mask[rows][:, columns], weight[rows][:, columns]
    num_links = int(mask.sum())
    degrees = [num_links / max(1, size) for size in mask.shape]
    if min(degrees) < LEAST_DEGREE:
        return None, None
    bound = sum(math.sqrt(degree - 1) for degree in degrees)
    largest, second = _largest_two(weight)
    return bound - _largest_two(mask.double())[1], largest - second


def _largest_two(matrix: Tensor) -> tuple[float, float]:
    """Return the two largest singular values of a matrix."""
    matrix = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    if matrix.shape[1] > EXACT_SIZE:
        matrix = matrix @ _leading_directions(matrix)
    values = torch.linalg.svdvals(matrix)[:2].tolist()
    return values[0], values[1]


def _leading_directions(matrix: Tensor) -> Tensor:
    """Return an orthogonal basis that holds the leading right singular vectors, by a block Krylov method."""
    # Several vectors at a time: one alone would find singular values that coincide only once.
    block = torch.randn(matrix.shape[1], WIDTH, generator=Generator().manual_seed(0), dtype=torch.float64)
    basis = block = torch.linalg.qr(block.to(matrix.device)).Q
    for _ in range(STEPS):
        block = matrix.T @ (matrix @ block)
        # Twice, because rounding leaves a part of what was found before.
        for _ in range(2):
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        basis = torch.cat([basis, block], dim=1)
    return torch.linalg.qr(basis).Q


def _line(name: str, gaps: Gaps) -> tuple[str, ...]:
    numbers = (gaps.gap, gaps.mean_gap, gaps.weighted_gap, gaps.mean_weighted_gap)
    return (
        name,
        arrow(gaps.num_inputs, gaps.num_outputs),
        f"{gaps.input_degree:.3g}, {gaps.output_degree:.3g}",
        *("-" if number is None else f"{number:.3f}" for number in numbers),
    )

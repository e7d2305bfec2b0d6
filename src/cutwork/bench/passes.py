"""One pass of one layer in one form: forward, a gradient or a whole training step, dense or on kept tiles."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Self

import torch
from torch import Tensor, nn

from cutwork.bench.baselines import BASELINES, transform_of
from cutwork.bench.results import Measurement
from cutwork.bench.run import Candidate, Runnable
from cutwork.ops.topology import Topology
from cutwork.patterns import Pattern

PASSES = ("forward", "dX", "dW", "step")
TILE = "tile"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
LEARNING_RATE = 1e-5
# A step of AdamW reads weight, gradient and two moments, and writes all but the gradient.
OPTIMIZER_PASSES = 7
# Forms whose index has a column for each weight, not for each tile.
INDEXED_BY_WEIGHT = ("csr", "csr-left", "scipy")


@dataclass(frozen=True)
class Problem(ABC):
    """The numbers of one layer: input, gradient of the output, and a weight that is zero outside what `index` keeps."""

    x: Tensor
    dy: Tensor
    weight: Tensor
    index: Topology | None

    @abstractmethod
    def masked(self, pattern: Pattern, density: float) -> Self:
        """Return this one with the weight's largest units only."""

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """See a weight as a matrix."""

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute the dense layer."""

    @abstractmethod
    def input_gradient(self, dy: Tensor, weight: Tensor) -> Tensor:
        """Compute the gradient of the dense layer's input."""

    @abstractmethod
    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Compute the gradient of the dense weight."""

    @abstractmethod
    def tile_product(self, x: Tensor, values: Tensor) -> Tensor:
        """Compute the layer on kept tiles, as a layer calls it."""

    @abstractmethod
    def tile_input_gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        """Compute the gradient of the input on kept tiles, as the layer's own gradient does."""

    @abstractmethod
    def tile_weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Compute the gradient of the kept values."""

    @abstractmethod
    def tile_int8(self, values: Tensor) -> Callable[[], Tensor]:
        """Return the forward pass on kept tiles in int8; quantizing the weight is done beforehand."""

    @property
    @abstractmethod
    def products(self) -> int:
        """Return in how many products each weight takes part in a forward pass."""

    def to(self, dtype: torch.dtype) -> Self:
        """Return this problem with other numbers."""
        return replace(self, x=self.x.to(dtype), dy=self.dy.to(dtype), weight=self.weight.to(dtype))

    @property
    def kept(self) -> int:
        """Return how many weights count as kept."""
        return self.weight.numel() if self.index is None else int(self.weight.count_nonzero())

    @property
    def tiles(self) -> Topology:
        """Return the index of a problem that has one."""
        assert self.index is not None
        return self.index


def candidate_of(row: Measurement, problem: Problem, pattern: Pattern) -> Candidate:
    """Return one form of one pass of a layer."""
    times = 3 if row.work == "step" else 1
    return Candidate(
        row,
        build=partial(_build, row, problem, pattern),
        expected=cache(partial(_expected, row.work, problem)),
        operations=2.0 * times * problem.products * problem.kept,
        bytes=float(_least_bytes(row, problem)),
    )


def _least_bytes(row: Measurement, problem: Problem) -> int:
    """Return the bytes of each input and result once: what must move if all caches were perfect."""
    one = BYTES[row.precision]
    # Activations around int8 products come and go in fp32.
    outside = 4 if row.precision == "int8" else one
    weight = one * problem.kept
    if problem.index is not None:
        weight += 4 * (problem.kept if row.form in INDEXED_BY_WEIGHT else problem.index.num_units)
    product_bytes = outside * (problem.x.numel() + problem.dy.numel()) + weight
    return product_bytes if row.work != "step" else 3 * product_bytes + OPTIMIZER_PASSES * one * problem.kept


def _expected(work: str, problem: Problem) -> tuple[Tensor, ...]:
    """Return the right results, from the dense weight in fp32 with its gradient masked; weights as matrices."""
    if work == "forward":
        return (problem.product(problem.x, problem.weight),)
    if work == "dX":
        return (problem.input_gradient(problem.dy, problem.weight),)
    gradient = problem.weight_gradient(problem.dy, problem.x)
    if problem.index is not None:
        gradient = gradient * (problem.weight != 0)
    if work == "dW":
        return (problem.matrix(gradient),)
    weight = nn.Parameter(problem.weight.clone())
    weight.grad = gradient
    _optimizer(weight).step()
    return (
        problem.product(problem.x, problem.weight),
        problem.input_gradient(problem.dy, problem.weight),
        problem.matrix(gradient),
        problem.matrix(weight.detach()),
    )


def _build(row: Measurement, problem: Problem, pattern: Pattern) -> Runnable:
    if baseline := BASELINES.get((row.form, row.precision)):
        y = baseline(problem.x, problem.weight, pattern)
        return Runnable(y, lambda: [y()])
    if row.precision == "int8":
        run = problem.tile_int8(problem.tiles.gather(problem.matrix(problem.weight)))
        return Runnable(run, lambda: [run()])
    build = _tile if row.form == TILE else partial(_dense, transform_of(row.form))
    return build(row.work, problem.to(DTYPES[row.precision]))


def _dense(transform: Callable[[Callable], Callable], work: str, problem: Problem) -> Runnable:
    x, dy, weight = problem.x, problem.dy, problem.weight
    if work == "step":
        return training_step(transform(problem.product), x, nn.Parameter(weight.clone()), dy, problem.matrix)
    function, arguments = {
        "forward": (problem.product, (x, weight)),
        "dX": (problem.input_gradient, (dy, weight)),
        "dW": (problem.weight_gradient, (dy, x)),
    }[work]
    run = partial(transform(function), *arguments)
    return Runnable(run, lambda: [problem.matrix(run()) if work == "dW" else run()])


def _tile(work: str, problem: Problem) -> Runnable:
    x, dy, index = problem.x, problem.dy, problem.tiles
    values = index.gather(problem.matrix(problem.weight))
    if work == "step":
        return training_step(problem.tile_product, x, nn.Parameter(values), dy, index.scatter)
    if work == "forward":
        run = partial(problem.tile_product, x, values)
    elif work == "dX":
        run = partial(problem.tile_input_gradient, dy, values)
    else:
        run = partial(problem.tile_weight_gradient, dy, x)
    return Runnable(run, lambda: [index.scatter(run()) if work == "dW" else run()])


def training_step(
    forward: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: nn.Parameter,
    dy: Tensor,
    to_matrix: Callable[[Tensor], Tensor],
) -> Runnable:
    """Return a step: forward, the gradients of input and weight, and a fused AdamW."""
    source = x.detach().requires_grad_()
    optimizer = _optimizer(weight)

    @torch.enable_grad()
    def run() -> Tensor:
        source.grad = weight.grad = None
        y = forward(source, weight)
        y.backward(dy)
        optimizer.step()
        return y

    def results() -> tuple[Tensor, ...]:
        y = run().detach()
        assert source.grad is not None and weight.grad is not None
        return y, source.grad, to_matrix(weight.grad), to_matrix(weight.detach())

    return Runnable(run, results)


def _optimizer(weight: nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.AdamW([weight], lr=LEARNING_RATE, fused=True)

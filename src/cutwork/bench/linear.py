"""One linear layer beside its dense form and other packages' sparse formats."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor

from cutwork.bench.choices import check_counts, check_given
from cutwork.bench.layers import Layer, PassTable
from cutwork.bench.passes import PASSES, TILE, Problem
from cutwork.memory import check_memory
from cutwork.ops import block_linear
from cutwork.ops.activations import NONE
from cutwork.ops.dispatch import kernel_of
from cutwork.ops.int8_linear import int8_linear, quantize
from cutwork.patterns import Pattern
from cutwork.sparsity.compressed import index_of
from cutwork.speed.forms import DENSE
from cutwork.text import arrow, shape_of

# Sparse formats of other packages are for inference.
LINEAR_FORMS: PassTable = {
    DENSE: {"fp32": PASSES, "bf16": PASSES},
    "compiled": {"fp32": PASSES, "bf16": PASSES},
    "onnx": {"fp32": ("forward",), "int8": ("forward",)},
    TILE: {"fp32": PASSES, "bf16": PASSES, "int8": ("forward",)},
    "bsr": {"fp32": ("forward",)},
    "bsr-left": {"fp32": ("forward",)},
    "csr": {"fp32": ("forward",)},
    "csr-left": {"fp32": ("forward",)},
    "scipy": {"fp32": ("forward",)},
}


@final
@dataclass(frozen=True)
class LinearProblem(Problem):
    """A linear layer: `x_MI`, `dy_MO` and `weight_OI`."""

    @classmethod
    def random(cls, inputs: int, outputs: int, tokens: int, seed: int) -> Self:
        """Return a dense one."""
        generator = torch.Generator().manual_seed(seed)
        return cls(
            torch.randn(tokens, inputs, generator=generator),
            torch.randn(tokens, outputs, generator=generator),
            torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs),
            None,
        )

    def masked(self, pattern: Pattern, density: float) -> Self:
        mask = pattern.project(self.weight.abs(), density)
        return replace(self, weight=self.weight * mask, index=index_of(mask, pattern))

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def input_gradient(self, dy: Tensor, weight: Tensor) -> Tensor:
        return dy @ weight

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        return dy.T @ x

    def tile_product(self, x: Tensor, values: Tensor) -> Tensor:
        index = self.tiles
        return block_linear.linear(x, values, index.ptr, index.col, index.order, outputs=index.shape[0])

    def tile_input_gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        index, kernel = self.tiles, kernel_of(block_linear.input_gradient, dy)
        return kernel(dy, values, index.ptr, index.col, index.order, None, index.shape[1], NONE)

    def tile_weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        index, kernel = self.tiles, kernel_of(block_linear.weight_gradient, dy)
        return kernel(dy, x, index.ptr, index.col, index.order, index.rows, index.columns, NONE)

    def tile_int8(self, values: Tensor) -> Callable[[], Tensor]:
        index, outputs = self.tiles, self.tiles.shape[0]
        at = (index.ptr, index.col, index.order)
        integers, scales_O = quantize(values, *at, outputs)
        kernel = kernel_of(int8_linear, self.x)
        return partial(kernel, self.x, integers, scales_O, *at, None, outputs, index.columns, NONE)

    @property
    def products(self) -> int:
        return len(self.x)


def layers(*, shapes: Sequence[str], tokens: Sequence[int]) -> list[Layer]:
    """Return a linear layer of each shape for each number of tokens."""
    check_given("shape", shapes, "768x3072")
    check_counts("tokens", tokens)
    found = []
    for (inputs, outputs), count in product(map(shape_of, shapes), tokens):
        shape = arrow(inputs, outputs)
        # The weight, whole and masked, and the activations, in fp32.
        num_bytes = 4 * (2 * inputs * outputs + count * (inputs + 2 * outputs))
        check_memory(f"linear {shape} with {count} tokens", num_bytes)
        problem = partial(LinearProblem.random, inputs, outputs, count)
        found.append(Layer("linear", shape, count, f"{count} tokens", problem))
    return found

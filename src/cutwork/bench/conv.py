"""One 2-d convolution in channels-last memory beside its dense form."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from cutwork.bench.choices import check_counts, check_given
from cutwork.bench.layers import Layer, PassTable
from cutwork.bench.passes import PASSES, TILE, Problem
from cutwork.bench.run import UnavailableError
from cutwork.memory import check_memory
from cutwork.ops import block_conv2d, block_linear
from cutwork.ops.activations import NONE
from cutwork.ops.dispatch import kernel_of
from cutwork.patterns import Pattern
from cutwork.sparsity.compressed import index_of
from cutwork.sparsity.layout import Layout
from cutwork.speed.forms import DENSE
from cutwork.text import arrow

CONV_FORMS: PassTable = {
    DENSE: {"fp32": PASSES, "bf16": PASSES},
    # The gradients alone are single calls, in which there is nothing to compile.
    "compiled": {"fp32": ("forward", "step"), "bf16": ("forward", "step")},
    TILE: {"fp32": PASSES, "bf16": PASSES},
}


@final
@dataclass(frozen=True)
class ConvProblem(Problem):
    """A convolution with square kernels; padding keeps the size at stride 1."""

    stride: int

    @classmethod
    def random(
        cls, channels: tuple[int, int], size: tuple[int, int], kernel: int, stride: int, batch: int, seed: int
    ) -> Self:
        """Return a dense one."""
        generator = torch.Generator().manual_seed(seed)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)

        inputs, outputs = channels
        rows, columns = ((side - kernel + 2 * (kernel // 2)) // stride + 1 for side in size)
        return cls(
            numbers(batch, inputs, *size),
            numbers(batch, outputs, rows, columns),
            numbers(outputs, inputs, kernel, kernel) / (kernel * math.sqrt(inputs)),
            None,
            stride,
        )

    @property
    def kernel(self) -> int:
        """Return the height and width of the kernel."""
        return self.weight.shape[2]

    @property
    def padding(self) -> int:
        """Return the rows and columns of zeros around the input."""
        return self.kernel // 2

    @property
    def is_pointwise(self) -> bool:
        """Say whether this is a linear layer over pixels, and so computed as one."""
        return (self.kernel, self.stride) == (1, 1)

    def masked(self, pattern: Pattern, density: float) -> Self:
        matrix, pattern = self.matrix(self.weight), pattern.for_kernel(self.kernel**2)
        mask = pattern.project(matrix.abs(), density)
        weight = Layout.of(self.weight).from_matrix(matrix * mask).contiguous(memory_format=torch.channels_last)
        return replace(self, weight=weight, index=index_of(mask, pattern))

    def matrix(self, weight: Tensor) -> Tensor:
        return Layout.of(weight).to_matrix(weight)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    def input_gradient(self, dy: Tensor, weight: Tensor) -> Tensor:
        return conv2d_input(self.x.shape, weight, dy, self.stride, self.padding)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        return conv2d_weight(x, self.weight.shape, dy, self.stride, self.padding)

    def tile_product(self, x: Tensor, values: Tensor) -> Tensor:
        index = self.tiles
        return block_conv2d.conv2d(
            *(x, values, index.ptr, index.col, index.order),
            outputs=index.shape[0],
            kernel_size=(self.kernel, self.kernel),
            stride=(self.stride, self.stride),
            padding=(self.padding, self.padding),
        )

    def tile_input_gradient(self, dy: Tensor, values: Tensor) -> Tensor:
        index = self.tiles
        at = (index.ptr, index.col, index.order)
        if self.is_pointwise:
            kernel = kernel_of(block_linear.input_gradient, dy)
            dx = kernel(_pixels(dy), values, *at, None, index.shape[1], NONE)
            return dx.view(len(dy), *dy.shape[2:], -1).permute(0, 3, 1, 2)
        return kernel_of(block_conv2d.input_gradient, dy)(dy, values, *at, list(self.x.shape[1:]), *self._geometry())

    def tile_weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        index = self.tiles
        at = (index.ptr, index.col, index.order, index.rows, index.columns)
        if self.is_pointwise:
            return kernel_of(block_linear.weight_gradient, dy)(_pixels(dy), _pixels(x), *at, NONE)
        return kernel_of(block_conv2d.weight_gradient, dy)(dy, x, *at, *self._geometry())

    def tile_int8(self, values: Tensor) -> Callable[[], Tensor]:
        raise UnavailableError("no kernel computes convolutions in int8")

    @property
    def products(self) -> int:
        # Those with the zeros around the input count, as they do for everybody.
        return self.dy.numel() // self.dy.shape[1]

    def _geometry(self) -> tuple[list[int], list[int], list[int], list[int], int]:
        return [self.kernel] * 2, [self.stride] * 2, [self.padding] * 2, [1, 1], 1


def layers(
    *, shapes: Sequence[str], kernels: Sequence[int], strides: Sequence[int], batches: Sequence[int]
) -> list[Layer]:
    """Return a convolution for each of these choices together."""
    check_given("shape", shapes, "128@16x16")
    for what, counts in (("kernel", kernels), ("stride", strides), ("batch", batches)):
        check_counts(what, counts)
    found = []
    for text, kernel, stride, batch in product(shapes, kernels, strides, batches):
        (inputs, outputs), size = shape_of(text)
        if stride > max(size):
            raise ValueError(f"stride {stride} is wider than the image {text}; give at most {max(size)}")
        # The weight, whole and masked, and the input, in fp32.
        num_bytes = 4 * (2 * inputs * outputs * kernel**2 + batch * inputs * math.prod(size))
        check_memory(f"conv {text} with {kernel}x{kernel} kernels and batch {batch}", num_bytes)
        width = f"{inputs}" if inputs == outputs else arrow(inputs, outputs)
        shape = f"{width}@{size[0]}x{size[1]} {kernel}x{kernel}" + (f"/{stride}" if stride > 1 else "")
        problem = partial(ConvProblem.random, (inputs, outputs), size, kernel, stride, batch)
        found.append(Layer("conv", shape, batch, f"batch {batch}", problem))
    return found


def shape_of(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read channels @ height x width, or inputs : outputs @ height x width.

    >>> shape_of("64@32x32"), shape_of("64:128@16x8")
    (((64, 64), (32, 32)), ((64, 128), (16, 8)))
    """
    match = re.fullmatch(r"(\d+)(?:(?::|->)(\d+))?@(\d+)x(\d+)", text)
    sizes = [int(size) for size in match.group(1, 3, 4)] if match else [0]
    if match is None or min(sizes) < 1 or match[2] == "0":
        raise ValueError(f"unknown shape {text!r}; write channels@heightxwidth, for example 64@32x32 or 64:128@32x32")
    return (sizes[0], int(match[2] or sizes[0])), (sizes[1], sizes[2])


def _pixels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])

"""The dense gradient of a compressed layer, formed from what its products have read and the gradients they have got."""

from functools import cached_property
from typing import final

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from cutwork.distributed import average
from cutwork.memory import take_memory
from cutwork.ops import block_conv2d, block_linear
from cutwork.ops.activations import NONE
from cutwork.ops.dispatch import kernel_of
from cutwork.ops.topology import Topology
from cutwork.sparsity.gradient import GradientOfKept, Rows, all_finite
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.listening import Pair

# One of so many parts of the kept units shows well enough at which scale they got their gradient.
PARTS = 16


@final
class FormedGradient(GradientOfKept):
    """The sum of the products of some pairs, at the scale of the gradient that the values have got.

    That has been averaged over processes, unscaled and clipped since the pairs were heard. Processes average each part
    when they form it, so all must form the same parts.
    """

    has_exact_rows = False

    def __init__(self, pairs: list[Pair], gradient: Tensor, index: Topology) -> None:
        self._pairs = pairs
        self._gradient, self._index = gradient, index
        self._wide = torch.promote_types(gradient.dtype, torch.float32)

    def is_finite(self) -> bool:
        """Say whether the gradient of the values is finite."""
        return all_finite(self._gradient)

    def kept(self, index: Topology) -> Tensor:
        """Return the gradient of the values."""
        return self._gradient.to(self._wide)

    def rows(self, outputs: Rows, into: Tensor | None = None) -> Tensor:
        """Form some rows."""
        scale = self._scale
        total = None if self._of_images is None else self._of_images[outputs].clone()
        for x, dy in self._matrices:
            total = _multiply(dy[outputs], x, into) if total is None else total.addmm_(dy[outputs], x)
        if total is None:
            # Nothing was heard here, but perhaps in other processes.
            total = self._gradient.new_zeros(self._index.shape, dtype=self._wide)[outputs]
        total = average(total)
        return total if scale == 1 else total.mul_(scale)

    @cached_property
    def _matrices(self) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs of products of matrices, the gradient with a row for each output."""
        pairs = [(x, dy) for x, dy, geometry in self._pairs if not geometry]
        return [(x.to(self._wide), dy.to(self._wide).T.contiguous()) for x, dy in pairs]

    @cached_property
    def _of_images(self) -> Tensor | None:
        """Return what convolutions contribute: their weights are small, and no row is cheaper to form alone."""
        products = [self._product_of_images(pair) for pair in self._pairs if pair[2]]
        return sum(products[1:], start=products[0]) if products else None

    def _product_of_images(self, pair: Pair) -> Tensor:
        x, dy, geometry = pair
        kernel_size, stride, padding, dilation, groups = _parts_of(geometry)
        layout = Layout((dy.shape[1], x.shape[1] // groups, *kernel_size))
        weight = conv2d_weight(x.to(self._wide), layout.shape, dy.to(self._wide), stride, padding, dilation, groups)
        return layout.to_matrix(weight)

    @cached_property
    def _scale(self) -> float:
        """Return by what all is multiplied: it brings what is formed at the kept units closest to their gradient."""
        gradient, groups = self.kept(self._index).flatten(), self._index.grid[0]
        # All of them only where nothing has come to the first.
        for number in (-(-groups // PARTS), groups):
            formed = self._form_kept(number)
            scale = float(torch.dot(formed, gradient) / torch.dot(formed, formed))
            if 0 < scale < float("inf"):
                return scale
        if not (self._pairs or formed.any()) and gradient.any():
            raise ValueError(
                "none of the products by which its values got their gradient was seen, so the mask cannot move by the "
                "gradient; something has replaced the values, or their hooks, since attach(): detach() and attach() "
                "after casting, loading with assign=True and the like"
            )
        # Without any gradient at what is kept there is nothing to go by, and only the order matters.
        return 1.0

    def _form_kept(self, num_groups: int) -> Tensor:
        """Form what the values of the first groups get, zero for the others; of convolutions all."""
        formed = torch.zeros_like(self._gradient, dtype=self._wide)
        for pair in self._pairs:
            part = self._product_at_kept(pair, num_groups)
            formed[: len(part)] += part
        return average(formed).flatten()

    def _product_at_kept(self, pair: Pair, num_groups: int) -> Tensor:
        index, (x, dy, geometry) = self._index, pair
        x, dy, sizes = x.to(self._wide), dy.to(self._wide), (index.rows, index.columns)
        if geometry:
            units = index.ptr, index.col, index.order, *sizes
            return kernel_of(block_conv2d.weight_gradient, dy)(dy, x, *units, *_parts_of(geometry))
        dy, ptr = dy[:, index.outputs(0, num_groups)], index.ptr[: num_groups + 1]
        return kernel_of(block_linear.weight_gradient, dy)(dy, x, ptr, index.col[: int(ptr[-1])], None, *sizes, NONE)


def _multiply(dy: Tensor, x: Tensor, into: Tensor | None) -> Tensor:
    """Multiply two matrices, in memory that is given if it has the shape."""
    if into is None or len(into) != len(dy):
        into = take_memory((len(dy), x.shape[1]), x.dtype, x.device)
    return torch.mm(dy, x, out=into)


def _parts_of(geometry: list[int]) -> tuple[list[int], list[int], list[int], list[int], int]:
    """Return kernel size, stride, padding, dilation and groups."""
    return geometry[:2], geometry[2:4], geometry[4:6], geometry[6:8], geometry[8]

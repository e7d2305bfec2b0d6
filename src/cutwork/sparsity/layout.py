"""How the numbers of a weight lie, and the matrix `[out, in]` that it is seen as, the only form that patterns meet."""

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Layout:
    """How the numbers of a weight lie: in its shape, with the outputs first, or last if it is `transposed`.

    >>> layout = Layout((64, 16, 3, 3))
    >>> layout.matrix_shape
    (64, 144)
    >>> weight = torch.rand(layout.shape)
    >>> torch.equal(layout.from_matrix(layout.to_matrix(weight)), weight)
    True
    """

    shape: tuple[int, ...]
    transposed: bool = False

    @classmethod
    def of(cls, weight: Tensor, *, transposed: bool = False) -> Self:
        """Return the layout of a weight."""
        return cls(tuple(weight.shape), transposed)

    @property
    def channels(self) -> tuple[int, int]:
        """Return how many outputs and inputs the weight connects, of a convolution the channels of both."""
        first, second = self.shape[:2]
        return (second, first) if self.transposed else (first, second)

    @property
    def taps(self) -> int:
        """Return at how many places a kernel reads each channel; one of a linear layer."""
        return math.prod(self.shape[2:])

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Return the shape of the matrix."""
        outputs, inputs = self.channels
        return outputs, inputs * self.taps

    def to_matrix(self, tensor: Tensor) -> Tensor:
        """See a tensor shaped like the weight as a matrix with a row for each output.

        The columns of a convolution are ordered (kernel row, kernel column, channel), so that neighbours are
        neighbouring channels: those lie together in memory in the channels-last format, and are what 2:4 groups.
        """
        if self.transposed:
            return tensor.T
        if tensor.ndim == 2:
            return tensor
        return tensor.movedim(1, -1).reshape(tensor.shape[0], -1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Undo `to_matrix`; the result is contiguous."""
        if self.transposed:
            return matrix.T.clone(memory_format=torch.contiguous_format)
        if len(self.shape) == 2:
            return matrix
        outputs, channels, *kernel = self.shape
        tensor = matrix.reshape(outputs, *kernel, channels).movedim(-1, 1)
        # Not contiguous(): where a size is 1 that leaves strides by which convolutions take it for channels-last.
        return tensor.clone(memory_format=torch.contiguous_format)

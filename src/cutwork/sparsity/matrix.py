"""How the weight of a layer is seen as a matrix `[out, in]`, the only form that patterns meet."""

import torch
from torch import Tensor

from cutwork.patterns import Shape


def matrix_shape(shape: Shape, *, transposed: bool = False) -> tuple[int, int]:
    """Return the shape of the matrix that a weight of this shape is seen as.

    >>> matrix_shape((64, 16, 3, 3))
    (64, 144)
    """
    if transposed:
        return shape[1], shape[0]
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns


def to_matrix(tensor: Tensor, *, transposed: bool = False) -> Tensor:
    """See a tensor shaped like a weight as a matrix with a row for each output.

    The columns of a convolution are ordered (kernel row, kernel column, channel), so that neighbours are neighbouring
    channels: those lie together in memory in the channels-last format, and are what 2:4 groups.
    """
    if transposed:
        return tensor.T
    if tensor.ndim == 2:
        return tensor
    return tensor.movedim(1, -1).reshape(tensor.shape[0], -1)


def from_matrix(matrix: Tensor, shape: Shape, *, transposed: bool = False) -> Tensor:
    """Undo `to_matrix`; the result is contiguous.

    >>> weight = torch.rand(8, 4, 3, 3)
    >>> torch.equal(from_matrix(to_matrix(weight), weight.shape), weight)
    True
    """
    if transposed:
        return matrix.T.clone(memory_format=torch.contiguous_format)
    if len(shape) == 2:
        return matrix
    tensor = matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    # Not contiguous(): where a size is 1 that leaves strides by which convolutions take it for channels-last.
    return tensor.clone(memory_format=torch.contiguous_format)

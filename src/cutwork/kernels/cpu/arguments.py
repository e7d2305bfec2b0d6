"""What stands between tensors and compiled kernels, which trust every shape and dtype."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cutwork.kernels import cpu

Kernel = Callable[..., Tensor]


def choose(reference: Kernel, by_dtype: Mapping[torch.dtype, Kernel]) -> Kernel:
    """Return what calls the kernel for the dtype of its arguments, or the reference if they are not all of one."""

    def chosen(first: Tensor, *rest: Any) -> Tensor:
        dtype = first.dtype
        is_uniform = all(
            argument.is_cpu and argument.dtype in (dtype, torch.int32, torch.bool)
            for argument in (first, *rest)
            if isinstance(argument, Tensor)
        )
        return (by_dtype.get(dtype, reference) if is_uniform else reference)(first, *rest)

    return chosen


def contiguous(tensor: Any) -> Any:
    """Return a tensor as kernels read it; None stays None."""
    return tensor if tensor is None else tensor.contiguous()


def address(tensor: Tensor | None) -> int:
    """Return where a tensor lies; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def check(what: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a tensor that is there has this shape."""
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{what} has the shape {tuple(tensor.shape)}; expected {shape}")


def locate_weight(
    values: Tensor | None,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
    tiles: Sequence[int],
    outputs: int,
    inputs: int,
) -> Any:
    """Return where a compressed weight lies, as kernels know it; it keeps nothing alive.

    `tiles` is how many units it has, and of how many columns and rows. Raises ValueError unless the tensors of the
    index have room for what kernels read there.
    """
    units, columns, rows = tiles
    groups = -(-outputs // rows)
    for name, index, count in (("ptr", ptr, groups + 1), ("col", col, units), ("order", order, outputs)):
        if index is not None and (index.dtype != torch.int32 or index.shape != (count,) or not index.is_contiguous()):
            raise ValueError(
                f"{name} is {index.dtype} of shape {tuple(index.shape)}; {outputs} outputs in groups of {rows} with "
                f"{units} units need a contiguous torch.int32 of shape ({count},)"
            )
    return cpu.extension().Weight(
        address(values), ptr.data_ptr(), col.data_ptr(), address(order), outputs, inputs, groups, rows, columns
    )

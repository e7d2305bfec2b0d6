"""The compiled tile kernels as functions of tensors, and their registration on the operators of `ops`.

They compute in float32, those of `narrow` in bfloat16; the operators' references serve other dtypes, and everything
where the extension is missing.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.kernels.cpu import narrow
from cutwork.ops import block_linear as ops
from cutwork.ops.activations import activate, backward
from cutwork.ops.direct import register_kernel


@functools.cache
def kernels(instruction_set: str) -> Any:
    """Return the compiled kernels for an instruction set."""
    return cpu.extension().Tiles(instruction_set)


def forward(
    isa: str,
    x_MI: Tensor,
    values: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
    bias_O: Tensor | None,
    residual_MO: Tensor | None,
    outputs: int,
    before: str,
    after: str,
) -> Tensor:
    """Compute `block_linear`."""
    x_MI, values = activate(before, x_MI).contiguous(), values.contiguous()
    y_MO = x_MI.new_empty(x_MI.shape[0], outputs)
    weight = _weight(values, ptr, col, outputs, x_MI.shape[1])
    kernels(isa).forward(weight, x_MI.data_ptr(), 0, y_MO.data_ptr(), len(x_MI), torch.get_num_threads())
    if order is not None:
        y_MO = torch.empty_like(y_MO).index_copy_(1, order.long(), y_MO)
    y_MO = activate(after, y_MO if bias_O is None else y_MO + bias_O)
    return y_MO if residual_MO is None else y_MO + residual_MO


def input_gradient(
    isa: str,
    dy_MO: Tensor,
    values: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
    x_MI: Tensor | None,
    inputs: int,
    before: str,
) -> Tensor:
    """Compute `block_linear_input_gradient`."""
    dy_MO = dy_MO if order is None else dy_MO[:, order.long()]
    dy_MO, values = dy_MO.contiguous(), values.contiguous()
    dx_MI = dy_MO.new_empty(dy_MO.shape[0], inputs)
    weight = _weight(values, ptr, col, dy_MO.shape[1], inputs)
    kernels(isa).input_gradient(weight, dy_MO.data_ptr(), dx_MI.data_ptr(), len(dy_MO), torch.get_num_threads())
    return dx_MI if x_MI is None else backward(before, dx_MI, x_MI)


def weight_gradient(
    isa: str,
    dy_MO: Tensor,
    x_MI: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
    rows: int,
    columns: int,
    before: str,
) -> Tensor:
    """Compute `block_linear_weight_gradient`."""
    dy_MO = dy_MO if order is None else dy_MO[:, order.long()]
    dy_MO, x_MI = dy_MO.contiguous(), activate(before, x_MI).contiguous()
    dvalues = x_MI.new_empty(len(col), columns, rows)
    weight = _weight(dvalues, ptr, col, dy_MO.shape[1], x_MI.shape[1])
    kernels(isa).weight_gradient(
        weight, x_MI.data_ptr(), dy_MO.data_ptr(), dvalues.data_ptr(), len(x_MI), torch.get_num_threads()
    )
    return dvalues


def _weight(values: Tensor, ptr: Tensor, col: Tensor, outputs: int, inputs: int) -> Any:
    _, columns, rows = values.shape
    return cpu.extension().Weight(
        values.data_ptr(), ptr.data_ptr(), col.data_ptr(), outputs, inputs, len(ptr) - 1, rows, columns
    )


def register() -> None:
    """Let the operators use the compiled kernels for float32 and bfloat16 tensors on the CPU."""
    isa, narrow_isa = cpu.instruction_sets()[0], narrow.instruction_sets()[0]
    for operator, kernel, narrow_kernel in (
        (ops.block_linear, forward, narrow.forward),
        (ops.input_gradient, input_gradient, narrow.input_gradient),
        (ops.weight_gradient, weight_gradient, narrow.weight_gradient),
    ):
        kernels_by_dtype = {
            torch.float32: functools.partial(kernel, isa),
            torch.bfloat16: functools.partial(narrow_kernel, narrow_isa),
        }
        register_kernel(operator, "cpu", _by_dtype(operator._init_fn, kernels_by_dtype))


def _by_dtype(reference: Any, kernels_by_dtype: dict[torch.dtype, Any]) -> Any:
    def choose(first: Tensor, *rest: Any) -> Tensor:
        return kernels_by_dtype.get(first.dtype, reference)(first, *rest)

    return choose

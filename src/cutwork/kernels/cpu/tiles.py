"""The compiled tile kernels as functions of tensors, and their registration on the operators of `ops`.

They compute in float32; the operators' references serve other dtypes, and everything where the extension is missing.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.ops import block_linear as ops
from cutwork.ops.activations import NONE, number
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
    tokens, inputs = x_MI.shape
    x_MI, values, bias_O, residual_MO = dense(x_MI), dense(values), dense(bias_O), dense(residual_MO)
    check("the bias", bias_O, (outputs,))
    check("the residual", residual_MO, (tokens, outputs))
    y_MO = x_MI.new_empty(tokens, outputs)
    kernels(isa).forward(
        weight(values, ptr, col, order, outputs, inputs),
        x_MI.data_ptr(),
        0 if bias_O is None else bias_O.data_ptr(),
        0 if residual_MO is None else residual_MO.data_ptr(),
        y_MO.data_ptr(),
        tokens,
        number(before),
        number(after),
        torch.get_num_threads(),
    )
    return y_MO


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
    tokens, outputs = dy_MO.shape
    dy_MO, values, x_MI = dense(dy_MO), dense(values), dense(None if before == NONE else x_MI)
    check("the input", x_MI, (tokens, inputs))
    dx_MI = dy_MO.new_empty(tokens, inputs)
    kernels(isa).input_gradient(
        weight(values, ptr, col, order, outputs, inputs),
        dy_MO.data_ptr(),
        0 if x_MI is None else x_MI.data_ptr(),
        dx_MI.data_ptr(),
        tokens,
        number(before),
        torch.get_num_threads(),
    )
    return dx_MI


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
    tokens, inputs = x_MI.shape
    dy_MO, x_MI = dense(dy_MO), dense(x_MI)
    check("the gradient of the output", dy_MO, (tokens, dy_MO.shape[1]))
    dvalues = x_MI.new_empty(len(col), columns, rows)
    kernels(isa).weight_gradient(
        weight(dvalues, ptr, col, order, dy_MO.shape[1], inputs),
        x_MI.data_ptr(),
        dy_MO.data_ptr(),
        dvalues.data_ptr(),
        tokens,
        number(before),
        torch.get_num_threads(),
    )
    return dvalues


def register() -> None:
    """Let the operators use the compiled kernels for float32 tensors on the CPU."""
    isa = cpu.instruction_sets()[0]
    for operator, kernel in (
        (ops.block_linear, forward),
        (ops.input_gradient, input_gradient),
        (ops.weight_gradient, weight_gradient),
    ):
        register_kernel(operator, "cpu", float32_or(operator._init_fn, functools.partial(kernel, isa)))


def float32_or(reference: Callable[..., Tensor], kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def choose(*arguments: Any) -> Tensor:
        floats = all(
            argument.is_cpu and argument.dtype in (torch.float32, torch.int32)
            for argument in arguments
            if isinstance(argument, Tensor)
        )
        return (kernel if floats else reference)(*arguments)

    return choose


def weight(values: Tensor, ptr: Tensor, col: Tensor, order: Tensor | None, outputs: int, inputs: int) -> Any:
    units, columns, rows = values.shape
    groups = -(-outputs // rows)
    for name, index, count in (("ptr", ptr, groups + 1), ("col", col, units), ("order", order, outputs)):
        if index is not None and (index.dtype != torch.int32 or index.shape != (count,) or not index.is_contiguous()):
            raise ValueError(
                f"{name} is {index.dtype} of shape {tuple(index.shape)}; {outputs} outputs in groups of {rows} with "
                f"{units} units need a contiguous torch.int32 of shape ({count},)"
            )
    at = 0 if order is None else order.data_ptr()
    return cpu.extension().Weight(
        values.data_ptr(), ptr.data_ptr(), col.data_ptr(), at, outputs, inputs, groups, rows, columns
    )


def dense(tensor: Any) -> Any:
    return tensor if tensor is None else tensor.contiguous()


def check(what: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{what} has the shape {tuple(tensor.shape)}; expected {shape}")

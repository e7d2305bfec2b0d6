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
from cutwork.kernels.cpu.arguments import address, check, check_index, choose, contiguous
from cutwork.ops import block_linear as ops
from cutwork.ops.activations import NONE, number
from cutwork.ops.dispatch import register_kernel


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
    ear: Tensor | None = None,
) -> Tensor:
    """Compute `block_linear`."""
    tokens, inputs = x_MI.shape
    x_MI, values, bias_O, residual_MO = (
        contiguous(x_MI),
        contiguous(values),
        contiguous(bias_O),
        contiguous(residual_MO),
    )
    check("the bias", bias_O, (outputs,))
    check("the residual", residual_MO, (tokens, outputs))
    y_MO = x_MI.new_empty(tokens, outputs)
    kernels(isa).forward(
        weight(values, ptr, col, order, outputs, inputs),
        x_MI.data_ptr(),
        address(bias_O),
        address(residual_MO),
        y_MO.data_ptr(),
        tokens,
        number(before),
        number(after),
        cpu.num_threads(),
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
    ear: Tensor | None = None,
) -> Tensor:
    """Compute `block_linear_input_gradient`."""
    tokens, outputs = dy_MO.shape
    dy_MO, values, x_MI = contiguous(dy_MO), contiguous(values), contiguous(None if before == NONE else x_MI)
    check("the input", x_MI, (tokens, inputs))
    dx_MI = dy_MO.new_empty(tokens, inputs)
    kernels(isa).input_gradient(
        weight(values, ptr, col, order, outputs, inputs),
        dy_MO.data_ptr(),
        address(x_MI),
        dx_MI.data_ptr(),
        tokens,
        number(before),
        cpu.num_threads(),
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
    dy_MO, x_MI = contiguous(dy_MO), contiguous(x_MI)
    check("the gradient of the output", dy_MO, (tokens, dy_MO.shape[1]))
    dvalues = x_MI.new_empty(len(col), columns, rows)
    kernels(isa).weight_gradient(
        weight(dvalues, ptr, col, order, dy_MO.shape[1], inputs),
        x_MI.data_ptr(),
        dy_MO.data_ptr(),
        dvalues.data_ptr(),
        tokens,
        number(before),
        cpu.num_threads(),
    )
    return dvalues


def register() -> None:
    """Let the operators use the compiled kernels for float32 and bfloat16 tensors on the CPU."""
    isa, narrow_isa = cpu.instruction_sets()[0], narrow.instruction_sets()[0]
    for operator, kernel, narrow_kernel in (
        (ops.block_linear, forward, narrow.forward),
        (ops.input_gradient, input_gradient, narrow.input_gradient),
        (ops.weight_gradient, weight_gradient, narrow.weight_gradient),
    ):
        by_dtype = {
            torch.float32: functools.partial(kernel, isa),
            torch.bfloat16: functools.partial(narrow_kernel, narrow_isa),
        }
        register_kernel(operator, "cpu", choose(operator._init_fn, by_dtype))


def weight(values: Tensor, ptr: Tensor, col: Tensor, order: Tensor | None, outputs: int, inputs: int) -> Any:
    """Return a compressed weight as the kernels know it; it keeps nothing alive."""
    units, columns, rows = values.shape
    groups = check_index(ptr, col, order, outputs=outputs, rows=rows, units=units)
    return cpu.extension().Weight(
        *(values.data_ptr(), ptr.data_ptr(), col.data_ptr(), address(order)),
        *(outputs, inputs, groups, rows, columns),
    )

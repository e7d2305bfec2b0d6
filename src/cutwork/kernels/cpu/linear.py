"""The compiled linear kernels for float32 and bfloat16 as functions of tensors, and their registration on operators.

The operators' references serve other dtypes, and everything where the extension is missing.
"""

import functools

import torch
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.kernels.cpu.arguments import address, check, choose, contiguous, locate_weight
from cutwork.ops import block_linear as ops
from cutwork.ops.activations import NONE, activate, activation_code, backward
from cutwork.ops.dispatch import reference_of, register_kernel


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
    """Compute `block_linear`, in float32 or bfloat16."""
    tokens, inputs = x_MI.shape
    kernels = cpu.narrow_kernels(isa) if x_MI.dtype == torch.bfloat16 else cpu.linear_kernels(isa)
    x_MI, values, residual_MO = contiguous(x_MI), contiguous(values), contiguous(residual_MO)
    bias_O = contiguous(None if bias_O is None else bias_O.float())
    check("the bias", bias_O, (outputs,))
    check("the residual", residual_MO, (tokens, outputs))
    y_MO = x_MI.new_empty(tokens, outputs)
    kernels.forward(
        locate_weight(values, ptr, col, order, values.shape, outputs, inputs),
        x_MI.data_ptr(),
        address(bias_O),
        address(residual_MO),
        y_MO.data_ptr(),
        tokens,
        activation_code(before),
        activation_code(after),
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
    """Compute `block_linear_input_gradient` in float32."""
    tokens, outputs = dy_MO.shape
    dy_MO, values, x_MI = contiguous(dy_MO), contiguous(values), contiguous(None if before == NONE else x_MI)
    check("the input", x_MI, (tokens, inputs))
    dx_MI = dy_MO.new_empty(tokens, inputs)
    cpu.linear_kernels(isa).input_gradient(
        locate_weight(values, ptr, col, order, values.shape, outputs, inputs),
        dy_MO.data_ptr(),
        address(x_MI),
        dx_MI.data_ptr(),
        tokens,
        activation_code(before),
        cpu.num_threads(),
    )
    return dx_MI


def bfloat16_input_gradient(
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
    """Compute `block_linear_input_gradient` in bfloat16, the derivative of the activation apart."""
    tokens, outputs = dy_MO.shape
    dy_MO, values = contiguous(dy_MO), contiguous(values)
    dx_MI = dy_MO.new_empty(tokens, inputs)
    cpu.narrow_kernels(isa).input_gradient(
        locate_weight(values, ptr, col, order, values.shape, outputs, inputs),
        dy_MO.data_ptr(),
        dx_MI.data_ptr(),
        tokens,
        cpu.num_threads(),
    )
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
    """Compute `block_linear_weight_gradient` in float32."""
    (tokens, inputs), outputs = x_MI.shape, dy_MO.shape[1]
    dy_MO, x_MI = contiguous(dy_MO), contiguous(x_MI)
    check("the gradient of the output", dy_MO, (tokens, outputs))
    dvalues = x_MI.new_empty(len(col), columns, rows)
    cpu.linear_kernels(isa).weight_gradient(
        locate_weight(None, ptr, col, order, dvalues.shape, outputs, inputs),
        x_MI.data_ptr(),
        dy_MO.data_ptr(),
        dvalues.data_ptr(),
        tokens,
        activation_code(before),
        cpu.num_threads(),
    )
    return dvalues


def bfloat16_weight_gradient(
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
    """Compute `block_linear_weight_gradient` in bfloat16, the activation apart."""
    (tokens, inputs), outputs = x_MI.shape, dy_MO.shape[1]
    dy_MO, x_MI = contiguous(dy_MO), contiguous(activate(before, x_MI))
    check("the gradient of the output", dy_MO, (tokens, outputs))
    dvalues = x_MI.new_empty(len(col), columns, rows)
    cpu.narrow_kernels(isa).weight_gradient(
        locate_weight(None, ptr, col, order, dvalues.shape, outputs, inputs),
        x_MI.data_ptr(),
        dy_MO.data_ptr(),
        dvalues.data_ptr(),
        tokens,
        cpu.num_threads(),
    )
    return dvalues


def register() -> None:
    """Let the operators use the compiled kernels for float32 and bfloat16 tensors on the CPU."""
    isa, narrow_isa = cpu.instruction_sets()[0], cpu.narrow_instruction_sets()[0]
    for operator, kernel, bfloat16_kernel in (
        (ops.block_linear, forward, forward),
        (ops.input_gradient, input_gradient, bfloat16_input_gradient),
        (ops.weight_gradient, weight_gradient, bfloat16_weight_gradient),
    ):
        by_dtype = {
            torch.float32: functools.partial(kernel, isa),
            torch.bfloat16: functools.partial(bfloat16_kernel, narrow_isa),
        }
        register_kernel(operator, "cpu", choose(reference_of(operator), by_dtype))

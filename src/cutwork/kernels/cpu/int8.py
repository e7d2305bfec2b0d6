"""The compiled linear kernel for int8 as a function of tensors, and its registration on the operator."""

import functools

import torch
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.kernels.cpu.arguments import address, check, contiguous, locate_weight
from cutwork.ops.activations import activation_code
from cutwork.ops.dispatch import register_kernel
from cutwork.ops.int8_linear import int8_linear


def forward(
    isa: str,
    x_MI: Tensor,
    values: Tensor,
    scales_O: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
    bias_O: Tensor | None,
    outputs: int,
    columns: int,
    after: str,
) -> Tensor:
    """Compute `int8_linear`."""
    if values.dtype != torch.int8 or values.dim() != 3 or x_MI.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"int8_linear got values of {values.dtype} with {values.dim()} dimensions and an input of {x_MI.dtype}; "
            "quantize() returns int8 values with 3, and the input must be torch.float32 or torch.bfloat16"
        )
    (tokens, inputs), (_, rows, _) = x_MI.shape, values.shape
    check("the scales", scales_O, (outputs,))
    check("the bias", bias_O, (outputs,))
    x_MI, values, scales_O = contiguous(x_MI), contiguous(values), contiguous(scales_O.float())
    bias_O = contiguous(None if bias_O is None else bias_O.float())
    weight = locate_weight(values, ptr, col, order, (len(col), columns, rows), outputs, inputs)
    if (steps := weight.int8_steps()) != len(values):
        raise ValueError(
            f"int8_linear got values of {len(values)} steps, but the units of ptr with {columns} columns each make "
            f"{steps}; pass ptr and columns as they were when quantize() was called"
        )
    y_MO = x_MI.new_empty(tokens, outputs)
    kernels = cpu.narrow_kernels(isa)
    run = kernels.int8_forward_bf16 if x_MI.dtype == torch.bfloat16 else kernels.int8_forward
    run(
        weight,
        scales_O.data_ptr(),
        x_MI.data_ptr(),
        address(bias_O),
        y_MO.data_ptr(),
        tokens,
        activation_code(after),
        cpu.num_threads(),
    )
    return y_MO


def register() -> None:
    """Let `int8_linear` use the compiled kernels on the CPU."""
    register_kernel(int8_linear, "cpu", functools.partial(forward, cpu.narrow_instruction_sets()[0]))

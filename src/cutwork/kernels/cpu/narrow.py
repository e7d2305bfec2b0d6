"""The compiled kernels for bfloat16 and int8 as functions of tensors, and the registration of those for int8.

Those for bfloat16 are registered with the tile kernels for float32, since they serve the same operators.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.kernels.cpu.arguments import address, check, check_index, contiguous
from cutwork.ops.activations import activate, backward, number
from cutwork.ops.dispatch import register_kernel
from cutwork.ops.int8_linear import STEP, int8_linear


@functools.cache
def kernels(instruction_set: str) -> Any:
    """Return the compiled kernels for an instruction set."""
    return cpu.extension().Narrow(instruction_set)


def instruction_sets() -> list[str]:
    """Return the instruction sets of these kernels that this CPU can run, the one that is used first."""
    return cpu.instruction_sets(cpu.NARROW_INSTRUCTION_SETS)


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
    """Compute `block_linear` in bfloat16."""
    x_MI, values, residual_MO = contiguous(x_MI), contiguous(values), contiguous(residual_MO)
    check("the bias", bias_O, (outputs,))
    check("the residual", residual_MO, (len(x_MI), outputs))
    y_MO = x_MI.new_empty(x_MI.shape[0], outputs)
    bias_O = None if bias_O is None else bias_O.float().contiguous()
    weight = _weight(values, ptr, col, order, outputs, x_MI.shape[1])
    kernels(isa).forward(
        *(weight, x_MI.data_ptr(), address(bias_O), address(residual_MO), y_MO.data_ptr(), len(x_MI)),
        *(number(before), number(after), cpu.num_threads()),
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
    """Compute `block_linear_input_gradient` in bfloat16."""
    dy_MO, values = dy_MO.contiguous(), values.contiguous()
    dx_MI = dy_MO.new_empty(dy_MO.shape[0], inputs)
    weight = _weight(values, ptr, col, order, dy_MO.shape[1], inputs)
    kernels(isa).input_gradient(weight, dy_MO.data_ptr(), dx_MI.data_ptr(), len(dy_MO), cpu.num_threads())
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
    """Compute `block_linear_weight_gradient` in bfloat16."""
    dy_MO, x_MI = dy_MO.contiguous(), activate(before, x_MI).contiguous()
    check("the gradient of the output", dy_MO, (len(x_MI), dy_MO.shape[1]))
    dvalues = x_MI.new_empty(len(col), columns, rows)
    weight = _weight(dvalues, ptr, col, order, dy_MO.shape[1], x_MI.shape[1])
    kernels(isa).weight_gradient(
        weight, x_MI.data_ptr(), dy_MO.data_ptr(), dvalues.data_ptr(), len(x_MI), cpu.num_threads()
    )
    return dvalues


def int8_forward(
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
    check("the scales", scales_O, (outputs,))
    check("the bias", bias_O, (outputs,))
    x_MI, values, scales_O = x_MI.contiguous(), values.contiguous(), scales_O.float().contiguous()
    y_MO = x_MI.new_empty(x_MI.shape[0], outputs)
    bias_O = None if bias_O is None else bias_O.float().contiguous()
    _, rows, _ = values.shape
    groups = check_index(ptr, col, order, outputs=outputs, rows=rows, units=len(col))
    weight = cpu.extension().NarrowWeight(
        *(values.data_ptr(), ptr.data_ptr(), col.data_ptr(), address(order)),
        *(outputs, x_MI.shape[1], groups, rows, columns),
    )
    if (steps := weight.steps(STEP)) != len(values):
        raise ValueError(
            f"int8_linear got values of {len(values)} steps, but the units of ptr with {columns} columns each make "
            f"{steps}; pass ptr and columns as they were when quantize() was called"
        )
    run = kernels(isa).int8_forward_bf16 if x_MI.dtype == torch.bfloat16 else kernels(isa).int8_forward
    run(
        *(weight, scales_O.data_ptr(), x_MI.data_ptr(), address(bias_O), y_MO.data_ptr(), len(x_MI)),
        *(number(after), cpu.num_threads()),
    )
    return y_MO


def _weight(values: Tensor, ptr: Tensor, col: Tensor, order: Tensor | None, outputs: int, inputs: int) -> Any:
    units, columns, rows = values.shape
    groups = check_index(ptr, col, order, outputs=outputs, rows=rows, units=units)
    return cpu.extension().NarrowWeight(
        *(values.data_ptr(), ptr.data_ptr(), col.data_ptr(), address(order)),
        *(outputs, inputs, groups, rows, columns),
    )


def register() -> None:
    """Let `int8_linear` use the compiled kernels on the CPU."""
    register_kernel(int8_linear, "cpu", functools.partial(int8_forward, instruction_sets()[0]))

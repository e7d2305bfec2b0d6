"""The compiled convolutions as functions of tensors, and their registration on the operators of `ops`.

They compute in float32 on channels-last memory. The operators' references serve other dtypes, and convolutions in which
a group of rows holds outputs of more than one group of channels.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.kernels.cpu.arguments import address, check, choose, contiguous, locate_weight
from cutwork.ops import block_conv2d as ops
from cutwork.ops.activations import activation_code
from cutwork.ops.dispatch import reference_of, register_kernel


def forward(
    isa: str,
    x: Tensor,
    values: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
    bias: Tensor | None,
    outputs: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    after: str,
    ear: Tensor | None = None,
) -> Tensor:
    """Compute `block_conv2d`."""
    geometry = (kernel_size, stride, padding, dilation, groups)
    height, width = ops.sizes_out(x.shape[2:], *geometry[:4])
    if _straddles(outputs, values.shape[2], order, groups) or min(height, width) < 1:
        return reference_of(ops.block_conv2d)(x, values, ptr, col, order, bias, outputs, *geometry, after)
    x, values, bias = _channels_last(x), contiguous(values), contiguous(bias)
    check("the bias", bias, (outputs,))
    y = ops.empty_image(x, len(x), outputs, height, width)
    cpu.conv_kernels(isa).forward(
        _locate_conv(values, ptr, col, order, values.shape, outputs, x.shape, geometry),
        x.data_ptr(),
        address(bias),
        y.data_ptr(),
        activation_code(after),
        cpu.num_threads(),
    )
    return y


def input_gradient(
    isa: str,
    dy: Tensor,
    values: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
    size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    ear: Tensor | None = None,
) -> Tensor:
    """Compute `block_conv2d_input_gradient`."""
    geometry = (kernel_size, stride, padding, dilation, groups)
    images, outputs = dy.shape[:2]
    if _straddles(outputs, values.shape[2], order, groups):
        return reference_of(ops.input_gradient)(dy, values, ptr, col, order, size, *geometry)
    dy, values = _channels_last(dy), contiguous(values)
    channels, height, width = size
    check("the gradient of the output", dy, (images, outputs, *ops.sizes_out((height, width), *geometry[:4])))
    dx = ops.empty_image(dy, images, channels, height, width)
    cpu.conv_kernels(isa).input_gradient(
        _locate_conv(values, ptr, col, order, values.shape, outputs, (images, *size), geometry),
        dy.data_ptr(),
        dx.data_ptr(),
        cpu.num_threads(),
    )
    return dx


def weight_gradient(
    isa: str,
    dy: Tensor,
    x: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
    rows: int,
    columns: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Compute `block_conv2d_weight_gradient`."""
    geometry = (kernel_size, stride, padding, dilation, groups)
    outputs = dy.shape[1]
    if _straddles(outputs, rows, order, groups):
        return reference_of(ops.weight_gradient)(dy, x, ptr, col, order, rows, columns, *geometry)
    dy, x = _channels_last(dy), _channels_last(x)
    check("the gradient of the output", dy, (len(x), outputs, *ops.sizes_out(x.shape[2:], *geometry[:4])))
    dvalues = x.new_empty(len(col), columns, rows)
    cpu.conv_kernels(isa).weight_gradient(
        _locate_conv(None, ptr, col, order, dvalues.shape, outputs, x.shape, geometry),
        x.data_ptr(),
        dy.data_ptr(),
        dvalues.data_ptr(),
        cpu.num_threads(),
    )
    return dvalues


def register() -> None:
    """Let the operators use the compiled kernels for float32 tensors on the CPU."""
    isa = cpu.instruction_sets()[0]
    for operator, kernel in (
        (ops.block_conv2d, forward),
        (ops.input_gradient, input_gradient),
        (ops.weight_gradient, weight_gradient),
    ):
        by_dtype = {torch.float32: functools.partial(kernel, isa)}
        register_kernel(operator, "cpu", choose(reference_of(operator), by_dtype))


def _straddles(outputs: int, rows: int, order: Tensor | None, channel_groups: int) -> bool:
    """Say whether a group of rows may hold outputs of more than one group of channels."""
    return channel_groups > 1 and (order is not None or (outputs // channel_groups) % rows != 0)


def _locate_conv(values, ptr, col, order, tiles, outputs, x_shape, geometry) -> Any:
    images, channels, *size = x_shape
    kernel_size, stride, padding, dilation, channel_groups = geometry
    down, across = zip(size, kernel_size, stride, padding, dilation, strict=True)
    inputs = kernel_size[0] * kernel_size[1] * (channels // channel_groups)
    weight = locate_weight(values, ptr, col, order, tiles, outputs, inputs)
    return cpu.extension().Conv(weight, down, across, images, channels, channel_groups)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)

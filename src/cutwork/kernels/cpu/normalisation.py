"""The compiled batch norms as functions of tensors, and their registration on the operators of `ops`.

They compute in float32 where the channels of a place lie side by side; the operators' references serve other dtypes.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.kernels.cpu.arguments import address, check, choose
from cutwork.ops import batch_norm as ops
from cutwork.ops.activations import activation_code
from cutwork.ops.dispatch import reference_of, register_kernel


def forward(
    isa: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, after: str
) -> Any:
    """Compute `batch_norm`."""
    if not x.numel():
        return reference_of(ops.normalise)(x, residual, weight, bias, eps, after)
    x, kernels = _rows_of(x), cpu.norm_kernels(isa)
    channels = x.shape[1]
    rows = x.numel() // channels
    mean, var = x.new_empty(channels), x.new_empty(channels)
    kernels.moments(x.data_ptr(), mean.data_ptr(), var.data_ptr(), rows, channels, cpu.num_threads())
    scale, shift = _scale_and_shift(weight, bias, mean, var, eps)
    residual = None if residual is None else _rows_of(residual)
    check("the residual", residual, tuple(x.shape))
    y = ops.empty_results(x)
    kernels.forward(
        cpu.extension().Norm(scale.data_ptr(), shift.data_ptr(), rows, channels),
        *(x.data_ptr(), address(residual), y.data_ptr(), activation_code(after), cpu.num_threads()),
    )
    return y, mean, var


def gradient(
    isa: str,
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    after: str,
) -> Any:
    """Compute `batch_norm_gradient`."""
    if not x.numel():
        return reference_of(ops.norm_gradient)(dy, x, y, weight, bias, mean, var, eps, after)
    channels = x.shape[1]
    rows, kernels, threads = x.numel() // channels, cpu.norm_kernels(isa), cpu.num_threads()
    check("the gradient of the output", dy, tuple(x.shape))
    check("the output", y, tuple(x.shape))
    dy, x, y = _rows_of(dy), _rows_of(x), None if y is None else _rows_of(y)
    scale, shift = _scale_and_shift(weight, bias, mean, var, eps)
    norm = cpu.extension().Norm(scale.data_ptr(), shift.data_ptr(), rows, channels)
    sums = mean.new_empty(2, channels, dtype=torch.float64)
    read, code = (dy.data_ptr(), x.data_ptr(), address(y), mean.data_ptr()), activation_code(after)
    kernels.gradient_sums(norm, *read, sums[0].data_ptr(), sums[1].data_ptr(), code, threads)
    of_variance = (var.double() + eps).reciprocal()
    slope = (-scale * (of_variance * sums[1] / rows)).float()
    offset = (-scale * (sums[0] / rows)).float()
    dx, dresidual = ops.empty_results(x), x.new_empty(0) if y is None else ops.empty_results(x)
    written = (slope.data_ptr(), offset.data_ptr(), dx.data_ptr(), 0 if y is None else dresidual.data_ptr())
    kernels.input_gradient(norm, *read, *written, code, threads)
    return dx, dresidual, (sums[1] * of_variance.sqrt()).float(), sums[0].float()


def register() -> None:
    """Let the operators use the compiled kernels for float32 tensors on the CPU."""
    isa = cpu.instruction_sets()[0]
    for operator, kernel in ((ops.normalise, forward), (ops.norm_gradient, gradient)):
        by_dtype = {torch.float32: functools.partial(kernel, isa)}
        register_kernel(operator, "cpu", choose(reference_of(operator), by_dtype))


def _scale_and_shift(weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Any:
    scale = (var + eps).rsqrt()
    if weight is not None:
        check("the weight", weight, tuple(mean.shape))
        scale = scale * weight
    if bias is not None:
        check("the bias", bias, tuple(mean.shape))
        return scale, torch.addcmul(bias, mean, scale, value=-1)
    return scale, -mean * scale


def _rows_of(x: Tensor) -> Tensor:
    """Return the same numbers lying place by place, the channels of each side by side."""
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)

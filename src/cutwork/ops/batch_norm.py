"""Batch norm by the statistics of the batch, with the sum and the activation that follow: forward and its gradients.

Images are read twice and written once on the way forward, and so they are on the way back. Nothing is kept for the
gradient but what is read, and the result where a sum precedes a ReLU. Results lie channels-last in memory.
"""

from typing import Any, final

import torch
from torch import Tensor

from cutwork.ops.activations import NONE, activate, activation_code, backward
from cutwork.ops.dispatch import can_skip_dispatcher, is_transformed, kernel_of

# Of these a result shows whether the gradient passes, so that the sum before them need not be kept.
AFTER_SUMS = (NONE, "relu")


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    after: str = NONE,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `after(batch_norm(x) + residual)` of an `x[batch, channels, ...]`, and the mean and variance of channels.

    No gradient goes through the mean and the variance that are returned.
    """
    activation_code(after)
    if residual is not None and after not in AFTER_SUMS:
        raise ValueError(f"no {after} is taken along behind a sum; write one of {', '.join(map(repr, AFTER_SUMS))}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"a residual of shape {list(residual.shape)} does not fit an input of {list(x.shape)}")
    if can_skip_dispatcher(x):
        y, mean, var = _BatchNorm.apply(x, residual, weight, bias, eps, after)
    else:
        y, mean, var = (_norm if is_transformed() else normalise)(x, residual, weight, bias, eps, after)
    return y, mean.detach(), var.detach()


def _norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, after: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `after(batch_norm(x) + residual)`, and the mean and the variance."""
    wide = _widened(x)
    var, mean = torch.var_mean(wide, _others(x), correction=0)
    z = _normalised(wide, mean, var, eps)
    if weight is not None:
        z = z * _shaped(_widened(weight), x)
    if bias is not None:
        z = z + _shaped(_widened(bias), x)
    if residual is not None:
        z = z + residual
    return _like_images(activate(after, z).to(x.dtype)), mean, var


NAME = "cutwork::batch_norm"
normalise = torch.library.custom_op(NAME, _norm, mutates_args=())


@torch.library.custom_op("cutwork::batch_norm_gradient", mutates_args=())
def norm_gradient(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    after: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `x` and of a residual, and of weight and bias; a residual has one if there is `y`."""
    dx, dz, dweight, dbias = _gradient(dy, x, y, weight, bias, mean, var, eps, after)
    return _like_images(dx), _like_images(dz) if y is not None else dz.new_empty(0), dweight, dbias


def _gradient(dy, x, y, weight, bias, mean, var, eps, after):
    wide, others = _widened(x), _others(x)
    unit = _normalised(wide, mean, var, eps)
    scale = _shaped(_widened(weight), x) if weight is not None else 1.0
    z = y if y is not None else unit * scale + (_shaped(_widened(bias), x) if bias is not None else 0.0)
    dz = backward(after, _widened(dy), _widened(z))
    dweight, dbias = (dz * unit).sum(others), dz.sum(others)
    count = x.numel() // x.shape[1]
    centred = dz - _shaped(dbias / count, x) - unit * _shaped(dweight / count, x)
    dx = centred * scale * _shaped((var + eps).rsqrt(), x)
    return dx.to(x.dtype), dz.to(x.dtype), dweight, dbias


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _others(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _shaped(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(-1, *(1,) * (x.ndim - 2))


def _normalised(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return (x - _shaped(mean, x)) * _shaped((var + eps).rsqrt(), x)


def _like_images(x: Tensor) -> Tensor:
    """Return results as they lie in memory: channel by channel at each place, whatever the input does."""
    if is_transformed():
        return x
    if x.ndim == 4:
        return x.clone(memory_format=torch.channels_last)
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def empty_results(x: Tensor) -> Tensor:
    """Return a tensor with room for results of this shape."""
    if x.ndim == 4:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1)


@normalise.register_fake
def _(x, residual, weight, bias, eps, after):
    sums = x.new_empty(x.shape[1], dtype=_wide_dtype(x))
    return empty_results(x), sums, torch.empty_like(sums)


@norm_gradient.register_fake
def _(dy, x, y, weight, bias, mean, var, eps, after):
    sums = torch.empty_like(mean)
    return empty_results(x), x.new_empty(0) if y is None else empty_results(x), sums, torch.empty_like(sums)


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _save(ctx, inputs, output):
    x, residual, weight, bias, ctx.eps, ctx.after = inputs
    y, mean, var = output
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, y if ctx.has_residual else None, weight, bias, mean, var)
    ctx.mark_non_differentiable(mean, var)


def _gradients(ctx, dy, *of_statistics):
    x, y, weight, bias, mean, var = ctx.saved_tensors
    if torch.is_grad_enabled():
        # A graph of the gradient is recorded: it leads through the statistics too.
        var, mean = torch.var_mean(_widened(x), _others(x), correction=0)
        dx, dz, dweight, dbias = _gradient(dy, x, y, weight, bias, mean, var, ctx.eps, ctx.after)
    else:
        compute = kernel_of(norm_gradient, dy) if can_skip_dispatcher(dy) else norm_gradient
        dx, dz, dweight, dbias = compute(dy, x, y, weight, bias, mean, var, ctx.eps, ctx.after)
    return (
        dx,
        dz if ctx.has_residual else None,
        None if weight is None else dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
        None,
        None,
    )


normalise.register_autograd(_gradients, setup_context=_save)


@final
class _BatchNorm(torch.autograd.Function):
    """`normalise` without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, x, residual, weight, bias, eps, after):
        inputs = (x, residual, weight, bias, eps, after)
        output = kernel_of(normalise, x)(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *dy):
        return _gradients(ctx, *dy)

"""The linear layer of a compressed weight: what is computed, forward and for every gradient.

Each operator has a plain PyTorch reference, which is its meaning and runs wherever no kernel is registered. They take
plain tensors: `values[units, columns, rows]`, `ptr[groups + 1]`, `col[units]` and `order[outputs]`, as in `Topology`.
An `ear` is the number of a listener that is told of each product in backward (see `overhearing`); it changes no
result. Legend: M tokens, I inputs, O outputs.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cutwork.ops.activations import NONE, activate, backward
from cutwork.ops.backward import check_has_gradient, gradient_of, with_nones
from cutwork.ops.dispatch import can_skip_dispatcher, is_autocast_enabled, is_transformed, kernel_of
from cutwork.ops.overhearing import tell


def linear(
    x: Tensor,
    values: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None = None,
    bias_O: Tensor | None = None,
    *,
    outputs: int,
    residual: Tensor | None = None,
    before: str = NONE,
    after: str = NONE,
    ear: Tensor | None = None,
) -> Tensor:
    """Return `after(before(x) W^T + bias_O) + residual` for an `x[..., inputs]`, the fastest way there is here.

    The activation `before` costs training nothing: of it only its input is kept.
    """
    if is_autocast_enabled(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, values = x.to(dtype), values.to(dtype)
        bias_O = None if bias_O is None else bias_O.to(dtype)
    if after != NONE and torch.is_grad_enabled():
        y = activate(after, linear(x, values, ptr, col, order, bias_O, outputs=outputs, before=before, ear=ear))
        return y if residual is None else y + residual
    shape = x.shape
    if len(shape) != 2:
        x = x.reshape(-1, shape[-1])
        residual = None if residual is None else residual.reshape(-1, outputs)
    if not can_skip_dispatcher(x):
        product = _product if is_transformed() else block_linear
        y = product(x, values, ptr, col, order, bias_O, residual, outputs, before, after, ear)
    elif torch.is_grad_enabled():
        y = _Linear.apply(x, values, ptr, col, order, bias_O, residual, outputs, before, ear)
    else:
        kernel = kernel_of(block_linear, x)
        y = kernel(x, values, ptr, col, order, bias_O, residual, outputs, before, after)
    return y if len(shape) == 2 else y.view(*shape[:-1], outputs)


def _product(
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
    """Return `y_MO = after(before(x_MI) W^T + bias_O) + residual_MO`."""
    y_MO = activate(before, x_MI) @ dense_weight(values, ptr, col, order, outputs, x_MI.shape[1]).T
    y_MO = activate(after, y_MO if bias_O is None else y_MO + bias_O)
    return y_MO if residual_MO is None else y_MO + residual_MO


block_linear = torch.library.custom_op("cutwork::block_linear", _product, mutates_args=())


@torch.library.custom_op("cutwork::block_linear_input_gradient", mutates_args=())
def input_gradient(
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
    """Return the gradient of `x_MI` in `before(x_MI) W^T`; without an activation it does not need `x_MI`."""
    dx_MI = dy_MO @ dense_weight(values, ptr, col, order, dy_MO.shape[1], inputs)
    return dx_MI if before == NONE else backward(before, dx_MI, _given(x_MI))


@torch.library.custom_op("cutwork::block_linear_weight_gradient", mutates_args=())
def weight_gradient(
    dy_MO: Tensor,
    x_MI: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
    rows: int,
    columns: int,
    before: str,
) -> Tensor:
    """Return what `dy_MO^T before(x_MI)` has at the kept units; zero where a unit hangs over."""
    return kept_values(dy_MO.T @ activate(before, x_MI), ptr, col, order, rows, columns)


def kept_values(weight_OI: Tensor, ptr: Tensor, col: Tensor, order: Tensor | None, rows: int, columns: int) -> Tensor:
    """Return the values that a dense weight has at the kept units."""
    if order is not None:
        weight_OI = weight_OI[order.long()]
    height, width = len(ptr) - 1, -(-weight_OI.shape[1] // columns)
    padding = (0, width * columns - weight_OI.shape[1], 0, height * rows - weight_OI.shape[0])
    tiles = torch.nn.functional.pad(weight_OI, padding).view(height, rows, width, columns)
    return tiles[find_groups(ptr), :, col.long() // columns, :].transpose(1, 2).contiguous()


def dense_weight(values: Tensor, ptr: Tensor, col: Tensor, order: Tensor | None, outputs: int, inputs: int) -> Tensor:
    """Return the dense `W_OI`."""
    _, columns, rows = values.shape
    width = -(-inputs // columns)
    tiles = values.new_zeros(len(ptr) - 1, rows, width, columns)
    tiles[find_groups(ptr), :, col.long() // columns, :] = values.transpose(1, 2)
    weight_OI = tiles.view(-1, width * columns)[:outputs, :inputs]
    return weight_OI if order is None else torch.empty_like(weight_OI).index_copy_(0, order.long(), weight_OI)


def find_groups(ptr: Tensor) -> Tensor:
    """Return for each unit the group that it belongs to."""
    counts = ptr.diff().long()
    return torch.arange(len(counts), device=ptr.device).repeat_interleave(counts)


def _given(x: Tensor | None) -> Tensor:
    if x is None:
        raise ValueError("the gradient behind an activation needs the input; pass it")
    return x


@block_linear.register_fake
def _(x_MI, values, ptr, col, order, bias_O, residual_MO, outputs, before, after, ear=None):
    return x_MI.new_empty(x_MI.shape[0], outputs)


@input_gradient.register_fake
def _(dy_MO, values, ptr, col, order, x_MI, inputs, before, ear=None):
    return dy_MO.new_empty(dy_MO.shape[0], inputs)


@weight_gradient.register_fake
def _(dy_MO, x_MI, ptr, col, order, rows, columns, before):
    return x_MI.new_empty(col.shape[0], columns, rows)


def _save_forward(ctx, inputs, output):
    x_MI, values, ptr, col, order, _, _, _, ctx.before, ctx.after, ctx.ear = inputs
    ctx.save_for_backward(x_MI, values, ptr, col, order)


def _forward_gradients(ctx, dy_MO):
    check_has_gradient(ctx.after)
    x_MI, values, ptr, col, order = ctx.saved_tensors
    needs_x, needs_values, _, _, _, needs_bias, needs_residual, *_ = ctx.needs_input_grad
    dx = dvalues = None
    tell(ctx.ear, x_MI, dy_MO, before=ctx.before)
    if needs_x:
        x = None if ctx.before == NONE else x_MI
        compute = gradient_of(input_gradient, dy_MO)
        dx = compute(dy_MO, values, ptr, col, order, x, x_MI.shape[1], ctx.before, ctx.ear)
    if needs_values:
        compute = gradient_of(weight_gradient, dy_MO)
        dvalues = compute(dy_MO, x_MI, ptr, col, order, values.shape[2], values.shape[1], ctx.before)
    bias = dy_MO.sum(0) if needs_bias else None
    return with_nones(ctx, dx, dvalues, None, None, None, bias, dy_MO if needs_residual else None)


def _save_input_gradient(ctx, inputs, output):
    dy_MO, values, ptr, col, order, _, _, ctx.before, ctx.ear = inputs
    ctx.save_for_backward(dy_MO, values, ptr, col, order)


def _input_gradient_gradients(ctx, g_MI):
    _check_plain(ctx.before)
    dy_MO, values, ptr, col, order = ctx.saved_tensors
    tell(ctx.ear, g_MI, dy_MO)
    return with_nones(
        ctx,
        block_linear(g_MI, values, ptr, col, order, None, None, dy_MO.shape[1], NONE, NONE, ctx.ear),
        weight_gradient(dy_MO, g_MI, ptr, col, order, values.shape[2], values.shape[1], NONE),
    )


def _save_weight_gradient(ctx, inputs, output):
    dy_MO, x_MI, ptr, col, order, _, _, ctx.before = inputs
    ctx.save_for_backward(dy_MO, x_MI, ptr, col, order)


def _weight_gradient_gradients(ctx, g_values):
    _check_plain(ctx.before)
    dy_MO, x_MI, ptr, col, order = ctx.saved_tensors
    return with_nones(
        ctx,
        block_linear(x_MI, g_values, ptr, col, order, None, None, dy_MO.shape[1], NONE, NONE),
        input_gradient(dy_MO, g_values, ptr, col, order, None, x_MI.shape[1], NONE),
    )


def _check_plain(before: str) -> None:
    if before != NONE:
        raise ValueError("second derivatives stop at a fused activation; apply the activation apart")


block_linear.register_autograd(_forward_gradients, setup_context=_save_forward)
input_gradient.register_autograd(_input_gradient_gradients, setup_context=_save_input_gradient)
weight_gradient.register_autograd(_weight_gradient_gradients, setup_context=_save_weight_gradient)


@final
class _Linear(torch.autograd.Function):
    """`block_linear` without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, x_MI, values, ptr, col, order, bias_O, residual_MO, outputs, before, ear):
        ctx.before, ctx.after, ctx.ear = before, NONE, ear
        ctx.save_for_backward(x_MI, values, ptr, col, order)
        kernel = kernel_of(block_linear, x_MI)
        return kernel(x_MI, values, ptr, col, order, bias_O, residual_MO, outputs, before, NONE)

    @staticmethod
    def backward(ctx: Any, *dy_MO):
        return _forward_gradients(ctx, *dy_MO)


# One multiplication and one addition for each kept value and token.
@register_flop_formula([torch.ops.cutwork.block_linear, torch.ops.cutwork.block_linear_input_gradient])
def _(tokens_shape, values_shape, *rest, out_shape):
    return 2 * torch.Size(values_shape).numel() * tokens_shape[0]


@register_flop_formula(torch.ops.cutwork.block_linear_weight_gradient)
def _(dy_shape, x_shape, *rest, out_shape):
    return 2 * torch.Size(out_shape).numel() * dy_shape[0]

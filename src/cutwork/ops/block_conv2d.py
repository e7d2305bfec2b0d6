"""The 2-d convolution with a compressed weight: what is computed, forward and for every gradient.

The weight is seen as the matrix `[outputs, kernel rows * kernel columns * channels / groups]`, whose columns are
ordered so, and compressed as for `block_linear`; so is an `ear`. Every result lies in the channels-last memory format,
whatever the input does, and is no view, so that the next layer may write into it.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import conv2d as dense_conv2d
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.utils.flop_counter import register_flop_formula

from cutwork.ops.activations import NONE, activate
from cutwork.ops.backward import check_has_gradient, gradient_of, with_nones
from cutwork.ops.block_linear import dense_weight, kept_values, linear
from cutwork.ops.dispatch import can_skip_dispatcher, is_autocast_enabled, is_transformed, kernel_of
from cutwork.ops.overhearing import tell

Pair = tuple[int, int]


def conv2d(
    x: Tensor,
    values: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    outputs: int,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    after: str = NONE,
    ear: Tensor | None = None,
) -> Tensor:
    """Return `after(conv2d(x) + bias)` for an `x[..., channels, height, width]`, the fastest way there is here."""
    if x.ndim == 3:
        x = x.unsqueeze(0)
        y = conv2d(
            *(x, values, ptr, col, order, bias),
            outputs=outputs,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            after=after,
            ear=ear,
        )
        return y.squeeze(0)
    if is_autocast_enabled(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, values = x.to(dtype), values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if (*kernel_size, *stride, *padding, groups) == (1, 1, 1, 1, 0, 0, 1):
        # Pixels are tokens, and in channels-last they already lie so.
        y = linear(x.permute(0, 2, 3, 1), values, ptr, col, order, bias, outputs=outputs, after=after, ear=ear)
        return y.permute(0, 3, 1, 2)
    geometry = (list(kernel_size), list(stride), list(padding), list(dilation), groups)
    if after != NONE and torch.is_grad_enabled():
        return activate(after, _conv2d(x, values, ptr, col, order, bias, outputs, *geometry, ear))
    if can_skip_dispatcher(x) and not torch.is_grad_enabled():
        return kernel_of(block_conv2d, x)(x, values, ptr, col, order, bias, outputs, *geometry, after)
    if after == NONE:
        return _conv2d(x, values, ptr, col, order, bias, outputs, *geometry, ear)
    return block_conv2d(x, values, ptr, col, order, bias, outputs, *geometry, after)


def _conv2d(x, values, ptr, col, order, bias, outputs, kernel_size, stride, padding, dilation, groups, ear):
    geometry = (kernel_size, stride, padding, dilation, groups)
    if can_skip_dispatcher(x):
        return _Conv2d.apply(x, values, ptr, col, order, bias, outputs, *geometry, ear)
    product = _product if is_transformed() else block_conv2d
    return product(x, values, ptr, col, order, bias, outputs, *geometry, NONE, ear)


def _product(
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
    """Return `after(conv2d(x) + bias)`."""
    weight = _dense(values, ptr, col, order, outputs, x.shape[1], kernel_size, groups)
    return _channels_last(activate(after, dense_conv2d(x, weight, bias, stride, padding, dilation, groups)))


block_conv2d = torch.library.custom_op("cutwork::block_conv2d", _product, mutates_args=())


@torch.library.custom_op("cutwork::block_conv2d_input_gradient", mutates_args=())
def input_gradient(
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
    """Return the gradient of an `x` of `size`: channels, height and width."""
    weight = _dense(values, ptr, col, order, dy.shape[1], size[0], kernel_size, groups)
    return _channels_last(conv2d_input([len(dy), *size], weight, dy, stride, padding, dilation, groups))


@torch.library.custom_op("cutwork::block_conv2d_weight_gradient", mutates_args=())
def weight_gradient(
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
    """Return what the gradient of the weight has at the kept units; zero where a unit hangs over."""
    shape = [dy.shape[1], x.shape[1] // groups, *kernel_size]
    weight = conv2d_weight(x, shape, dy, stride, padding, dilation, groups)
    return kept_values(weight.movedim(1, -1).reshape(len(weight), -1), ptr, col, order, rows, columns)


def sizes_out(
    size: Sequence[int], kernel_size: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Pair:
    """Return how many rows and columns come out for how many go in.

    >>> sizes_out((224, 224), [7, 7], [2, 2], [3, 3], [1, 1])
    (112, 112)
    """
    rows, columns = (
        (size[i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    )
    return rows, columns


def _dense(values, ptr, col, order, outputs, channels, kernel_size, groups):
    channels //= groups
    matrix = dense_weight(values, ptr, col, order, outputs, kernel_size[0] * kernel_size[1] * channels)
    return matrix.reshape(outputs, *kernel_size, channels).movedim(-1, 1)


def empty_image(like: Tensor, *size: int) -> Tensor:
    """Return a tensor `[images, channels, height, width]` with room for results, channels-last and no view."""
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    if is_transformed():
        # There is no rule by which vmap could clone into another format, and views of results are allowed there.
        return x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
    return x.clone(memory_format=torch.channels_last)


@block_conv2d.register_fake
def _(x, values, ptr, col, order, bias, outputs, kernel_size, stride, padding, dilation, groups, after, ear=None):
    return empty_image(x, x.shape[0], outputs, *sizes_out(x.shape[2:], kernel_size, stride, padding, dilation))


@input_gradient.register_fake
def _(dy, values, ptr, col, order, size, kernel_size, stride, padding, dilation, groups, ear=None):
    return empty_image(dy, dy.shape[0], *size)


@weight_gradient.register_fake
def _(dy, x, ptr, col, order, rows, columns, kernel_size, stride, padding, dilation, groups):
    return x.new_empty(col.shape[0], columns, rows)


def _save_forward(ctx, inputs, output):
    x, values, ptr, col, order, _, _, *ctx.geometry, ctx.after, ctx.ear = inputs
    ctx.save_for_backward(x, values, ptr, col, order)


def _forward_gradients(ctx, dy):
    check_has_gradient(ctx.after)
    x, values, ptr, col, order = ctx.saved_tensors
    needs_x, needs_values, _, _, _, needs_bias, *_ = ctx.needs_input_grad
    dx = dvalues = None
    tell(ctx.ear, x, dy, geometry=ctx.geometry)
    if needs_x:
        compute = gradient_of(input_gradient, dy)
        dx = compute(dy, values, ptr, col, order, list(x.shape[1:]), *ctx.geometry, ctx.ear)
    if needs_values:
        compute = gradient_of(weight_gradient, dy)
        dvalues = compute(dy, x, ptr, col, order, values.shape[2], values.shape[1], *ctx.geometry)
    bias = dy.sum((0, 2, 3)) if needs_bias else None
    return with_nones(ctx, dx, dvalues, None, None, None, bias)


def _save_input_gradient(ctx, inputs, output):
    dy, values, ptr, col, order, _, *ctx.geometry, ctx.ear = inputs
    ctx.save_for_backward(dy, values, ptr, col, order)


def _input_gradient_gradients(ctx, g):
    dy, values, ptr, col, order = ctx.saved_tensors
    tell(ctx.ear, g, dy, geometry=ctx.geometry)
    return with_nones(
        ctx,
        block_conv2d(g, values, ptr, col, order, None, dy.shape[1], *ctx.geometry, NONE, ctx.ear),
        weight_gradient(dy, g, ptr, col, order, values.shape[2], values.shape[1], *ctx.geometry),
    )


def _save_weight_gradient(ctx, inputs, output):
    dy, x, ptr, col, order, _, _, *ctx.geometry = inputs
    ctx.save_for_backward(dy, x, ptr, col, order)


def _weight_gradient_gradients(ctx, g_values):
    dy, x, ptr, col, order = ctx.saved_tensors
    return with_nones(
        ctx,
        block_conv2d(x, g_values, ptr, col, order, None, dy.shape[1], *ctx.geometry, NONE),
        input_gradient(dy, g_values, ptr, col, order, list(x.shape[1:]), *ctx.geometry),
    )


block_conv2d.register_autograd(_forward_gradients, setup_context=_save_forward)
input_gradient.register_autograd(_input_gradient_gradients, setup_context=_save_input_gradient)
weight_gradient.register_autograd(_weight_gradient_gradients, setup_context=_save_weight_gradient)


@final
class _Conv2d(torch.autograd.Function):
    """`block_conv2d` without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, x, values, ptr, col, order, bias, outputs, *geometry_and_ear):
        *geometry, ctx.ear = geometry_and_ear
        ctx.geometry, ctx.after = geometry, NONE
        ctx.save_for_backward(x, values, ptr, col, order)
        kernel = kernel_of(block_conv2d, x)
        return kernel(x, values, ptr, col, order, bias, outputs, *geometry, NONE)

    @staticmethod
    def backward(ctx: Any, *dy):
        return _forward_gradients(ctx, *dy)


# One multiplication and one addition for each kept value at each pixel that comes out.
@register_flop_formula(torch.ops.cutwork.block_conv2d)
def _(x_shape, values_shape, *rest, out_shape):
    return _flops(values_shape, out_shape)


@register_flop_formula([torch.ops.cutwork.block_conv2d_input_gradient])
def _(dy_shape, values_shape, *rest, out_shape):
    return _flops(values_shape, dy_shape)


@register_flop_formula([torch.ops.cutwork.block_conv2d_weight_gradient])
def _(dy_shape, x_shape, *rest, out_shape):
    return _flops(out_shape, dy_shape)


def _flops(values_shape, y_shape):
    images, _, rows, columns = y_shape
    return 2 * torch.Size(values_shape).numel() * images * rows * columns

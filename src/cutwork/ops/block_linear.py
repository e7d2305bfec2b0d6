"""The linear layer of a compressed weight: what is computed, forward and for every gradient.

Each operator has a plain PyTorch reference, which is its meaning and runs wherever no kernel is registered. They take
plain tensors: `values[units, columns, rows]`, `ptr[groups + 1]` and `col[units]`, as in `Topology`. Legend: M tokens,
I inputs, O outputs. Outputs stand in the order of the groups; a layer that shuffles them puts them back itself.
"""

import torch
from torch import Tensor


@torch.library.custom_op("cutwork::block_linear", mutates_args=())
def block_linear(x_MI: Tensor, values: Tensor, ptr: Tensor, col: Tensor, bias_O: Tensor | None, outputs: int) -> Tensor:
    """Return `y_MO = x_MI W^T + bias_O`."""
    y_MO = x_MI @ dense_weight(values, ptr, col, outputs, x_MI.shape[1]).T
    return y_MO if bias_O is None else y_MO + bias_O


@torch.library.custom_op("cutwork::block_linear_input_gradient", mutates_args=())
def input_gradient(dy_MO: Tensor, values: Tensor, ptr: Tensor, col: Tensor, inputs: int) -> Tensor:
    """Return `dx_MI = dy_MO W`."""
    return dy_MO @ dense_weight(values, ptr, col, dy_MO.shape[1], inputs)


@torch.library.custom_op("cutwork::block_linear_weight_gradient", mutates_args=())
def weight_gradient(dy_MO: Tensor, x_MI: Tensor, ptr: Tensor, col: Tensor, rows: int, columns: int) -> Tensor:
    """Return what `dy_MO^T x_MI` has at the kept units; zero where a unit hangs over."""
    return kept_values(dy_MO.T @ x_MI, ptr, col, rows, columns)


def kept_values(weight_OI: Tensor, ptr: Tensor, col: Tensor, rows: int, columns: int) -> Tensor:
    """Return the values that a dense weight has at the kept units."""
    height, width = len(ptr) - 1, -(-weight_OI.shape[1] // columns)
    padding = (0, width * columns - weight_OI.shape[1], 0, height * rows - weight_OI.shape[0])
    tiles = torch.nn.functional.pad(weight_OI, padding).view(height, rows, width, columns)
    return tiles[_groups(ptr), :, col.long() // columns, :].transpose(1, 2).contiguous()


def dense_weight(values: Tensor, ptr: Tensor, col: Tensor, outputs: int, inputs: int) -> Tensor:
    """Return the dense `W_OI`."""
    _, columns, rows = values.shape
    width = -(-inputs // columns)
    tiles = values.new_zeros(len(ptr) - 1, rows, width, columns)
    tiles[_groups(ptr), :, col.long() // columns, :] = values.transpose(1, 2)
    return tiles.view(-1, width * columns)[:outputs, :inputs]


def _groups(ptr: Tensor) -> Tensor:
    counts = ptr.diff().long()
    return torch.arange(len(counts), device=ptr.device).repeat_interleave(counts)


@block_linear.register_fake
def _(x_MI: Tensor, values: Tensor, ptr: Tensor, col: Tensor, bias_O: Tensor | None, outputs: int) -> Tensor:
    return x_MI.new_empty(x_MI.shape[0], outputs)


@input_gradient.register_fake
def _(dy_MO: Tensor, values: Tensor, ptr: Tensor, col: Tensor, inputs: int) -> Tensor:
    return dy_MO.new_empty(dy_MO.shape[0], inputs)


@weight_gradient.register_fake
def _(dy_MO: Tensor, x_MI: Tensor, ptr: Tensor, col: Tensor, rows: int, columns: int) -> Tensor:
    return x_MI.new_empty(col.shape[0], columns, rows)


def _save_forward(ctx, inputs, output):
    x_MI, values, ptr, col, bias_O, ctx.outputs = inputs
    ctx.has_bias = bias_O is not None
    ctx.save_for_backward(x_MI, values, ptr, col)


def _forward_gradients(ctx, dy_MO):
    x_MI, values, ptr, col = ctx.saved_tensors
    needs_x, needs_values = ctx.needs_input_grad[:2]
    dy_MO = dy_MO.contiguous()
    return (
        input_gradient(dy_MO, values, ptr, col, x_MI.shape[1]) if needs_x else None,
        weight_gradient(dy_MO, x_MI, ptr, col, values.shape[2], values.shape[1]) if needs_values else None,
        None,
        None,
        dy_MO.sum(0) if ctx.has_bias else None,
        None,
    )


def _save_input_gradient(ctx, inputs, output):
    dy_MO, values, ptr, col, ctx.inputs = inputs
    ctx.save_for_backward(dy_MO, values, ptr, col)


def _input_gradient_gradients(ctx, g_MI):
    dy_MO, values, ptr, col = ctx.saved_tensors
    g_MI = g_MI.contiguous()
    return (
        block_linear(g_MI, values, ptr, col, None, dy_MO.shape[1]),
        weight_gradient(dy_MO, g_MI, ptr, col, values.shape[2], values.shape[1]),
        None,
        None,
        None,
    )


def _save_weight_gradient(ctx, inputs, output):
    dy_MO, x_MI, ptr, col, _, _ = inputs
    ctx.save_for_backward(dy_MO, x_MI, ptr, col)


def _weight_gradient_gradients(ctx, g_values):
    dy_MO, x_MI, ptr, col = ctx.saved_tensors
    g_values = g_values.contiguous()
    return (
        block_linear(x_MI, g_values, ptr, col, None, dy_MO.shape[1]),
        input_gradient(dy_MO, g_values, ptr, col, x_MI.shape[1]),
        None,
        None,
        None,
        None,
    )


block_linear.register_autograd(_forward_gradients, setup_context=_save_forward)
input_gradient.register_autograd(_input_gradient_gradients, setup_context=_save_input_gradient)
weight_gradient.register_autograd(_weight_gradient_gradients, setup_context=_save_weight_gradient)

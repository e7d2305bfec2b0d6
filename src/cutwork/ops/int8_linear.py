"""The linear layer of a compressed weight in int8, for inference: what is computed, and the form of such a weight.

Weights have a scale for each output. Each row of the input is cut, when it comes, into 255 parts between the least and
the greatest number in it, zero included; sums are exact. Legend: M tokens, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cutwork.ops.activations import activate
from cutwork.ops.block_linear import dense_weight, find_groups

# Products that an instruction adds up in one lane, and so the kept inputs that lie side by side for an output.
STEP = 4


def quantize(values: Tensor, ptr: Tensor, col: Tensor, order: Tensor | None, outputs: int) -> tuple[Tensor, Tensor]:
    """Return the int8 form of compressed values, `[steps, rows, 4]`, and `scales_O`, which turn them back.

    A step is four kept inputs of a group, in the order of its units and their columns; the last of a group is filled
    with zeros. The greatest weight of an output becomes 127 or -127; the others are rounded to nearest.

    >>> values, ptr, col = torch.tensor([[[1.0, 4.0]], [[-2.0, 0.1]]]), torch.tensor([0, 2]), torch.tensor([0, 3])
    >>> integers, scales = quantize(values, ptr, col, None, outputs=2)
    >>> integers.tolist(), (127 * scales).tolist()
    ([[[64, -127, 0, 0], [127, 3, 0, 0]]], [2.0, 4.0])
    """
    _, columns, rows = values.shape
    group_of_unit = find_groups(ptr)
    index = group_of_unit.unsqueeze(1).expand(-1, rows)
    greatest = values.new_zeros(len(ptr) - 1, rows).scatter_reduce_(0, index, values.abs().amax(1), "amax")
    scales = greatest / 127
    parts = values / torch.where(scales == 0, 1, scales)[group_of_unit].unsqueeze(1)
    places, steps = _places(ptr, columns)
    integers = values.new_zeros(steps * STEP, rows, dtype=torch.int8)
    integers[places] = parts.round().to(torch.int8).view(-1, rows)
    scales_O = scales.flatten()[:outputs]
    if order is not None:
        scales_O = torch.empty_like(scales_O).index_copy_(0, order.long(), scales_O)
    return integers.view(steps, STEP, rows).transpose(1, 2).contiguous(), scales_O


def integers_of(values: Tensor, ptr: Tensor, columns: int) -> Tensor:
    """Return int8 values in the form of compressed ones, `[units, columns, rows]`."""
    rows = values.shape[1]
    places, _ = _places(ptr, columns)
    return values.transpose(1, 2).reshape(-1, rows)[places].view(-1, columns, rows)


@torch.library.custom_op("cutwork::int8_linear", mutates_args=())
def int8_linear(
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
    """Return `y_MO = after(x_MI W^T + bias_O)` in the dtype of `x_MI`, float32 or bfloat16.

    Values and scales are those that `quantize` returns for units of so many columns. It has no gradient. A row of the
    input that is not finite gives a row of nan.
    """
    numbers_MI, scales_M, zeros_M = _quantize_rows(x_MI.float())
    integers = integers_of(values, ptr, columns).double()
    weight_OI = dense_weight(integers, ptr, col, order, outputs, x_MI.shape[1])
    # In float64 whole numbers are exact as far as any sum of these goes.
    sums_MO = (numbers_MI.double() - zeros_M.double()) @ weight_OI.T
    y_MO = sums_MO.float() * (scales_M * scales_O)
    y_MO = y_MO if bias_O is None else y_MO + bias_O.float()
    return activate(after, y_MO.to(x_MI.dtype))


def _quantize_rows(x_MI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers from 0 to 255, and for each row the scale of their steps and the number that stands for zero."""
    # A column of zeros, so that zero is among the numbers and a row may be empty.
    wide = F.pad(x_MI, (1, 0))
    low_M, high_M = wide.amin(1, keepdim=True), wide.amax(1, keepdim=True)
    span_M = high_M - low_M
    # As a tensor: a number divided by a tensor is multiplied by the reciprocal, which rounds twice.
    parts_M = torch.full_like(span_M, 255)
    # Rows smaller than any result that matters are zero, or the division would overflow.
    inverse_M = torch.where(span_M > 1e-30, parts_M / span_M, 0)
    scales_M = torch.where(span_M > 1e-30, span_M / parts_M, 0)
    finite_M = span_M.isfinite()
    zeros_M = torch.where(finite_M, (-low_M * inverse_M).round(), 0)
    numbers_MI = torch.where(finite_M, ((x_MI * inverse_M).round() + zeros_M).clamp(0, 255), 0)
    return numbers_MI, torch.where(finite_M, scales_M, torch.nan), zeros_M


def num_steps(ptr: Tensor, columns: int) -> int:
    """Return how many steps the int8 form of units of so many columns has."""
    return int(((ptr.diff().long() * columns + STEP - 1) // STEP).sum())


def _places(ptr: Tensor, columns: int) -> tuple[Tensor, int]:
    """Return where each kept input of each unit stands among those of all steps, and how many steps there are."""
    counts = ptr.diff().long() * columns
    steps = (counts + STEP - 1) // STEP
    shift = (STEP * steps - counts).cumsum(0) - (STEP * steps - counts)
    places = torch.arange(int(counts.sum()), device=ptr.device) + shift.repeat_interleave(counts)
    return places, int(steps.sum())


@int8_linear.register_fake
def _(x_MI, values, scales_O, ptr, col, order, bias_O, outputs, columns, after):
    return x_MI.new_empty(x_MI.shape[0], outputs)


def _no_gradient(ctx, dy_MO):
    raise ValueError("int8_linear has no gradient; train in float32 or bfloat16 and quantize afterwards")


int8_linear.register_autograd(_no_gradient)

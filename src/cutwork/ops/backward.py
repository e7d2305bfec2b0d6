"""What the backward passes of products have in common."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cutwork.ops.activations import NONE
from cutwork.ops.dispatch import can_skip_dispatcher, kernel_of


def check_has_gradient(after: str) -> None:
    """Raise ValueError where a product has taken along an activation of what it returns."""
    if after != NONE:
        raise ValueError("a product followed by an activation has no gradient of its own; apply the activation apart")


def gradient_of(operator: Any, dy: Tensor) -> Callable[..., Tensor]:
    """Return what computes a gradient, which is an operator itself, where `dy` is."""
    # While a graph of the gradient is recorded, only the operators will do: they have gradients themselves.
    directly = not torch.is_grad_enabled() and can_skip_dispatcher(dy)
    return kernel_of(operator, dy) if directly else operator


def with_nones(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the first inputs, and None for each input that follows."""
    return *gradients, *(None,) * (len(ctx.needs_input_grad) - len(gradients))

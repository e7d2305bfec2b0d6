"""The activations that a product can take along, by name: of what it reads and of what it writes."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

NONE = "none"

# The order is that of the kernels' enumeration.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    NONE: lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
NUMBERS = {name: place for place, name in enumerate(ACTIVATIONS)}
GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    NONE: lambda dy, x: dy,
    "relu": lambda dy, x: dy * (x > 0),
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "silu": torch.ops.aten.silu_backward,
}


def activate(name: str, x: Tensor) -> Tensor:
    """Return the activation of `x`."""
    activation_code(name)
    return ACTIVATIONS[name](x)


def backward(name: str, dy: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of `x`, given that of its activation."""
    return GRADIENTS[name](dy, x)


def activation_code(name: str) -> int:
    """Return the place of an activation in the kernels' enumeration."""
    activation = NUMBERS.get(name)
    if activation is None:
        raise ValueError(f"unknown activation {name!r}; write one of {', '.join(map(repr, ACTIVATIONS))}")
    return activation

"""Calling a kernel past PyTorch's dispatcher, which takes longer than a small product."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# By operator and type of device. Kernels enter themselves here when they register on an operator.
KERNELS: dict[tuple[str, str], Callable[..., Tensor]] = {}


def register_kernel(operator: Any, device: str, kernel: Callable[..., Tensor]) -> None:
    """Let an operator use a kernel for tensors on a device, through the dispatcher and past it."""
    operator.register_kernel(device)(kernel)
    KERNELS[operator._qualname, device] = kernel


def kernel_of(operator: Any, x: Tensor) -> Callable[..., Tensor]:
    """Return what computes an operator where `x` is."""
    return KERNELS.get((operator._qualname, x.device.type), operator)


def reference_of(operator: Any) -> Callable[..., Tensor]:
    """Return the plain PyTorch that an operator means."""
    return operator._init_fn


def can_skip_dispatcher(x: Tensor) -> bool:
    """Say whether a call is plain and eager: no compiler, tracer, mode, transformation or tensor subclass."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._get_tracing_state()
    )


def is_transformed() -> bool:
    """Say whether torch.func is at work, which cannot differentiate operators that are registered from Python.

    The reference is plain PyTorch, to which every transformation applies. A compiler sees the operator either way.
    """
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def is_autocast_enabled(x: Tensor) -> bool:
    """Say whether products of this tensor run in another precision; the meta device knows no such thing."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)

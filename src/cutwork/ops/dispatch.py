"""Calling a kernel past PyTorch's dispatcher, which takes longer than a small product."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, final

import torch
from torch import Tensor

# By operator and type of device. Kernels enter themselves here when they register on an operator.
KERNELS: dict[tuple[str, str], Callable[..., Tensor]] = {}


@final
class Decision:
    """A function that decides something about a tensor, in plain PyTorch or by a kernel that has entered itself.

    No gradient goes through it and no graph holds it, so it need not be an operator.
    """

    def __init__(self, reference: Callable[..., Tensor]) -> None:
        update_wrapper(self, reference)
        self._init_fn = reference
        self._qualname = f"cutwork::{reference.__name__}"

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        """Decide by the kernel for the device of `x`, if there is one."""
        kernel = KERNELS.get((self._qualname, x.device.type)) if can_skip_dispatcher(x) else None
        return (kernel or self._init_fn)(x, *rest)


def register_kernel(operator: Any, device: str, kernel: Callable[..., Tensor]) -> None:
    """Let an operator use a kernel for tensors on a device, through the dispatcher and past it."""
    if not isinstance(operator, Decision):
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

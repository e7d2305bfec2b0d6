"""Keeping, through one step, what the gradient of a whole weight is made of where only a part of it is stored."""

from collections.abc import Callable
from itertools import count
from typing import Any, final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cutwork.sparsity import check_not_transformed

# What a layer read and the gradient of what it returned.
Pair = tuple[Tensor, Tensor]


@final
class Ear:
    """Collects, while it is open, the pairs whose products add up to what is in the gradient of a parameter.

    A pair counts once its backward pass has reached `.grad` of the parameter, and no longer when that is cleared: so
    accumulation, gradients that were thrown away, and steps that a gradient scaler skips are what they are to `.grad`.
    """

    def __init__(self) -> None:
        number = next(NUMBERS)
        EARS[number] = self
        # In a tensor, because compiled code is made anew for each other number that it meets outside of one.
        self.number = torch.tensor(number, device="cpu")
        self._trained: nn.Parameter | None = None
        self._handle: RemovableHandle | None = None
        self.close()

    def open(self, trained: nn.Parameter) -> None:
        """Begin to listen for the gradient of a parameter."""
        self.close()
        self.is_open = True
        self._trained = trained
        self._handle = trained.register_post_accumulate_grad_hook(self._count)

    def close(self) -> None:
        """Stop listening, and forget everything."""
        if self._handle is not None:
            self._handle.remove()
        self.is_open = False
        self.pairs: list[Pair] = []
        self._waiting: list[Pair] = []
        self._pass = -1
        self._trained = self._handle = None

    def overhear(self, x: Tensor, dy: Tensor) -> None:
        """Take in one pair in a backward pass."""
        # A layer may be called several times in one pass, and gradients asked for without reaching `.grad`.
        number = torch._C._current_graph_task_id()
        if number != self._pass:
            self._pass, self._waiting = number, []
            if self._trained is not None and _is_cleared(self._trained):
                self.pairs = []
        # What no gradient goes through may be somebody's buffer, into which the next batch will be written.
        x = x.clone() if x.grad_fn is None else x.detach()
        self._waiting.append((x, dy.detach()))

    def __reduce__(self) -> tuple[Callable[[], "Ear"], tuple[()]]:
        """Copy as a new ear, which is closed: a copy of a layer follows no optimizer."""
        return Ear, ()

    def _count(self, trained: Tensor) -> None:
        self.pairs += self._waiting
        self._waiting = []


# An operator in a compiled graph can be given a number, but no object.
EARS: WeakValueDictionary[int, Ear] = WeakValueDictionary()
NUMBERS = count()


def listened_to(y: Tensor, x: Tensor, ear: Ear) -> Tensor:
    """Return `y`; in backward let the ear overhear `x` and the gradient of `y`."""
    check_not_transformed()
    return _Listened.apply(y, x, ear)


# It changes no number; saying that it does keeps a compiler from leaving out what returns nothing.
@torch.library.custom_op("cutwork::overhear", mutates_args=("number",))
def overhear(number: Tensor, x: Tensor, dy: Tensor) -> None:
    """Let the ear of this number overhear a pair, if it is open."""
    ear = EARS.get(int(number))
    if ear is not None and ear.is_open:
        # Compiled code writes its next results into the memory of what it needs no more.
        ear.overhear(x, dy.clone())


@overhear.register_fake
def _(number, x, dy):
    return None


class _Listened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, ear: Ear):
        ctx.save_for_backward(x)
        ctx.ear = ear
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        (dy,), (x,) = grad_outputs, ctx.saved_tensors
        if torch.compiler.is_compiling():
            overhear(ctx.ear.number, x, dy)
        elif ctx.ear.is_open:
            ctx.ear.overhear(x, dy)
        return dy, None, None


def _is_cleared(trained: nn.Parameter) -> bool:
    return trained.grad is None or not bool(trained.grad.any())

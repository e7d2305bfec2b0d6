"""Telling a listener, in backward, what the gradient of a whole weight is made of.

A product with a compressed weight computes the gradient of what is kept only. The whole one is the sum, over all the
products in which the weight takes part, of what the product read times the gradient of what it returned. Operators
can be given a number, but no object: so listeners are known by numbers, and a product is told one as its `ear`.
"""

from abc import ABC, abstractmethod
from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from cutwork.ops.activations import NONE, activate
from cutwork.ops.dispatch import can_skip_dispatcher


class Listener(ABC):
    """An object that is told of products while `is_open`, under the number in `ear`."""

    is_open: bool = False

    def __init__(self) -> None:
        number = next(_NUMBERS)
        _LISTENERS[number] = self
        # In a tensor, because compiled code is made anew for each other number that it meets outside of one.
        self.ear = torch.tensor(number, device="cpu", dtype=torch.int32)

    @abstractmethod
    def overhear(self, x: Tensor, dy: Tensor, geometry: list[int]) -> None:
        """Take in what a product read and the gradient of what it returned: matrices, or images with the geometry."""


_LISTENERS: WeakValueDictionary[int, Listener] = WeakValueDictionary()
_NUMBERS = count()


def tell(
    ear: Tensor | None, x: Tensor, dy: Tensor, *, before: str = NONE, geometry: tuple[list[int] | int, ...] = ()
) -> None:
    """Let the listener of this number overhear a product, in its backward pass.

    The geometry of a convolution is kernel size, stride, padding, dilation and groups, as its operator takes them.
    """
    if ear is None:
        return
    numbers = [number for part in geometry for number in (part if isinstance(part, list | tuple) else [part])]
    if not can_skip_dispatcher(dy):
        # Whether anybody listens then, compiled code finds out when it runs.
        overhear(ear, activate(before, x.detach()), dy.detach(), numbers)
    elif (listener := _LISTENERS.get(int(ear))) is not None and listener.is_open:
        # An input without a gradient may be a buffer into which the next batch will be written.
        is_fleeting = before == NONE and x.grad_fn is None
        read = x.clone() if is_fleeting else activate(before, x.detach())
        listener.overhear(read.detach(), dy.detach(), numbers)


# It changes no number; saying that it does keeps a compiler from leaving out what returns nothing.
@torch.library.custom_op("cutwork::overhear", mutates_args=("ear",))
def overhear(ear: Tensor, x: Tensor, dy: Tensor, geometry: list[int]) -> None:
    """Let the listener of this number overhear a product, if it listens."""
    listener = _LISTENERS.get(int(ear))
    if listener is not None and listener.is_open:
        # Compiled code writes its next results into the memory of what it needs no more.
        listener.overhear(x.clone(), dy.clone(), geometry)


@overhear.register_fake
def _(ear, x, dy, geometry):
    return None

"""What the dense gradient of a compressed layer is made of, collected in one step."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cutwork.ops.overhearing import Listener

# What a product read, the gradient of what it returned, and the geometry of a convolution.
Pair = tuple[Tensor, Tensor, list[int]]


@final
class Ear(Listener):
    """Collects, while it is open, the pairs whose products add up to what is in the gradient of a parameter.

    A pair counts once its backward pass has reached `.grad` of the parameter, and no longer when that is cleared: so
    gradients that accumulate, are thrown away, or overflow in a skipped step count here as they do in `.grad`.
    """

    def __init__(self) -> None:
        super().__init__()
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

    def overhear(self, x: Tensor, dy: Tensor, geometry: list[int]) -> None:
        """Take in one pair in a backward pass."""
        # A layer may be called several times in one pass, and gradients asked for without reaching `.grad`.
        number = torch._C._current_graph_task_id()
        if number != self._pass:
            self._pass, self._waiting = number, []
            if self._trained is not None and _is_cleared(self._trained):
                self.pairs = []
        self._waiting.append((x, dy, geometry))

    def __reduce__(self) -> tuple[Callable[[], "Ear"], tuple[()]]:
        """Copy as a new ear, which is closed: a copy of a layer follows no optimizer."""
        return Ear, ()

    def _count(self, trained: Tensor) -> None:
        self.pairs += self._waiting
        self._waiting = []


def _is_cleared(trained: nn.Parameter) -> bool:
    return trained.grad is None or not bool(trained.grad.any())

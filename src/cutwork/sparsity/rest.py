"""Whether a weight is zero outside its mask: looked at once, and true until somebody writes to either."""

from typing import final

import numpy as np
import torch
from torch import Tensor, nn

# Numbers are compared bit by bit, in any precision.
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@final
class Rest:
    """What the last look at a weight and its mask has found, and whether that still holds.

    To look costs as much as to multiply with the mask. What PyTorch counts is compared instead: which tensors they are,
    where the numbers lie and how often they were written to. What is written through `.data` is not counted, so one
    entry outside the mask is read too, where memory can be read at once: whoever writes a whole weight writes that.
    """

    def __init__(self) -> None:
        self.is_clean = False
        self.forget()

    def forget(self) -> None:
        """Forget what was found."""
        self._weight: Tensor | None = None

    def lasts(self, weight: Tensor, mask: Tensor) -> bool:
        """Say whether these were looked at and nobody is known to have written to them since."""
        return (
            weight is self._weight
            and mask is self._mask
            and weight._version == self._weight_version
            and mask._version == self._mask_version
            and weight.data_ptr() == self._address
            and (self._entry is None or self._entry.item() == self._bits)
        )

    def note(self, weight: Tensor, mask: Tensor, *, is_clean: bool) -> None:
        """Remember what a look has found."""
        self.is_clean = is_clean
        self._weight, self._weight_version, self._address = weight, weight._version, weight.data_ptr()
        self._mask, self._mask_version = mask, mask._version
        self._entry = _find_entry_outside(weight.detach(), mask) if is_clean and weight.device.type == "cpu" else None
        self._bits = None if self._entry is None else self._entry.item()

    def __reduce__(self) -> tuple:
        """Let a copy look for itself: its tensors are others."""
        return Rest, ()


def can_be_watched(weight: Tensor | None, mask: Tensor) -> bool:
    """Say whether these tensors have numbers to look at, and PyTorch counts the writes to them."""
    return (
        # A subclass, or what stands in for the parameter, has numbers only for a moment, or none.
        type(weight) is nn.Parameter
        and not weight.is_meta
        # To these no write is counted.
        and not weight.is_inference()
        and not mask.is_inference()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._get_tracing_state()
        and not (weight.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _find_entry_outside(weight: Tensor, mask: Tensor) -> np.ndarray | None:
    """Return one entry of a weight outside its mask, quick to read; None where the mask keeps all."""
    place = np.unravel_index(int(mask.flatten().byte().argmin()), mask.shape)
    entry = tuple(map(int, place))
    return None if mask[entry] else weight[entry].view(INTEGERS[weight.element_size()]).numpy()

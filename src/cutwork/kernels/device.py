"""What there is to know about the kernels for one type of device."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch


@final
@dataclass(frozen=True)
class Kernel:
    """One family of kernels: whether layers use it on this machine, and why or why not."""

    name: str
    active: bool
    reason: str


class Device(ABC):
    """The kernels for one type of device."""

    @abstractmethod
    def register(self) -> None:
        """Let the operators use the kernels that this machine can run, if any."""

    @abstractmethod
    def kernel(self, operator: Any, dtype: torch.dtype) -> str:
        """Return the name of what computes an operator of `ops` on tensors of a dtype; empty where no kernel does."""

    @abstractmethod
    def survey(self) -> list[Kernel]:
        """Return the families of kernels, each with the reason why it is active or not."""

    @abstractmethod
    def machine(self, device: torch.device) -> str:
        """Return what a time measured on a device depends on: which processor it is, and which kernels run there."""

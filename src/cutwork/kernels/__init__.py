"""How products are computed on each device, and which of those ways are active here."""

from typing import Any

import torch

from cutwork.kernels.cpu.device import Cpu
from cutwork.kernels.cuda import Cuda
from cutwork.kernels.device import Device, Kernel

__all__ = ["DEVICES", "REFERENCE", "Device", "Kernel", "kernel_name", "machine_of", "survey"]

# By PyTorch's name of the type of device. One of your own is one class and one row.
DEVICES: dict[str, Device] = {"cpu": Cpu(), "cuda": Cuda()}
# Plain PyTorch, wherever no kernel is registered.
REFERENCE = "reference"


def kernel_name(operator: Any, device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of what computes an operator on tensors of this kind here."""
    kernels = DEVICES.get(device.type)
    return (kernels.kernel(operator, dtype) if kernels else "") or REFERENCE


def machine_of(device: torch.device) -> str:
    """Return which processor a device is; the first GPU of one machine may be another kind than that of the next."""
    kernels = DEVICES.get(device.type)
    return kernels.machine(device) if kernels else str(device)


def survey() -> list[Kernel]:
    """Return every kernel family with the reason why it is active or not.

    >>> [kernel.name for kernel in survey()]
    ['dense', 'cpu-tiles', 'triton-tiles', '2:4']
    """
    dense = "PyTorch's own kernels; layers with dense storage run on them, masked weights included"
    return [Kernel("dense", True, dense), *(kernel for device in DEVICES.values() for kernel in device.survey())]


# A program may call the operators by name without importing any layer.
for _device in DEVICES.values():
    _device.register()

"""The kernels for GPUs: so far none, and why."""

from importlib import metadata
from typing import Any, final

import torch

from cutwork.kernels.device import Device, Kernel


@final
class Cuda(Device):
    """GPUs by NVIDIA and, under the same name, by AMD: everything runs there on the references, in plain PyTorch."""

    def register(self) -> None:
        pass

    def kernel(self, operator: Any, dtype: torch.dtype) -> str:
        return ""

    def survey(self) -> list[Kernel]:
        return [
            Kernel("triton-tiles", False, f"this version has no Triton kernels; {_triton_state()}"),
            Kernel("2:4", False, f"this version does not call them; {_semi_structured_state()}"),
        ]

    def machine(self, device: torch.device) -> str:
        return torch.cuda.get_device_name(device)


def _triton_state() -> str:
    try:
        triton = f"triton {metadata.version('triton')} is installed"
    except metadata.PackageNotFoundError:
        triton = "triton is not installed"
    return f"{triton}, {_gpu_state()}"


def _semi_structured_state() -> str:
    if not torch.cuda.is_available():
        return _gpu_state()
    if torch.version.hip:
        return "PyTorch offers 2:4 kernels for NVIDIA devices only"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the device is older than compute capability 8.0"
    cusparselt = "has" if torch.backends.cusparselt.is_available() else "lacks"
    return f"the device could run them, this PyTorch {cusparselt} cuSPARSELt"


def _gpu_state() -> str:
    return "a GPU is present" if torch.cuda.is_available() else "no CUDA or ROCm device"

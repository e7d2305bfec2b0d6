"""How products are computed on each device, and which of those ways are active here."""

from dataclasses import dataclass
from importlib import metadata

import torch

from cutwork.kernels import cpu


@dataclass(frozen=True)
class Kernel:
    """One family of kernels: whether layers use it on this machine, and why or why not."""

    name: str
    active: bool
    reason: str


def survey() -> list[Kernel]:
    """Return every kernel family with the reason why it is active or not.

    >>> [kernel.name for kernel in survey() if kernel.active]
    ['dense']
    """
    return [
        Kernel("dense", True, "PyTorch's own kernels; in this version all layers run on them, masked weights included"),
        Kernel("cpu-tiles", False, f"no layer uses them in this version; {_extension_state()}"),
        Kernel("triton-tiles", False, f"this version has no Triton kernels; {_triton_state()}"),
        Kernel("2:4", False, f"this version does not call them; {_semi_structured_state()}"),
    ]


def _extension_state() -> str:
    if cpu.is_built() and cpu.has_tiles():
        return f"the C++ extension is built, and would run them with {cpu.instruction_sets()[0]}"
    if cpu.is_built():
        return "the C++ extension is built without them, which takes GCC or Clang"
    return f"the C++ extension is not built ({cpu.why_missing()})"


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

"""How products are computed on each device, and which of those ways are active here."""

import functools
from dataclasses import dataclass
from importlib import metadata

import torch

from cutwork.kernels import cpu
from cutwork.kernels.cpu import conv, int8, linear

# Plain PyTorch, wherever no kernel is registered.
REFERENCE = "reference"


@dataclass(frozen=True)
class Kernel:
    """One family of kernels: whether layers use it on this machine, and why or why not."""

    name: str
    active: bool
    reason: str


@functools.cache
def activate() -> str:
    """Let the operators use the compiled kernels, once, and return the name of these; empty where there are none.

    Importing this package does so. Without them the operators compute by their references, in plain PyTorch.
    """
    if not cpu.has_tiles():
        return ""
    for family in (linear, conv, int8):
        family.register()
    return f"cpu-tiles {cpu.instruction_sets()[0]}"


def tile_kernel(device: torch.device, dtype: torch.dtype, *, is_convolution: bool = False) -> str:
    """Return the name of what multiplies compressed weights of this kind here."""
    if device.type != "cpu" or not activate():
        return REFERENCE
    if dtype == torch.float32:
        return activate()
    if dtype == torch.bfloat16 and not is_convolution:
        return f"cpu-tiles {cpu.narrow_instruction_sets()[0]}"
    return REFERENCE


def survey() -> list[Kernel]:
    """Return every kernel family with the reason why it is active or not.

    >>> [kernel.name for kernel in survey()]
    ['dense', 'cpu-tiles', 'triton-tiles', '2:4']
    """
    return [
        Kernel("dense", True, "PyTorch's own kernels; layers with dense storage run on them, masked weights included"),
        _tiles(),
        Kernel("triton-tiles", False, f"this version has no Triton kernels; {_triton_state()}"),
        Kernel("2:4", False, f"this version does not call them; {_semi_structured_state()}"),
    ]


def _tiles() -> Kernel:
    if cpu.has_tiles():
        reason = (
            f"layers with compressed storage run on them: in float32 with {cpu.instruction_sets()[0]}, linear ones in "
            f"bfloat16 with {cpu.narrow_instruction_sets()[0]}"
        )
        return Kernel("cpu-tiles", True, reason)
    missing = (
        "is built without them, which takes GCC or Clang" if cpu.is_built() else f"is not built ({cpu.why_missing()})"
    )
    return Kernel(
        "cpu-tiles", False, f"the C++ extension {missing}; compressed storage runs on its reference in plain PyTorch"
    )


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


# Whoever imports this package may run a program that names operators, with no layer in sight.
activate()

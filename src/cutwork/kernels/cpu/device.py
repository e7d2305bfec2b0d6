"""The kernels for CPUs, all together."""

from typing import Any, final

import torch

from cutwork.kernels import cpu
from cutwork.kernels.cpu import conv, grouping, int8, linear, normalisation, selection
from cutwork.kernels.device import Device, Kernel
from cutwork.ops.block_linear import block_linear
from cutwork.ops.int8_linear import int8_linear


@final
class Cpu(Device):
    """Compiled kernels for float32, bfloat16 and int8, where the extension was built with them."""

    def register(self) -> None:
        if cpu.has_tiles():
            for family in (linear, conv, int8, grouping, selection, normalisation):
                family.register()

    def kernel(self, operator: Any, dtype: torch.dtype) -> str:
        if not cpu.has_tiles():
            return ""
        if operator is int8_linear:
            return f"cpu-tiles int8 {cpu.narrow_instruction_sets()[0]}"
        if dtype == torch.float32:
            return f"cpu-tiles {cpu.instruction_sets()[0]}"
        if dtype == torch.bfloat16 and operator is block_linear:
            return f"cpu-tiles {cpu.narrow_instruction_sets()[0]}"
        return ""

    def survey(self) -> list[Kernel]:
        return [Kernel("cpu-tiles", cpu.has_tiles(), self._reason())]

    def machine(self, device: torch.device) -> str:
        return f"{cpu.processor()} {cpu.instruction_sets()[0] if cpu.has_tiles() else 'reference'}"

    def _reason(self) -> str:
        if cpu.has_tiles():
            return (
                f"layers with compressed storage run on them: in float32 with {cpu.instruction_sets()[0]}, linear ones "
                f"in bfloat16 with {cpu.narrow_instruction_sets()[0]}"
            )
        missing = (
            "is built without them, which takes GCC or Clang"
            if cpu.is_built()
            else f"is not built ({cpu.why_not_load()})"
        )
        return f"the C++ extension {missing}; compressed storage runs on its reference in plain PyTorch"

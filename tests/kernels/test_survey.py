import pytest
import torch

from cutwork import kernels
from cutwork.ops.block_linear import block_linear


def reason_for(name: str) -> str:
    (kernel,) = [kernel for kernel in kernels.survey() if kernel.name == name]
    return kernel.reason


@pytest.mark.parametrize("name", ["triton-tiles", "2:4"])
def test_without_a_gpu_the_reason_says_so(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA or ROCm device" in reason_for(name)


@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [
        ((7, 5), None, "older than compute capability 8.0"),
        ((9, 0), None, "the device could run them"),
        ((9, 4), "7.1", "for NVIDIA devices only"),
    ],
)
def test_two_four_names_what_is_in_the_way(monkeypatch, capability, hip, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert expected in reason_for("2:4")


class Abacus(kernels.Device):
    """A device that somebody else has kernels for."""

    def register(self) -> None:
        pass

    def kernel(self, operator, dtype: torch.dtype) -> str:
        return "beads" if operator is block_linear and dtype == torch.int8 else ""

    def survey(self) -> list[kernels.Kernel]:
        return [kernels.Kernel("beads", True, "somebody sits there")]

    def machine(self, device: torch.device) -> str:
        return f"abacus number {device.index}"


def test_a_device_from_outside_is_one_row(monkeypatch):
    here = torch.device("xpu", 3)
    assert kernels.machine_of(here) == "xpu:3"
    assert kernels.kernel_name(block_linear, here, torch.int8) == kernels.REFERENCE
    monkeypatch.setitem(kernels.DEVICES, "xpu", Abacus())
    assert "somebody sits there" in reason_for("beads")
    assert kernels.machine_of(here) == "abacus number 3"
    assert kernels.kernel_name(block_linear, here, torch.int8) == "beads"
    assert kernels.kernel_name(block_linear, here, torch.float32) == kernels.REFERENCE


def test_a_gpu_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Some GPU at {device.index}")
    assert kernels.machine_of(torch.device("cuda", 1)) == "Some GPU at 1"

import pytest
import torch

from cutwork import kernels


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

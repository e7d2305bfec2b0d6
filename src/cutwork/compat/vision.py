"""A torchvision built for CUDA, beside a PyTorch built for the CPU."""

from cutwork.models.torchvision import import_torchvision

__all__ = ["import_torchvision"]

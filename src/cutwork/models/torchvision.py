"""A torchvision built for CUDA, beside a PyTorch built for the CPU."""

import functools
import importlib
from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """Return torchvision, also where its compiled part does not fit the installed PyTorch.

    The package index offers torchvision for CUDA only. Beside a CPU build of PyTorch its library does not load,
    `import torchvision` stops because the operator `torchvision::nms` is unknown, and so do timm and all others
    that import it. Here the operators that it looks for are declared, without code, and the import is repeated.
    Models, transforms and data sets then work. What needs the compiled part stays unusable:
    `torchvision.ops.nms`, `roi_align` and `torchvision.io.decode_*` (open images with Pillow instead).

    Call it once before the first `import torchvision` or `import timm`; where torchvision fits, it only imports it.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    _declare_operators()
    return importlib.import_module("torchvision")


# Cached because a Library takes its operators with it when it is collected.
@functools.cache
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library

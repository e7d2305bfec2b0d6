"""A copy of a model without its numbers, on which a change can be tried first."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter


def skeleton(model: nn.Module) -> nn.Module:
    """Return a model of the same modules under the same names, with tensors of the same types and shapes on no device.

    What stands in several places stands there again. Modules can be exchanged, given other classes and attributes
    without touching the model; only what they hold besides, such as functions, is theirs in common.

    >>> bare = skeleton(nn.Sequential(nn.Linear(2, 3)))
    >>> bare, bare[0].weight.is_meta
    (Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
    ), True)
    """
    return _without_numbers(model, {})


def _without_numbers(module: Any, known: dict[int, Any]) -> Any:
    # What is written in TorchScript keeps its parts elsewhere, and never becomes anything else.
    if module is None or isinstance(module, torch.jit.ScriptModule):
        return module
    if id(module) in known:
        return known[id(module)]
    bare = known[id(module)] = object.__new__(type(module))
    for name, value in vars(module).items():
        is_changeable = type(value) in (list, set) or isinstance(value, dict)
        vars(bare)[name] = copy.copy(value) if is_changeable else value
    for kind in ("_parameters", "_buffers"):
        vars(bare)[kind] = _outlines(getattr(module, kind), known)
    vars(bare)["_modules"] = {name: _without_numbers(part, known) for name, part in module._modules.items()}
    return bare


def _outlines(tensors: Mapping[str, Tensor | None], known: dict[int, Any]) -> dict[str, Tensor | None]:
    for tensor in tensors.values():
        if tensor is not None and id(tensor) not in known:
            known[id(tensor)] = _outline(tensor)
    return {name: None if tensor is None else known[id(tensor)] for name, tensor in tensors.items()}


def _outline(tensor: Tensor) -> Tensor:
    if isinstance(tensor, UninitializedBuffer | UninitializedParameter):
        return tensor
    outline = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(outline, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else outline

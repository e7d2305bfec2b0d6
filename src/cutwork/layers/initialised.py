"""Initialised copies of layers on the meta device, where tensors have shapes but no numbers; one layer at a time."""

import copy
from typing import Any

import torch
from torch import nn

from cutwork.layers.storage import become_compressed


def why_not_initialise(kind: type[nn.Module]) -> str:
    """Say why layers of a class cannot be given their first numbers, and what to do; empty where they can."""
    if callable(getattr(kind, "reset_parameters", None)):
        return ""
    return f"{kind.__name__} has no reset_parameters() for its first numbers; give it some on a device, then sparsify"


def make_initialised(layer: nn.Module, device: torch.device) -> Any:
    """Return a copy of a layer, on a device, with the first numbers that it gives itself."""
    twin: Any = copy.deepcopy(layer).to_empty(device=device)
    twin.reset_parameters()
    return twin


def take_over(layer: nn.Module, twin: nn.Module) -> None:
    """Make a layer on the meta device what a compressed copy of it is, in place; what it has elsewhere stays."""
    for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is not None and tensor.is_meta and name != "weight":
            setattr(layer, name, getattr(twin, name))
    become_compressed(layer, twin.get_submodule("sparsity"), twin._parameters["values"])  # pyrefly: ignore

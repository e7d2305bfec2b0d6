"""Reading the parameters of a layer quickly."""

from typing import Any

from torch import nn


def read_parameter(layer: nn.Module, name: str) -> Any:
    """Return a parameter, past `nn.Module.__getattr__`, which takes as long as a small product.

    Code that computes a parameter anew, as weight norm does, has replaced it by an attribute.
    """
    parameters = layer._parameters
    return parameters[name] if name in parameters else getattr(layer, name)


def rests(layer: nn.Module) -> bool:
    """Say whether a sparse layer may read its weight past the mask."""
    return layer._modules["sparsity"].rests(layer._parameters.get("weight"))  # pyrefly: ignore

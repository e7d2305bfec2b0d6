"""Making a model again at other sizes: of the same classes, with larger parameters and other whole numbers in them."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from cutwork.layers.sparse_class import is_conv1d_class
from cutwork.transforms.growth import Growth
from cutwork.transforms.sizes import Sizes

# What layers of PyTorch say about their sizes and never read again.
SAID: dict[type[nn.Module], Mapping[str, Callable[[Any], int]]] = {
    nn.Linear: {
        "in_features": lambda layer: layer.weight.shape[1],
        "out_features": lambda layer: layer.weight.shape[0],
    },
    nn.Bilinear: {
        "in1_features": lambda layer: layer.weight.shape[1],
        "in2_features": lambda layer: layer.weight.shape[2],
        "out_features": lambda layer: layer.weight.shape[0],
    },
    _ConvTransposeNd: {
        "in_channels": lambda layer: layer.weight.shape[0],
        "out_channels": lambda layer: layer.weight.shape[1] * layer.groups,
    },
    _ConvNd: {
        "in_channels": lambda layer: layer.weight.shape[1] * layer.groups,
        "out_channels": lambda layer: layer.weight.shape[0],
    },
    _NormBase: {"num_features": lambda layer: _length(layer, "weight", "running_mean", otherwise=layer.num_features)},
    nn.GroupNorm: {"num_channels": lambda layer: _length(layer, "weight", otherwise=layer.num_channels)},
    nn.PReLU: {"num_parameters": lambda layer: len(layer.weight)},
    nn.Embedding: {
        "num_embeddings": lambda layer: layer.weight.shape[0],
        "embedding_dim": lambda layer: layer.weight.shape[1],
    },
    nn.EmbeddingBag: {
        "num_embeddings": lambda layer: layer.weight.shape[0],
        "embedding_dim": lambda layer: layer.weight.shape[1],
    },
    nn.MultiheadAttention: {
        "embed_dim": lambda layer: layer.out_proj.weight.shape[0],
        "kdim": lambda layer: (layer.in_proj_weight if layer._qkv_same_embed_dim else layer.k_proj_weight).shape[1],
        "vdim": lambda layer: (layer.in_proj_weight if layer._qkv_same_embed_dim else layer.v_proj_weight).shape[1],
    },
}


def resize(model: nn.Module, sizes: Sizes, growth: Growth, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a model of the same classes that has these tensors, and whole numbers that fit them.

    All else is a copy; the model itself stays as it is.
    """
    memo = {id(_find(model, name)): tensor for name, tensor in tensors.items()}
    larger = deepcopy(model, memo)
    for attribute, expressions in sizes.attributes.items():
        kept = vars(larger.get_submodule(attribute.module))
        kind, new = type(kept[attribute.name]), list(map(growth.size, expressions))
        kept[attribute.name] = new[0] if kind is int else kind(new)
    for module in larger.modules():
        said = next((said for kind, said in SAID.items() if isinstance(module, kind)), {})
        for name, size in said.items():
            setattr(module, name, size(module))
    return larger


def inputs_of(module: nn.Module, key: str) -> int | None:
    """Return the dimension of a parameter over which its layer sums, or None where it sums over none that is known.

    >>> inputs_of(nn.Linear(2, 3), "weight"), inputs_of(nn.Linear(2, 3), "bias")
    (1, None)
    """
    if isinstance(module, nn.MultiheadAttention):
        return 1 if key.endswith("proj_weight") else None
    if key != "weight":
        return None
    if is_conv1d_class(type(module)) or isinstance(module, _ConvTransposeNd):
        return 0
    return 1 if isinstance(module, nn.Linear | _ConvNd) else None


def _find(model: nn.Module, name: str) -> Tensor:
    module, _, key = name.rpartition(".")
    return getattr(model.get_submodule(module), key)


def _length(layer: nn.Module, *names: str, otherwise: int) -> int:
    tensors = [getattr(layer, name, None) for name in names]
    return next((len(tensor) for tensor in tensors if tensor is not None), otherwise)

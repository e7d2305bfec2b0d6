"""Turning layers from dense storage into compressed, and back, in place."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cutwork.distributed import is_sharded
from cutwork.layers.compressed import CompressedConv2d, CompressedLinear
from cutwork.layers.sparse_class import dense_class, sparse_class
from cutwork.ops.activations import NONE
from cutwork.sparsity.compressed import FixedIndex, index_of, why_not_store
from cutwork.sparsity.fixed import Fixed
from cutwork.text import label


def why_not_compress(layer: nn.Module) -> str:
    """Say why a sparse layer cannot be compressed as it is, and what to do; empty where it can."""
    if reason := why_not_store(layer.sparsity.pattern):  # pyrefly: ignore
        return reason
    sparsity, weight = layer.sparsity, layer.weight
    if not isinstance(sparsity, Fixed):
        return (
            f"its mask is {type(sparsity).__name__.lower()} from the whole weight, which compressed storage does not "
            "have; keep it in dense storage, or bake() and sparsify(masks=...) it"
        )
    if is_sharded(weight):  # pyrefly: ignore
        return "its weight is sharded; pack before fully_shard()"
    if not sparsity.fits(weight):  # pyrefly: ignore
        return "its weight is not zero outside its mask; bake() the model and sparsify(masks=...) it anew"
    return ""


@torch.no_grad()
def compress(layers: Mapping[str, nn.Module]) -> None:
    """Turn layers with fixed masks from dense storage into compressed, in place; those that share a weight together."""
    for name, layer in layers.items():
        if reason := why_not_compress(layer):
            raise ValueError(f"{label(name)}: {reason}")
    groups = _group_by_sparsity(layers)
    indices = [_make_index(fixed, sharers, layers) for fixed, sharers in groups.items()]
    for index, sharers in zip(indices, groups.values(), strict=True):
        store(sharers, index)


def to_index(fixed: Fixed) -> FixedIndex:
    """Return a fixed mask in compressed storage; raise ValueError where it is not made of whole units."""
    return FixedIndex(
        index_of(fixed.mask_matrix(), fixed.pattern),
        fixed.layout,
        pattern=fixed.pattern,
        density=fixed.density,
        energies=fixed.energies,
    )


@torch.no_grad()
def store(sharers: Sequence[Any], index: FixedIndex) -> None:
    """Keep of the weight that some layers share only the values that an index names, in place."""
    weight = sharers[0].weight
    values = index.topology.gather(index.layout.to_matrix(weight.detach()))
    trained = nn.Parameter(values, requires_grad=weight.requires_grad)
    for layer in sharers:
        become_compressed(layer, index, trained)


@torch.no_grad()
def expand(layers: Mapping[str, nn.Module]) -> None:
    """Undo `compress`."""
    for name, layer in layers.items():
        if reason := why_not_expand(layer):
            raise ValueError(f"{label(name)}: {reason}")
    for index, sharers in _group_by_sparsity(layers).items():
        assert isinstance(index, FixedIndex)
        values = sharers[0].values
        fixed = Fixed(
            index.mask_matrix(),
            index.layout,
            pattern=index.pattern,
            density=index.density,
            estimate=index.estimate,
        )
        if index.energies is not None:
            fixed.energy_in, fixed.energy_out = index.energies
        dense = index.layout.from_matrix(index.matrix(values))
        weight = nn.Parameter(dense, requires_grad=values.requires_grad)
        for layer in sharers:
            _become_expanded(layer, fixed, weight)


def why_not_expand(layer: nn.Module) -> str:
    """Say why a compressed layer cannot go back to dense storage, and what to do; empty where it can."""
    if any(vars(layer).get(when, NONE) != NONE for when in ("before", "after")):
        return (
            "fuse() gave it an activation, which its dense form cannot compute, and that cannot be undone; "
            "unpack() a copy made before fuse(), or build the model anew and load its checkpoint"
        )
    if vars(layer).get("converts"):
        return "its values were rounded to bfloat16 for this form; load the model anew, or keep it as it is"
    return ""


def become_compressed(layer: Any, index: FixedIndex, values: nn.Parameter) -> None:
    """Turn one layer, dense or in dense storage, into a compressed one, in place."""
    is_convolution = isinstance(layer, nn.Conv2d)
    layer.dense_class = dense_class(type(layer))
    if not is_convolution:
        layer.out_features, layer.in_features = index.shape
    layer.__class__ = CompressedConv2d if is_convolution else CompressedLinear
    _exchange_parameter(layer, "weight", "values", values)
    layer.sparsity = index.train(layer.training)


def _become_expanded(layer: Any, fixed: Fixed, weight: nn.Parameter) -> None:
    if fixed.layout.transposed:
        # The layer of transformers has these numbers under other names.
        del layer.in_features, layer.out_features
    layer.__class__ = sparse_class(layer.dense_class)
    del layer.dense_class
    _exchange_parameter(layer, "values", "weight", weight)
    layer.sparsity = fixed.train(layer.training)


def _exchange_parameter(layer: nn.Module, old: str, new: str, parameter: nn.Parameter) -> None:
    """Put a parameter in the place of another: optimizers save by the order of a layer's parameters."""
    parameters = {new if name == old else name: held for name, held in layer._parameters.items()}
    layer._parameters.clear()
    layer._parameters.update({**parameters, new: parameter})


def _make_index(fixed: nn.Module, sharers: list[Any], layers: Mapping[str, nn.Module]) -> FixedIndex:
    assert isinstance(fixed, Fixed)
    try:
        return to_index(fixed)
    except ValueError as error:
        name = next(name for name, layer in layers.items() if layer is sharers[0])
        raise ValueError(f"{label(name)}: {error}") from error


def _group_by_sparsity(layers: Mapping[str, nn.Module]) -> dict[nn.Module, list[Any]]:
    groups: dict[nn.Module, list[Any]] = {}
    for layer in layers.values():
        groups.setdefault(layer.get_submodule("sparsity"), []).append(layer)
    return groups

"""Dense storage into compressed, and back."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from cutwork.layers.compressed import CompressedLinear, compress, expand, why_not_compressed
from cutwork.layers.swap import SparseLayer, sparse_layers
from cutwork.sparsity import Fixed

Model = TypeVar("Model", bound=nn.Module)


def pack(model: Model, layers: str | Iterable[str] | None = None) -> Model:
    """Store of sparse layers only what their masks keep, in place, and return the model; `unpack` undoes it.

    Packed are all layers whose fixed mask consists of tiles, or those that the globs in `layers` name. The parameter
    that such a layer trains is then `values` instead of `weight`, so pack before building an optimizer.

    >>> import torch
    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.25)
    >>> x = torch.rand(2, 64)
    >>> y = model(x)
    >>> pack(model)[0].values.shape, torch.allclose(model(x), y, atol=1e-6)
    (torch.Size([4, 16, 16]), True)
    """
    found = sparse_layers(model)
    dense = {name: layer for name, layer in found.items() if not isinstance(layer, CompressedLinear)}
    if layers is None:
        chosen = {name: layer for name, layer in dense.items() if _has_tiles(layer)}
    else:
        chosen = _matching("pack", found, layers, lambda layer: not isinstance(layer, CompressedLinear))
    if not chosen:
        reasons = [f"{name or 'the model itself'}: {why_not_compressed(layer)}" for name, layer in dense.items()]
        first = f"; {reasons[0]}" if reasons else "; sparsify() it first"
        raise ValueError(f"pack: the model has no sparse layer in dense storage that could be compressed{first}")
    _check_free("pack", chosen)
    _check_tied(dense, chosen)
    compress(chosen)
    return model


def unpack(model: Model, layers: str | Iterable[str] | None = None) -> Model:
    """Store the whole weights of compressed layers again, in place, and return the model."""
    found = {name: layer for name, layer in sparse_layers(model).items() if isinstance(layer, CompressedLinear)}
    chosen = found if layers is None else _matching("unpack", found, layers, lambda layer: True)
    if not chosen:
        raise ValueError("unpack: the model has no compressed layer; pack() it first")
    _check_free("unpack", chosen)
    _check_tied(found, chosen)
    expand(chosen)
    return model


def _has_tiles(layer: SparseLayer) -> bool:
    return isinstance(layer.sparsity, Fixed) and not why_not_compressed(layer)


def _matching(
    what: str, found: Mapping[str, SparseLayer], globs: str | Iterable[str], is_wanted: Callable[[SparseLayer], bool]
) -> dict[str, SparseLayer]:
    chosen: dict[str, SparseLayer] = {}
    for glob in [globs] if isinstance(globs, str) else globs:
        matched = {name: layer for name, layer in found.items() if fnmatchcase(name, glob) and is_wanted(layer)}
        if not matched:
            raise ValueError(
                f"{what}: no layer that could be {what}ed matches {glob!r}; the sparse layers are "
                f"{', '.join(map(repr, found)) or 'none'}"
            )
        chosen |= matched
    return chosen


def _check_free(what: str, chosen: Mapping[str, SparseLayer]) -> None:
    for name, layer in chosen.items():
        if layer.sparsity.is_followed:
            raise ValueError(
                f"{what}: {name or 'the model itself'} is moved by a sparsifier that follows an optimizer, which holds "
                f"the parameter that would go; detach() the sparsifier, {what}, then attach() it to a new optimizer"
            )


def _check_tied(all_layers: Mapping[str, SparseLayer], chosen: Mapping[str, SparseLayer]) -> None:
    names = {id(layer.sparsity): name for name, layer in chosen.items()}
    for other, layer in all_layers.items():
        if other not in chosen and id(layer.sparsity) in names:
            raise ValueError(f"{names[id(layer.sparsity)]} and {other} share one weight; name both")

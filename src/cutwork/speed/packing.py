"""Dense storage into compressed, and back."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from cutwork.layers.compressed import Compressed
from cutwork.layers.int8 import why_none
from cutwork.layers.storage import expand
from cutwork.layers.swap import SparseLayer, sparse_layers

Model = TypeVar("Model", bound=nn.Module)


def unpack(model: Model, layers: str | Iterable[str] | None = None) -> Model:
    """Store the whole weights of compressed layers again, in place, and return the model."""
    found = {name: layer for name, layer in sparse_layers(model).items() if isinstance(layer, Compressed)}
    chosen = found if layers is None else _matching("unpack", found, layers, lambda layer: True)
    if not chosen:
        raise ValueError(f"unpack: {why_none(model, kind='compressed', otherwise='pack() it first')}")
    check_free("unpack", chosen)
    _check_tied(found, chosen)
    expand(chosen)
    return model


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


def grouped(layers: Mapping[str, SparseLayer]) -> dict[str, list[str]]:
    """Return the names of layers that share a weight, by the first of them."""
    first: dict[int, str] = {}
    groups: dict[str, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(first.setdefault(id(layer.sparsity), name), []).append(name)
    return groups


def check_free(what: str, chosen: Mapping[str, SparseLayer]) -> None:
    """Raise ValueError where a sparsifier follows an optimizer that holds the parameter of a layer."""
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

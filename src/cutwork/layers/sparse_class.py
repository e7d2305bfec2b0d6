"""Which class a layer has while it is sparse, and which it had before."""

import importlib
from functools import cache
from typing import Any

from torch import nn

from cutwork.layers.conv2d import SparseConv2d
from cutwork.layers.linear import SparseConv1D, SparseLinear

SPARSE_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}
# transformers is not imported here: whoever holds one of its layers has imported it already.
CONV1D = ("transformers.pytorch_utils", "Conv1D")
# What a subclass must have from its parent: what computes, what finds the weight, and what makes and copies a layer.
INHERITED = (
    *("forward", "_conv_forward", "__call__", "_wrapped_call_impl", "_call_impl", "__torch_function__"),
    *("weight", "bias", "__getattr__", "__getattribute__"),
    *("__new__", "__slots__", "__reduce__", "__reduce_ex__"),
)
# Names that a sparse layer needs for itself.
TAKEN = ("sparsity", "trained", "describe_weight", "values", "is_resting")


def is_conv1d_class(kind: type) -> bool:
    """Say whether a class is transformers' `Conv1D`, dense or sparse, whose weight is stored `[in, out]`."""
    return kind is SparseConv1D or (kind.__module__, kind.__name__) == CONV1D


def why_not_sparsify(kind: type[nn.Module]) -> str:
    """Say why linear layers or convolutions of a class cannot be sparse, and what to do; empty where they can.

    A subclass can where it computes what its parent does.
    """
    if is_conv1d_class(kind):
        return ""
    parent = _parent_of(kind)
    for name in INHERITED:
        if getattr(kind, name, None) is not getattr(parent, name, None):
            return (
                f"{_full_name(kind)} is a subclass that may compute something else: it has a {name!r} of its own; "
                "replace it by a plain layer"
            )
    if taken := [name for name in TAKEN if getattr(kind, name, None) is not None]:
        return f"{_full_name(kind)} has a {taken[0]!r} of its own, and a sparse layer needs that name; rename it"
    return ""


def sparse_class(dense: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a layer of this class has while it is sparse; that of a subclass derives from it too.

    >>> sparse_class(nn.Linear).__name__
    'SparseLinear'
    """
    if is_conv1d_class(dense):
        return SparseConv1D
    return SPARSE_CLASSES[dense] if dense in SPARSE_CLASSES else _derive_class(dense)


def dense_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Undo `sparse_class`; a dense class is returned as it is.

    >>> dense_class(sparse_class(nn.Conv2d)).__name__
    'Conv2d'
    """
    if kind is SparseConv1D:
        module, name = CONV1D
        return getattr(importlib.import_module(module), name)
    # The dense class is the last base of a sparse one.
    return kind.__bases__[-1] if issubclass(kind, SparseLinear | SparseConv2d) else kind


def _parent_of(kind: type[nn.Module]) -> type[nn.Module]:
    return next(parent for parent in SPARSE_CLASSES if issubclass(kind, parent))


@cache
def _derive_class(dense: type[nn.Module]) -> type[nn.Module]:
    """Make a subclass of a dense class that computes as a sparse layer does and keeps all else."""
    # Made at run time, it cannot be found by its name, so a pickle names the dense class instead.
    return type(f"Sparse{dense.__name__}", (SPARSE_CLASSES[_parent_of(dense)], dense), {"__reduce_ex__": _reduce})


def _reduce(layer: nn.Module, protocol: int) -> tuple[Any, ...]:
    return _make_bare, (dense_class(type(layer)),), layer.__getstate__()


def _make_bare(dense: type[nn.Module]) -> nn.Module:
    kind = sparse_class(dense)
    return kind.__new__(kind)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"

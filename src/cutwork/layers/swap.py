"""Which layers of a model can be sparse, and turning them sparse and back, in place.

A layer keeps its identity: only its class changes, and it gains a submodule named `sparsity`. So every reference to
it stays good, also from several places, and its parameters, hooks and flags stay what they were.
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast, final

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from cutwork.layers.attention import (
    PROJECTIONS,
    OpenAttention,
    close_attention,
    disable_fused_paths,
    enable_fused_paths,
    open_attention,
    projections,
)
from cutwork.layers.compressed import CompressedLinear, expand
from cutwork.layers.conv2d import SparseConv2d
from cutwork.layers.linear import SparseConv1D, SparseLinear
from cutwork.sparsity import Sparsity

SparseLayer = SparseLinear | SparseConv2d | SparseConv1D | CompressedLinear

SPARSE_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}
# transformers is never imported for its own sake; a model that holds its layer has brought it along.
CONV1D = ("transformers.pytorch_utils", "Conv1D")


@final
@dataclass(frozen=True)
class Candidate:
    """A layer that could be sparse: its name and class, the shape of its weight and why it can have no mask, if so."""

    name: str
    kind: type[nn.Module]
    shape: tuple[int, ...]
    obstacle: str = ""
    attention: str | None = None


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Return the sparse layers of a model by name; one that stands in several places has its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}


def candidates(model: nn.Module) -> dict[str, Candidate]:
    """Return the dense layers that could be sparse; the projections of a closed attention as they would be named."""
    found: dict[str, Candidate] = {}
    closed: list[str] = []
    for name, module in model.named_modules():
        if any(not inside or name.startswith(f"{inside}.") for inside in closed):
            continue
        if type(module) is nn.MultiheadAttention:
            closed.append(name)
            for part, shape in _projection_shapes(module).items():
                path = f"{name}.{part}" if name else part
                found[path] = Candidate(path, nn.Linear, shape, _obstacle(*_home_of(module, part)), attention=name)
        elif _has_matrix(module) and not isinstance(module, SparseLayer):
            weight = cast(Tensor, module.weight)
            shape = () if isinstance(weight, UninitializedParameter) else tuple(weight.shape)
            found[name] = Candidate(name, type(module), shape, _obstacle(module, "weight"))
    return found


def can_swap(kind: type[nn.Module]) -> bool:
    """Say whether layers of exactly this class can be made sparse; a subclass may compute something else."""
    return kind in SPARSE_CLASSES or is_conv1d_class(kind)


def is_conv1d_class(kind: type) -> bool:
    """Say whether a class is transformers' `Conv1D`, dense or sparse, whose weight is stored `[in, out]`."""
    return kind is SparseConv1D or (kind.__module__, kind.__name__) == CONV1D


def weight_of(model: nn.Module, candidate: Candidate) -> Tensor:
    """Return the weight that a candidate has, or will have once its attention is open."""
    if candidate.attention is None:
        return model.get_submodule(candidate.name).weight  # pyrefly: ignore
    part = candidate.name.rpartition(".")[2]
    attention = model.get_submodule(candidate.attention)
    if part == "out_proj":
        return attention.out_proj.weight  # pyrefly: ignore
    return projections(attention)[part][0]  # pyrefly: ignore


def open_attentions(model: nn.Module, chosen: Iterable[Candidate]) -> None:
    """Open the attentions that these candidates are parts of."""
    for name in {candidate.attention for candidate in chosen if candidate.attention is not None}:
        open_attention(cast(nn.MultiheadAttention, model.get_submodule(name)))


def make_sparse(model: nn.Module, sparsities: dict[str, Sparsity]) -> None:
    """Give the layers of these names their masks."""
    for name, sparsity in sparsities.items():
        layer = model.get_submodule(name)
        layer.__class__ = SPARSE_CLASSES.get(type(layer), SparseConv1D)
        layer.sparsity = sparsity
    disable_fused_paths(model)


def make_dense(model: nn.Module) -> None:
    """Turn all sparse layers back into what they were; their weights stay as they are."""
    layers = sparse_layers(model)
    expand({name: layer for name, layer in layers.items() if isinstance(layer, CompressedLinear)})
    for layer in layers.values():
        del layer.sparsity
        layer.__class__ = _dense_class(layer)  # pyrefly: ignore[bad-argument-type]
    for module in model.modules():
        if isinstance(module, OpenAttention):
            close_attention(module)
    enable_fused_paths(model)


def _projection_shapes(attention: nn.MultiheadAttention) -> dict[str, tuple[int, ...]]:
    size = attention.embed_dim
    widths = (size, attention.kdim, attention.vdim, size)
    return {name: (size, width) for name, width in zip(PROJECTIONS, widths, strict=True)}


def _home_of(attention: nn.MultiheadAttention, part: str) -> tuple[nn.Module, str]:
    """Return the module that holds the weight of a projection, and the name it has there."""
    if part == "out_proj":
        return attention.out_proj, "weight"
    return attention, "in_proj_weight" if attention._qkv_same_embed_dim else f"{part}_weight"


def _obstacle(owner: nn.Module, name: str) -> str:
    """Say why this weight cannot have a mask, and what to do about it; empty where it can."""
    weight = owner._parameters.get(name)
    if weight is None:
        return (
            "its weight is computed anew by weight_norm, prune or the like; remove that first "
            "(torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove)"
        )
    if isinstance(weight, UninitializedParameter):
        return "its weight has no shape yet; run one batch through the model, then sparsify"
    if weight.device.type == "meta":
        return "it is on the meta device and has no weights yet; materialise the model, then sparsify"
    if not weight.numel():
        return f"its weight is empty, {tuple(weight.shape)}; give it inputs and outputs"
    if weight.is_inference():
        return "its weight was made under torch.inference_mode and can never train; build the model outside of it"
    if not weight.is_floating_point():
        return f"its weight holds {weight.dtype}; only floating point numbers can be ranked, masked and trained"
    return ""


def _has_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d) or is_conv1d_class(type(module))


def _dense_class(layer: SparseLayer) -> type[nn.Module]:
    for dense, sparse in SPARSE_CLASSES.items():
        if type(layer) is sparse:
            return dense
    module, name = CONV1D
    return getattr(importlib.import_module(module), name)

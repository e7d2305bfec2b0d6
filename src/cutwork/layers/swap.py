"""Which layers of a model can be sparse, and turning them sparse and back, in place.

A layer keeps its identity: only its class changes, and it gains a submodule named `sparsity`. So every reference to
it stays good, also from several places, and its parameters, hooks and flags stay what they were.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast, final

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from cutwork.distributed import is_sharded
from cutwork.layers.attention import (
    PROJECTIONS,
    OpenAttention,
    close_attention,
    disable_fused_paths,
    enable_fused_paths,
    open_attention,
    projections,
)
from cutwork.layers.compressed import Compressed, CompressedConv2d, CompressedLinear
from cutwork.layers.conv2d import SparseConv2d
from cutwork.layers.int8 import Int8Linear
from cutwork.layers.linear import SparseConv1D, SparseLinear
from cutwork.layers.sparse_class import TAKEN, dense_class, is_conv1d_class, sparse_class, why_not_sparsify
from cutwork.layers.storage import expand
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.layout import Layout
from cutwork.text import label

# How to undo what computes a weight anew in a hook before forward.
UNDONE_BY: dict[type, str] = {
    SpectralNorm: "torch.nn.utils.remove_spectral_norm(layer, {name!r})",
    WeightNorm: "torch.nn.utils.remove_weight_norm(layer, {name!r})",
    BasePruningMethod: "torch.nn.utils.prune.remove(layer, {name!r})",
}
UNREAD = (
    "it belongs to a subclass of MultiheadAttention, which reads its weight without calling it; replace the subclass "
    "by nn.MultiheadAttention"
)

SparseLayer = SparseLinear | SparseConv2d | SparseConv1D | CompressedLinear | CompressedConv2d


@final
@dataclass(frozen=True)
class Candidate:
    """A layer that could be sparse: its name and class, how its weight lies and why it can have no mask, if so."""

    name: str
    kind: type[nn.Module]
    layout: Layout
    obstacle: str = ""
    attention: str | None = None
    # Whether its weight has a shape, but no numbers yet.
    is_meta: bool = False


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Return the sparse layers of a model by name; one that stands in several places has its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}


def candidates(model: nn.Module) -> dict[str, Candidate]:
    """Return the dense layers that could be sparse; the projections of a closed attention as they would be named."""
    found: dict[str, Candidate] = {}
    closed: list[str] = []
    unread: list[str] = []
    for name, module in model.named_modules():
        if any(not inside or name.startswith(f"{inside}.") for inside in closed):
            continue
        if type(module) is nn.MultiheadAttention:
            closed.append(name)
            is_meta = any(parameter.is_meta for parameter in module.parameters())
            obstacles = {part: _why_not_mask(*_home_of(module, part)) for part in PROJECTIONS}
            blocked = next((f"{part} beside it: {obstacles[part]}" for part in PROJECTIONS if obstacles[part]), "")
            for part, shape in _projection_shapes(module).items():
                path = f"{name}.{part}" if name else part
                # All four become layers at once, or none.
                found[path] = Candidate(path, nn.Linear, Layout(shape), obstacles[part] or blocked, name, is_meta)
        elif isinstance(module, nn.MultiheadAttention) and not isinstance(module, OpenAttention):
            unread.append(f"{name}.out_proj" if name else "out_proj")
        elif _has_matrix(module) and not isinstance(module, SparseLayer):
            weight = cast(Tensor, module.weight)
            shape = () if isinstance(weight, UninitializedParameter) else tuple(weight.shape)
            layout = Layout(shape, transposed=is_conv1d_class(type(module)))
            obstacle = UNREAD if name in unread else _why_not_mask(module, "weight")
            found[name] = Candidate(name, type(module), layout, obstacle, is_meta=weight.is_meta)
    return found


def can_swap(kind: type[nn.Module]) -> bool:
    """Say whether layers of this class can be made sparse; a subclass may compute something else."""
    return not why_not_sparsify(kind)


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
        layer.__class__ = sparse_class(type(layer))
        layer.sparsity = sparsity
    disable_fused_paths(model)


def make_dense(model: nn.Module) -> None:
    """Turn all sparse layers back into what they were; their weights stay as they are."""
    layers = sparse_layers(model)
    expand({name: layer for name, layer in layers.items() if isinstance(layer, Compressed)})
    for layer in layers.values():
        del layer.sparsity
        layer.__class__ = dense_class(type(layer))  # pyrefly: ignore[bad-argument-type]
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


def _why_not_mask(owner: nn.Module, name: str) -> str:
    """Say why this weight cannot have a mask, and what to do about it; empty where it can."""
    weight = owner._parameters.get(name)
    if weight is None:
        return f"its weight is computed anew {_say_what_computes(owner, name)}"
    if "forward" in vars(owner):
        return (
            "its forward was replaced by a function that would still read the weight without its mask, as accelerate's "
            "hooks do; take it off (accelerate.hooks.remove_hook_from_module), sparsify, then put it on"
        )
    if taken := [each for each in TAKEN if each in {**vars(owner), **owner._modules, **owner._buffers}]:
        return f"it has a {taken[0]!r} of its own, and a sparse layer needs that name; rename it"
    if isinstance(weight, UninitializedParameter):
        return "its weight has no shape yet; run one batch through the model, then sparsify"
    if not weight.numel():
        return f"its weight is empty, {tuple(weight.shape)}; give it inputs and outputs"
    if is_sharded(weight):
        return "its weight is sharded over processes; sparsify before fully_shard()"
    if weight.is_inference():
        return "its weight was made under torch.inference_mode and can never train; build the model outside of it"
    if not weight.is_floating_point():
        return f"its weight holds {weight.dtype}; only floating point numbers can be ranked, masked and trained"
    return ""


def _say_what_computes(owner: nn.Module, name: str) -> str:
    """Name what computes a weight from other parameters, and how to make it a parameter again."""
    if is_parametrized(owner, name):
        kinds = ", ".join(type(each).__name__.lstrip("_") for each in owner.parametrizations[name])  # pyrefly: ignore
        undo = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})"
        return f"by a parametrization ({kinds}); call {undo} first"
    for hook in owner._forward_pre_hooks.values():
        for kind, undo in UNDONE_BY.items():
            if isinstance(hook, kind):
                return f"by {type(hook).__name__}; call {undo.format(name=name)} first"
    return f"or missing: {type(owner).__name__} has no parameter {name!r}; make it one"


def _has_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d) or is_conv1d_class(type(module))


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module into all places of a model where another stands."""
    if old is model:
        raise ValueError("the model itself cannot be exchanged for another layer; put it into nn.Sequential first")
    for module in model.modules():
        for name, part in module._modules.items():
            if part is old:
                module._modules[name] = new


def why_not_find(model: nn.Module, what: str = "the model", kind: str = "sparse", otherwise: str = "") -> str:
    """Say why a model has no sparse layers, or no compressed ones, and what to do."""
    names = [label(name) for name, module in model.named_modules() if isinstance(module, Int8Linear)]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return (
            f"{what} has no {kind} layer any more: {names[0]}{more} compute in int8, for inference only, and the "
            "weights they were rounded from are gone; take the model as it was before pack(precisions=['int8']), or "
            "load its checkpoint anew"
        )
    return f"{what} has no {kind} layer; {otherwise or 'sparsify() it or load a sparse checkpoint first'}"

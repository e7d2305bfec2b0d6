"""Making one layer again of what stands for one: branches, factors, and layers with a pair beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.layers.composite import Composite, Doped, Factorized, Parallel, weight_behind_mask
from cutwork.layers.compressed import Compressed
from cutwork.layers.masked import MaskedLayer
from cutwork.layers.sparse import Sparse
from cutwork.layers.swap import exchange
from cutwork.patterns import Pattern, parse
from cutwork.sparsity.layout import Layout
from cutwork.speed.fusion import multiply_outputs, scale_and_shift
from cutwork.text import label
from cutwork.training.sparsify import sparsify

UNSTRUCTURED = "unstructured"
# Densities meet a budget in whole units only, and compressed factors of 256x256 and 512x512 layers that kept as many
# weights as one whole layer took 1.3 and 1.1 times as long as that (one thread, AVX-512).
MOST_WEIGHTS = 1.1


@final
@dataclass(frozen=True)
class Folding:
    """A composite that was looked at: which layer it is now, or why it stays."""

    module: str
    kind: str
    kept_before: int
    kept_after: int
    reason: str = ""

    def __str__(self) -> str:
        """Say it in one line."""
        if self.reason:
            return f"{self.module} ({self.kind}) stays: {self.reason}"
        return f"{self.module} ({self.kind}) is one layer: {self.kept_before:,} weights are {self.kept_after:,}"


def fold(model: nn.Module) -> tuple[Folding, ...]:
    """Make one layer of each composite that computes what one can and is cheaper so, in place, for inference.

    Branches become one layer with the sum of their weights, under the union of their masks. Factors with nothing or a
    batch norm between them become their product, and a layer with a pair beside it the sum, where that has at most a
    tenth more weights than are kept now. Batch norms of branches and between factors are multiplied into the layers
    before them. Outputs stay equal, up to rounding. What has an activation or a layer norm inside stays, and the result
    says so.

    The model must be in evaluation. Sparse layers that come of it are in dense storage: `pack(model, x)` then gives
    each its fastest form, and `fuse(model, x)` takes along batch norms that stand behind layers. The model no longer
    loads checkpoints of the unfolded one.

    >>> from cutwork import sparsify
    >>> from cutwork.transforms import parallel
    >>> model = nn.Sequential(nn.Linear(20, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    >>> larger = parallel(model, density=0.25, inputs=torch.rand(1, 20))
    >>> sparsifier = sparsify(larger.model, larger.patterns("block:16"), density=larger.densities)
    >>> for folding in fold(larger.model.eval()):
    ...     print(folding)
    1 (Parallel) is one layer: 4,096 weights are 3,328
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Composite)}
    outer = {name: each for name, each in found.items() if not any(name.startswith(f"{other}.") for other in found)}
    if not outer:
        raise ValueError("the model has no branches or factors to fold; transforms.parallel() and others make some")
    if training := [name for name, each in outer.items() if any(module.training for module in each.modules())]:
        raise ValueError(f"{label(training[0])} is in training, where norms are not fixed; call model.eval() first")
    done = []
    for name, composite in outer.items():
        folding, single = _fold(name, composite)
        done.append(folding)
        if single is not None:
            _put(model, name, composite, single)
    return tuple(done)


def fold_these(model: nn.Module, names: Sequence[str]) -> None:
    """Make one dense layer of each composite of these names, in place, whatever that costs.

    So a model takes the architecture of one that was folded, whose checkpoint it then loads.
    """
    for name in names:
        composite: Any = model.get_submodule(name)
        with torch.no_grad():
            single = _FOLDS[type(composite)](composite)
        exchange(model, composite, single.layer)


@dataclass(frozen=True)
class _Single:
    """One plain layer that computes what several do, and which of its weights may be other than zero."""

    layer: Any
    mask: Tensor
    pattern: Pattern | None

    @property
    def num_kept(self) -> int:
        return int(self.mask.sum())


class _CannotFoldError(Exception):
    """Why a composite cannot be one layer."""


@torch.no_grad()
def _fold(name: str, composite: Composite) -> tuple[Folding, _Single | None]:
    kept = sum(_num_kept(module) for module in composite.modules() if _has_weight(module))
    kind = type(composite).__name__
    try:
        single = _FOLDS[type(composite)](composite)
    except _CannotFoldError as reason:
        return Folding(name, kind, kept, kept, str(reason)), None
    if single.num_kept > MOST_WEIGHTS * kept:
        reason = f"one layer would have {single.num_kept:,} weights, it has {kept:,}"
        return Folding(name, kind, kept, kept, reason), None
    return Folding(name, kind, kept, single.num_kept), single


def _fold_parallel(composite: Any) -> _Single:
    first, *others = [_fold_branch(branch) for branch in composite.branches]
    for each in others:
        first = _add(first, each)
    return first


def _fold_branch(branch: nn.Module) -> _Single:
    layer, *following = branch if isinstance(branch, nn.Sequential) else [branch]
    single = _read(layer)
    for module in following:
        single = _scale(single, module)
    return single


def _fold_factorized(composite: Any) -> _Single:
    between = composite.between
    first = _fold_branch(nn.Sequential(composite.first, *([] if composite.is_linear else _parts(between))))
    second = _read(composite.second)
    inner, outer = (Layout.of(each.layer.weight).to_matrix(each.layer.weight) for each in (first, second))
    product = (outer.double() @ inner.double()).to(outer.dtype)
    bias = second.layer.bias
    if first.layer.bias is not None:
        shift = (outer.double() @ first.layer.bias.double()).to(outer.dtype)
        bias = shift if bias is None else bias + shift
    layout = Layout((len(product), *first.layer.weight.shape[1:]))
    return _like(first.layer, layout.from_matrix(product), bias)


def _fold_doped(composite: Any) -> _Single:
    return _add(_read(composite.sparse), _fold_factorized(composite.pair))


_FOLDS: dict[type[Composite], Callable[[Any], _Single]] = {
    Parallel: _fold_parallel,
    Factorized: _fold_factorized,
    Doped: _fold_doped,
}


def _parts(between: nn.Module) -> list[nn.Module]:
    return list(between) if isinstance(between, nn.Sequential) else [between]


def _read(layer: Any) -> _Single:
    """Return a plain copy of a layer, dense or sparse in whatever storage."""
    if fused := [when for when in ("before", "after") if vars(layer).get(when, "none") != "none"]:
        raise _CannotFoldError(f"fuse() gave a layer of it an activation {fused[0]} its product; fold() first")
    if isinstance(layer, Sparse) and not isinstance(layer, MaskedLayer | Compressed):
        raise _CannotFoldError("a layer of it computes in int8, whose numbers are rounded; fold() before pack()")
    bias: Any = layer.bias
    single = _like(layer, weight_behind_mask(layer).detach().clone(), bias)
    if not isinstance(layer, MaskedLayer | Compressed):
        return single
    return replace(single, mask=layer.sparsity.mask.clone(), pattern=layer.sparsity.pattern)


def _like(layer: Any, weight: Tensor, bias: Tensor | None) -> _Single:
    """Return a plain layer of the same geometry with other numbers, all of them kept."""
    if weight.dim() == 2:
        new: Any = nn.Linear(weight.shape[1], len(weight), bias is not None, device="meta")
    else:
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        channels = layer.in_channels, len(weight)
        mode = layer.padding_mode
        new = nn.Conv2d(*channels, *geometry, bias=bias is not None, padding_mode=mode, device="meta")
    new.weight = nn.Parameter(weight)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone())
    return _Single(new.eval(), torch.ones_like(weight, dtype=torch.bool), None)


def _scale(single: _Single, module: Any) -> _Single:
    if isinstance(module, nn.Identity):
        return single
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) or not module.track_running_stats:
        raise _CannotFoldError(f"{type(module).__name__} is no linear function")
    multiply_outputs(single.layer, *scale_and_shift(module))
    return single


def _add(one: _Single, other: _Single) -> _Single:
    biases = [each.layer.bias for each in (one, other) if each.layer.bias is not None]
    bias = sum(biases[1:], biases[0]) if biases else None
    summed = _like(one.layer, one.layer.weight + other.layer.weight, bias)
    mask = one.mask | other.mask
    pattern = one.pattern if one.pattern == other.pattern else None
    return replace(summed, mask=mask, pattern=pattern)


def _put(model: nn.Module, name: str, composite: Composite, single: _Single) -> None:
    exchange(model, composite, single.layer)
    if single.mask.all():
        return
    pattern = parse(UNSTRUCTURED)
    if single.pattern is not None and single.pattern.allows(Layout.of(single.layer.weight).to_matrix(single.mask)):
        pattern = single.pattern
    sparsify(model, {name: pattern}, masks={name: single.mask}, method="static", rescale=False)


def _has_weight(module: nn.Module) -> bool:
    return isinstance(module, Sparse | nn.Linear | nn.Conv2d)


def _num_kept(layer: Any) -> int:
    return layer.describe_weight().num_kept if isinstance(layer, Sparse) else layer.weight.numel()

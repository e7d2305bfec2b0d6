"""Masks folded into dense weights, found in them, and copied from one model to another."""

import torch
from torch import Tensor, nn

from cutwork.layers.compressed import Compressed
from cutwork.layers.swap import SparseLayer, make_dense, sparse_layers, weight_of, why_not_find
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.compressed import FixedIndex
from cutwork.sparsity.fixed import Fixed
from cutwork.text import counted, label
from cutwork.training.selection import Patterns, match_layers
from cutwork.training.sparsifier import Sparsifier
from cutwork.training.sparsify import sparsify


def bake(model: nn.Module) -> dict[str, Tensor]:
    """Multiply every mask into its weight, turn the layers back into dense ones, in place, and return the masks.

    `sparsify(model, patterns, masks=masks)` takes them up again.

    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> sparsifier = sparsify(model, "2:4")
    >>> masks = bake(model)
    >>> type(model[0]).__name__, bool(model[0].weight[~masks["0"]].any())
    ('Linear', False)
    """
    layers = sparse_layers(model)
    if not layers:
        raise ValueError(why_not_find(model))
    masks = {}
    with torch.no_grad():
        for name, layer in layers.items():
            if not isinstance(layer, Compressed):
                layer.weight.copy_(layer.sparsity(layer.weight))
            masks[name] = layer.sparsity.mask.clone()
    make_dense(model)
    return masks


def freeze_zeros(model: nn.Module, patterns: Patterns = "unstructured") -> "Sparsifier":
    """Keep the zeros that a pruned model has, whatever trains it from now on.

    A unit of its pattern is kept where any weight of it is not zero. Layers without zeros are left out.

    >>> model = nn.Linear(4, 4)
    >>> with torch.no_grad():
    ...     _ = model.weight.fill_diagonal_(0)
    >>> freeze_zeros(model).layers[""].sparsity
    Fixed(unstructured, density 0.75)
    """
    choices = match_layers(model, patterns)
    masks = {}
    for name, choice in choices.items():
        weight = choice.layout.to_matrix(weight_of(model, choice.candidate).detach())
        units = choice.pattern.pool((weight != 0).float()) > 0
        mask = choice.pattern.spread(units, weight.shape)
        if not mask.all():
            masks[name] = choice.layout.from_matrix(mask)
    if not masks:
        raise ValueError(f"of {counted(len(choices), 'layer')} none has a unit of zeros to keep; sparsify() makes some")
    kept = {sharer: choices[name].pattern for name in masks for sharer in (name, *choices[name].tied)}
    return sparsify(model, kept, masks=masks)


def copy_masks(source: nn.Module, target: nn.Module) -> None:
    """Give the sparse layers of `target` the masks of `source`, and zero its weights outside where masks are fixed.

    An average of weights over time, such as `torch.optim.swa_utils.AveragedModel(model).module`, remembers weights that
    masks have dropped since; afterwards it is as sparse as the model it follows.

    >>> from copy import deepcopy
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> average = deepcopy(model)
    >>> sparsifier, other = (sparsify(each, "block:16", density=0.25, init="random", seed=i)
    ...                      for i, each in enumerate((model, average)))
    >>> copy_masks(model, average)
    >>> torch.equal(average[0].sparsity.mask, model[0].sparsity.mask)
    True
    """
    given, taking = sparse_layers(source), sparse_layers(target)
    if not given:
        raise ValueError(why_not_find(source, "the source"))
    if missing := [name for name in (*given, *taking) if name not in given or name not in taking]:
        raise ValueError(
            f"source and target must have the same sparse layers; they differ in "
            f"{', '.join(label(name) for name in missing[:8])}; pass the module inside a wrapper"
        )
    for name in given:
        kinds = [_mask_kind(layers[name]) for layers in (given, taking)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{label(name)}: its mask is {kinds[0]} in the source and {kinds[1]} in the target; "
                "sparsify both alike, or copy the model"
            )
        if _has_mixed(given[name].sparsity, taking[name].sparsity):
            raise ValueError(
                f"{label(name)}: both are compressed, and the mask of one has moved since they were alike, so an "
                "average has mixed weights of different places; average with storage='dense', or begin when masks "
                "have come to rest"
            )
    with torch.no_grad():
        for name, layer in taking.items():
            sparsity, matrix = layer.sparsity, given[name].sparsity.mask_matrix()
            sparsity.density = given[name].sparsity.density
            if isinstance(sparsity, FixedIndex):
                sparsity.move(sparsity.condense(matrix), layer.trained, [])
            else:
                sparsity.set_mask(matrix)
                sparsity.after_update(layer.trained)


def _has_mixed(source: Sparsity, target: Sparsity) -> bool:
    """Say whether the same place in the values of two layers may stand for different weights."""
    if not (isinstance(source, FixedIndex) and isinstance(target, FixedIndex)):
        return False
    # Averages copy buffers, and with them the masks, so that equal masks alone prove nothing.
    return source.num_moves != target.num_moves or not torch.equal(source.mask_matrix(), target.mask_matrix())


def _mask_kind(layer: SparseLayer) -> str:
    sparsity = layer.sparsity
    kind = Fixed if isinstance(sparsity, FixedIndex) else type(sparsity)
    return f"{kind.__name__}({sparsity.pattern}) of shape {tuple(sparsity.mask.shape)}"

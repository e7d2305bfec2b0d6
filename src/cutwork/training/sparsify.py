"""Making a model sparse, and dense again."""

import logging
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from cutwork.layers.compressed import Compressed
from cutwork.layers.int8 import why_none
from cutwork.layers.swap import SparseLayer, make_dense, sparse_layers, weight_of
from cutwork.methods import Method, Supermask, Switch, named
from cutwork.methods.scores import SCORES, Score
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.compressed import FixedIndex
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.matrix import from_matrix, to_matrix
from cutwork.text import did_you_mean, label
from cutwork.training.allocation import ALLOCATIONS, Allocation
from cutwork.training.selection import (
    Amounts,
    Patterns,
    choose_layers,
    choose_masked,
    describe_reasons,
    install,
    match_layers,
    one_amount,
)
from cutwork.training.sparsifier import Sparsifier

STORAGES = ("dense", "compressed")

logger = logging.getLogger(__name__)


def sparsify(
    model: nn.Module,
    patterns: Patterns,
    *,
    density: Amounts | None = None,
    sparsity: Amounts | None = None,
    method: str | Method = "static",
    allocation: str | Allocation = "uniform",
    init: str | Score | None = None,
    masks: Mapping[str, Tensor] | None = None,
    steps: int | None = None,
    seed: int = 0,
    track: bool = False,
    storage: str = "dense",
    skip: bool = False,
    device: str | torch.device | None = None,
) -> "Sparsifier":
    """Make layers of a model sparse, in place, and return the sparsifier that trains them so.

    `patterns` is one pattern for every linear layer and convolution, or a mapping from globs over layer names to
    patterns, or to "dense" for layers to leave out; the last glob that matches decides. Give `density` or `sparsity`:
    one number for `allocation` to share out, or a mapping from globs to numbers; 2:4 and its like fix their own. The
    first mask keeps what `init` scores highest, by default the magnitude of the weights, unless `masks` gives masks,
    shaped like the weights. `steps` is the length of the run, needed where the method speaks of a share of it. `track`
    keeps count of the masks visited. With `storage="compressed"` linear layers in tiles store and train only what their
    masks keep, from the first step: weights, gradients and optimizer state have the size of that. A layer that cannot
    be sparse is an error; with `skip` it stays dense, a warning is logged, and `skipped` of the sparsifier says why.
    Chosen layers on the meta device come into being on `device`, compressed at once: one after the other gets the first
    numbers that its own `reset_parameters` gives it, and keeps what its mask does. All else stays on the meta device.

    The order of calls: build the model, load dense weights, sparsify, wrap for data parallelism, build the optimizer,
    attach it, compile. If anything is wrong, nothing has changed.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> sparsifier = sparsify(model, {"*": "block:16", "2": "dense"}, density=0.25)
    >>> model[0]
    SparseLinear(
      in_features=64, out_features=64, bias=True
      (sparsity): Fixed(block:16, density 0.25)
    )
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "sparsify under torch.inference_mode() would make masks and weights that can never train; call it outside, "
            "or under torch.no_grad()"
        )
    _check_whole("steps", steps, least=1, example="the number of optimizer steps of the run")
    _check_whole("seed", seed, least=None, example="any whole number")
    if not isinstance(skip, bool):
        raise TypeError(f"skip is True or False; got {skip!r}; a layer is left out by name with {{'head': 'dense'}}")
    chosen_method = named(method).in_steps(None if steps is None else int(steps))
    if _learns_masks(chosen_method):
        _refuse_first_mask(init, masks)
    if storage not in STORAGES:
        near = did_you_mean(storage, STORAGES)
        raise ValueError(f"unknown storage {storage!r}{near}; write {', '.join(map(repr, STORAGES))}")
    score = _one_of(SCORES, "magnitude" if init is None else init, "score")
    share = _one_of(ALLOCATIONS, allocation, "allocation")
    target = _checked_device(device, storage)
    amount = one_amount(density, sparsity)
    skipped: dict[str, str] | None = {} if skip else None
    if masks is None:
        choices = choose_layers(model, patterns, density=amount, allocation=share, skipped=skipped, device=target)
    elif amount is not None or init is not None or allocation != "uniform":
        raise ValueError(
            "masks bring their own density and need no scores; leave density, sparsity, allocation, init out"
        )
    else:
        choices = choose_masked(model, patterns, masks, skipped, target)
    if target is not None and not any(choice.candidate.is_meta for choice in choices.values()):
        raise ValueError(f"device={device!r} is for layers on the meta device, and none of these is; leave it out")
    layers = install(
        *(model, choices, chosen_method),
        init=score,
        masks=masks,
        seed=seed,
        is_compressed=storage == "compressed",
        device=target,
    )
    if skipped:
        logger.warning("sparsify leaves %d layers dense: %s", len(skipped), "; ".join(describe_reasons(skipped)))
    return Sparsifier(layers, chosen_method, seed=int(seed), track=track, skipped=skipped)


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
        raise ValueError(f"bake: {why_none(model)}")
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
        weight = to_matrix(weight_of(model, choice.candidate).detach(), transposed=choice.transposed)
        units = choice.pattern.pool((weight != 0).float()) > 0
        mask = choice.pattern.spread(units, weight.shape)
        if not mask.all():
            masks[name] = from_matrix(mask, choice.candidate.shape, transposed=choice.transposed)
    if not masks:
        raise ValueError(
            f"freeze_zeros: none of {len(choices)} layers has a unit of zeros to keep; sparsify() makes some"
        )
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
        raise ValueError(f"copy_masks: {why_none(source, 'the source')}")
    if missing := [name for name in (*given, *taking) if name not in given or name not in taking]:
        raise ValueError(
            f"copy_masks: source and target must have the same sparse layers; they differ in "
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
                f"{label(name)}: both store compressed, and the mask of one has moved since they were alike, so an "
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
    """Say whether two layers have units of different places in the same places of their values."""
    if not (isinstance(source, FixedIndex) and isinstance(target, FixedIndex)):
        return False
    # Whoever averages weights keeps the buffers alike, and with them the masks.
    return source.num_moves != target.num_moves or not torch.equal(source.mask_matrix(), target.mask_matrix())


def _mask_kind(layer: SparseLayer) -> str:
    sparsity = layer.sparsity
    kind = Fixed if isinstance(sparsity, FixedIndex) else type(sparsity)
    return f"{kind.__name__}({sparsity.pattern}) of shape {tuple(sparsity.mask.shape)}"


def _check_whole(name: str, value: object, *, least: int | None, example: str) -> None:
    if value is None and least is not None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is a whole number; got {value!r} ({type(value).__name__}); give {example}")
    if least is not None and value < least:
        raise ValueError(f"{name}={value} is less than {least}; give {example}")


def _checked_device(device: str | torch.device | None, storage: str) -> torch.device | None:
    if device is None:
        return None
    if torch.device(device).type == "meta":
        raise ValueError("device='meta' has no memory for values; give the device that the model will be on")
    if storage != "compressed":
        raise ValueError(
            f"device={device!r} lets layers come into being compressed, but storage is {storage!r}; add "
            "storage='compressed', or materialise the model with to_empty() and leave device out"
        )
    return torch.device(device)


def _learns_masks(method: Method) -> bool:
    return isinstance(method, Supermask) or (isinstance(method, Switch) and _learns_masks(method.method))


def _refuse_first_mask(init: str | Score | None, masks: Mapping[str, Tensor] | None) -> None:
    if init is not None:
        raise ValueError(
            f"init={init!r} does not reach a supermask; Supermask(init=...) says how its scores start, leave init out"
        )
    if masks is not None:
        raise ValueError(
            f"masks were given for {len(masks)} layers of a supermask, but its masks come from scores; "
            "leave them out, or use another method"
        )


def _one_of(table: Mapping[str, Any], value: Any, what: str) -> Any:
    if callable(value):
        return value
    if not isinstance(value, str) or value not in table:
        near = did_you_mean(value, table)
        raise ValueError(f"unknown {what} {value!r}{near}; write {', '.join(map(repr, table))}, or pass a function")
    return table[value]

"""Models that other software pruned: their masks, or their zeros, as weights and masks that `sparsify` takes up.

    brought = cutwork.compat.pruned.read("pruned.pth")
    model.load_state_dict(brought.weights)
    sparsifier = cutwork.sparsify(model, brought.patterns, masks=brought.masks)

What is read, each told by the names of its tensors:

- `torch.nn.utils.prune`: `weight_orig` and `weight_mask`, in a model or a state dict
- `torch.ao.pruning`: a parametrization with a mask
- apex ASP: the buffer `__weight_mma_mask`
- shuffled blocks (DSB, SSB) in their authors' program: the buffer `weight_mask` beside `weight`
- Sparse-IFT in its authors' program: masks in the state of `mask_optimizer`
- MaskLLM: a file of masks alone, as bits in an `.npz` or whole; the weights come from elsewhere
- SuperBlock: scores of tiles, if the file says how sparse they are (see `cutwork.compat.superblock`)
- anything else: layers in which a hundredth of the weight or more is exactly zero
"""

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from cutwork.compat import superblock
from cutwork.compat.brought import IN_PROJECTION, Brought, bring, fold_masks
from cutwork.compat.state_file import PREFIX, find_state, read_state
from cutwork.compat.superblock import SCORES
from cutwork.costs.zeros import find_order, mask_of

Source = str | Path | Mapping[str, Any] | nn.Module
# Weights by name, and masks by the names of the weights.
Parts = tuple[dict[str, Tensor], dict[str, Tensor]]
State = Mapping[str, Tensor]

# Fewer zeros may be a padding row of an embedding, or chance.
LEAST_ZEROS = 0.01
# What tells masks where nothing else does.
ZEROS = "zeros"
# Masks alone, such as those of MaskLLM, are called after their weights.
MASK_ENDING = ".mask"


def read(source: Source, *, weights: Source | None = None) -> Brought:
    """Return the weights and masks of a pruned model: a file, a folder of transformers, a state dict, or the model.

    `weights` names those that masks belong to which are alone in their file. A model is only looked at.

    >>> layer = nn.Linear(4, 2)
    >>> _ = prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
    >>> brought = read(nn.Sequential(layer))
    >>> print(brought)
    1 mask of torch.nn.utils.prune, in block:1x4
    >>> sorted(brought.weights)
    ['0.bias', '0.weight']
    """
    origin, state, masks = _look(source, weights)
    if not masks:
        raise ValueError(
            f"none of its {len(state)} tensors has a mask, and no layer has {LEAST_ZEROS:.0%} of zeros or more: "
            "nothing here is pruned; sparsify() it"
        )
    return bring(origin, state, masks)


def fold(source: Source, *, weights: Source | None = None) -> tuple[str, dict[str, Tensor]]:
    """Return what told the masks of `read`, and an ordinary state dict with zeros where they are, pruned or not."""
    origin, state, masks = _look(source, weights)
    return origin, fold_masks(state, masks)


def bake(model: nn.Module) -> Brought:
    """Fold what pruned a live model into its weights, in place, and return what `read` does.

    The masks of `torch.nn.utils.prune` and `torch.ao.pruning` and the buffers of apex are gone afterwards, and the
    model is an ordinary one.

    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> _ = prune.l1_unstructured(model[0], "weight", amount=0.5)
    >>> masks = bake(model).masks
    >>> [name for name, _ in model.named_parameters()], int(masks["0"].sum())
    (['0.bias', '0.weight'], 8)
    """
    brought = read(model)
    for module in model.modules():
        hooks, computed, buffers = _marks(module)
        for name in hooks:
            prune.remove(module, name)
        for name in computed:
            parametrize.remove_parametrizations(module, name)
        for name in buffers:
            del module._buffers[name]
    model.load_state_dict(brought.weights)
    return brought


def is_marked(model: nn.Module) -> bool:
    """Say whether something is left in a live model of what pruned it, that `bake` takes away."""
    return any(any(_marks(module)) for module in model.modules())


def _marks(module: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """Return which parameters of a module are pruned by hooks and by parametrizations, and the buffers of apex."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)]
    # What else computes a weight, such as weight norm, is none of this.
    computed = [
        name
        for name, parts in getattr(module, "parametrizations", {}).items()
        if any("mask" in part._buffers for part in parts)
    ]
    buffers = [name for name in module._buffers if re.fullmatch(r"__.+_mma_(mask|pruned_p)", name)]
    return [hook._tensor_name for hook in hooks], computed, buffers


def _look(source: Source, weights: Source | None) -> tuple[str, State, State]:
    """Return what wrote a source, its weights by name, and its masks by the names of the weights."""
    if isinstance(source, str | Path) and Path(source).suffix == ".npz":
        return _join(_read_npz(Path(source)), source, weights)
    state, rest = _open(source)
    if rest.get("mask_optimizer"):
        return "Sparse-IFT", state, _masks_of_optimizer(rest["mask_optimizer"])
    if all(name.endswith(MASK_ENDING) for name in state):
        return _join(state, source, weights)
    if weights is not None:
        raise ValueError("the source has weights of its own, so those given besides would go unread; leave them out")
    for origin, take in ORIGINS.items():
        if parts := take(state):
            return origin, *parts
    if any(name.endswith(SCORES) for name in state):
        brought = superblock.read(source if isinstance(source, str | Path | Mapping) else state)
        return brought.origin, brought.weights, {f"{layer}.weight": mask for layer, mask in brought.masks.items()}
    return ZEROS, state, _masks_of_zeros(state)


def _open(source: Source) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(source, nn.Module):
        # A copy of each, so that what happens to the model changes nothing here.
        return {name: held.detach().clone() for name, held in _tensors(source).items()}, {}
    return find_state(source) if isinstance(source, Mapping) else read_state(source)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: held for name, held in model.state_dict().items() if isinstance(held, Tensor)}


def _join(masks: Mapping[str, Tensor], source: Source, weights: Source | None) -> tuple[str, State, State]:
    """Bring masks that are alone in their file together with their weights."""
    if weights is None:
        raise ValueError(
            f"{source if isinstance(source, str | Path) else 'the source'} holds masks alone; give the weights that "
            "they were made for: read(masks, weights='model.safetensors'), or the model"
        )
    state = _open(weights)[0]
    named = {}
    for name, mask in masks.items():
        parameter = name.replace(MASK_ENDING, "")
        parameter = parameter if parameter in state else f"{parameter}.weight"
        # Of masks as bits the shape is that of the weight.
        named[parameter] = _unpack(parameter, mask, state) if mask.dtype == torch.uint8 else mask
    return "MaskLLM", state, named


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no complete file of NumPy arrays ({error}); copy it anew") from None


def _unpack(name: str, bits: Tensor, state: State) -> Tensor:
    if name not in state or bits.ndim != 1:
        return bits
    weight = state[name]
    if len(bits) != -(-weight.numel() // 8):
        raise ValueError(
            f"the mask of {name} has {8 * len(bits)} bits, its weight {weight.numel()} entries; give the weights that "
            "the masks were made for"
        )
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=weight.numel())).view(weight.shape)


def _take(weight_form: str, mask_form: str, unread: str = "") -> Callable[[State], Parts | None]:
    """Return what takes weights and masks out of a state dict, by forms of their names.

    The first `{}` stands for the name of a module, with its dot, and the second for that of the parameter.
    """

    def take(state: State) -> Parts | None:
        pattern = re.compile(_as_pattern(mask_form))
        names = {mask: match.groups() for mask in state if (match := pattern.fullmatch(mask))}
        names = {mask: found for mask, found in names.items() if weight_form.format(*found) in state}
        if not names:
            return None
        weights, masks = dict(state), {}
        for mask, found in names.items():
            weight = weights.pop(weight_form.format(*found))
            masks["".join(found)] = weights.pop(mask)
            weights["".join(found)] = weight
        if unread:
            weights = {name: held for name, held in weights.items() if not re.fullmatch(_as_pattern(unread), name)}
        return weights, masks

    return take


def _as_pattern(form: str) -> str:
    """Return a regular expression for names: of the module, with its dot, and of the parameter."""
    before, between, after = map(re.escape, form.split("{}"))
    return rf"{before}(.*\.|){between}([^.]+){after}"


ORIGINS: dict[str, Callable[[State], Parts | None]] = {
    "torch.nn.utils.prune": _take("{}{}_orig", "{}{}_mask"),
    "torch.ao.pruning": _take("{}parametrizations.{}.original", "{}parametrizations.{}.0.mask"),
    "apex ASP": _take("{}{}", "{}__{}_mma_mask", unread="{}__{}_mma_pruned_p"),
    "shuffled blocks": _take("{}{}", "{}{}_mask"),
}


def _masks_of_optimizer(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the masks of Sparse-IFT, whose optimizer has them by the place of the weight, and names by its groups."""
    try:
        groups, states = saved["param_groups"], saved["state"]
        return {
            name.removeprefix(PREFIX): states[place]["mask"]
            for group in groups
            for name, place in zip(group["names"], group["params"], strict=True)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"its mask_optimizer has no masks by name ({error!r}); give the state dict of the model, whose zeros tell "
            "where masks were"
        ) from None


def _masks_of_zeros(state: State) -> dict[str, Tensor]:
    """Return where weights are not zero, for those of layers in which enough are."""
    return {
        name: mask_of(held, find_order(held))
        for name, held in state.items()
        if held.is_floating_point()
        and held.ndim in (2, 4)
        and (name.rpartition(".")[2] in ("weight", IN_PROJECTION))
        and float((held == 0).float().mean()) >= LEAST_ZEROS
    }

"""SuperBlock's weights: scores of tiles, from which its layers make their masks anew in each pass.

    file = cutwork.compat.superblock.fetch(sparsity=0.9, tile=32)
    brought = cutwork.compat.superblock.read(file)
    model = torchvision.models.vit_b_16()
    model.load_state_dict(brought.weights)
    sparsifier = cutwork.sparsify(model, brought.patterns, masks=brought.masks)
    cutwork.pack(model, images)

`read` folds the masks in, and `resume` goes on learning them. Both keep the tiles that the original keeps, to the
tile, and leave alone what it leaves alone: it puts a mask into the output projection of attentions, whose weight is
then read without it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.compat.brought import IN_PROJECTION, Brought, bring
from cutwork.compat.state_file import find_state, read_state
from cutwork.data.download import sha256_of
from cutwork.methods import Supermask
from cutwork.text import label
from cutwork.training.sparsifier import Sparsifier
from cutwork.training.sparsify import sparsify

REPOSITORY = "facebook/superblock-vit-b-16"
LEVELS, TILES = (0.7, 0.8, 0.82, 0.84, 0.86, 0.88, 0.9), (16, 32, 64)
ORIGIN = "SuperBlock"
# What its layers hold beside weight and bias.
SCORES, SHIFT, SCALE = ".scores", ".shift", ".scale"
# The level and the tile in the names of its files, and where the options of a training run have them.
NAMED = re.compile(r"sp(\d\.\d+)-ts(\d+)")
SHA256 = re.compile(r"[0-9a-f]{64}")
LEVEL_OF = {"linear": "sparsity_linear", "conv1x1": "sparsity_conv1x1", "conv": "sparsity_conv"}

Source = str | Path | Mapping[str, Any]
# One level for all layers, or levels by globs over their names, of which the last that matches counts.
Levels = float | Mapping[str, float]


def fetch(sparsity: float, tile: int) -> Path:
    """Return the file of a published ViT-B/16 on the hub, at a sparsity and with square tiles; it is downloaded once.

    There are sparsities of 0.7 and of 0.8 to 0.9 in steps of 0.02, each with tiles of 16, 32 and 64. Needs the package
    huggingface-hub, from the extra `hub`. What was downloaded is compared with the SHA-256 that the hub tells.
    """
    if sparsity not in LEVELS or tile not in TILES:
        raise ValueError(
            f"there are no weights of sparsity {sparsity} in tiles of {tile}; choose one of "
            f"{', '.join(map(str, LEVELS))} and one of {', '.join(map(str, TILES))}"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    name = f"checkpoints/sp{sparsity:.2f}-ts{tile}.pth"
    try:
        file = Path(hf_hub_download(REPOSITORY, name))
    # Without a network it raises errors of several packages, all of which are one of these.
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split()).partition(". ")[0]
        raise ConnectionError(
            f"cannot fetch {name} of {REPOSITORY} from the hub: {told}; download it elsewhere, from the "
            f"files of {REPOSITORY}, and read it by its path: superblock.read('{Path(name).name}')"
        ) from error
    # The hub keeps large files under their digest.
    if SHA256.fullmatch(told := file.resolve().name) and (found := sha256_of(file)) != told:
        raise ValueError(f"{file} is damaged: its SHA-256 is {found}, not {told}; delete it and fetch it again")
    return file


def read(source: Source, *, sparsity: Levels | None = None, tile: int | None = None) -> Brought:
    """Return the weights of a SuperBlock model with its masks folded in: a file, or a state dict.

    The files hold neither the sparsity nor the tile. Where the file is called after them, as in sp0.90-ts32.pth, or
    has the options of its training beside the weights, these count; else `sparsity` must be given, and the tile is the
    smallest by which the shapes of scores and weights fit.
    """
    state, masks, inert = _look(source, sparsity, tile)
    return bring(
        ORIGIN,
        _plain(state),
        {f"{name}.weight" if name else "weight": each.mask for name, each in masks.items()},
        patterns={name: each.pattern for name, each in masks.items()},
        left_out=dict.fromkeys(inert, "its attention reads the weight without the mask"),
    )


def resume(source: Source, model: nn.Module, *, sparsity: Levels | None = None, tile: int | None = None) -> Sparsifier:
    """Load a SuperBlock model, with masks that go on learning, and return the sparsifier that moves them.

    The model is one of the architecture, dense. What is not given is found as in `read`.
    """
    state, masks, _ = _look(source, sparsity, tile)
    model.load_state_dict(_plain(state))
    sparsifier = sparsify(
        model,
        {"*": "dense", **{escape(name): each.pattern for name, each in masks.items()}},
        density={escape(name): 1 - each.sparsity for name, each in masks.items()},
        method=Supermask(count="reference"),
        rescale=False,
    )
    with torch.no_grad():
        for name, layer in sparsifier.layers.items():
            held: Any = layer.sparsity
            scores = masks[name].scores
            # Tiles span all taps, or are single weights.
            grid = held.layout.to_matrix(scores) if masks[name].pattern == "unstructured" else scores.flatten(1)
            held.scores.copy_(grid.view(held.scores.shape))
            held.set_mask(held.layout.to_matrix(masks[name].mask).to(held.scores.device))
    return sparsifier


@final
@dataclass(frozen=True)
class _Mask:
    """The mask of one layer, and what it comes from."""

    scores: Tensor
    sparsity: float
    pattern: str
    mask: Tensor


def _look(
    source: Source, sparsity: Levels | None, tile: int | None
) -> tuple[dict[str, Tensor], dict[str, _Mask], list[str]]:
    """Return the state dict of a file, its masks, and the layers whose masks do nothing."""
    state, rest = find_state(source) if isinstance(source, Mapping) else read_state(source)
    scored = [name.removesuffix(SCORES) for name in state if name.endswith(SCORES)]
    if not scored:
        raise ValueError(
            f"no layer of it has scores, so it is not of {ORIGIN}; read it by cutwork.compat.pruned, if it is pruned"
        )
    inert = [name for name in scored if _is_inert(name, state)]
    active = [name for name in scored if name not in inert]
    named = NAMED.search(Path(source).name) if isinstance(source, str | Path) else None
    level = sparsity if sparsity is not None else float(named[1]) if named else None
    size = tile if tile is not None else int(named[2]) if named else None
    options = rest.get("args")
    tiles = _tiles(active, state, size)
    masks = {}
    for name in active:
        weight, scores = state[f"{name}.weight"], state[f"{name}{SCORES}"]
        # Of what cannot be so sparse, one tile less than all.
        own = min(_level(name, weight, level, options), 1 - 1 / scores.numel())
        kept = _keep(scores, own)
        for dimension, length in enumerate(weight.shape):
            kept = kept.repeat_interleave(tiles[name], dimension).narrow(dimension, 0, length)
        masks[name] = _Mask(scores, own, _pattern(name, weight, tiles[name]), kept)
    return state, masks, inert


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights alone, scaled and shifted where the layer does that."""
    plain = {name: held for name, held in state.items() if not name.endswith((SCORES, SHIFT, SCALE))}
    for name in [name.removesuffix(SCALE) for name in state if name.endswith(SCALE)]:
        if f"{name}{SHIFT}" in state and f"{name}{SCORES}" in state and not _is_inert(name, state):
            plain[f"{name}.weight"] = state[f"{name}.weight"] * state[f"{name}{SCALE}"] + state[f"{name}{SHIFT}"]
    return plain


def _is_inert(name: str, state: Mapping[str, Tensor]) -> bool:
    """Say whether a layer belongs to an attention, which hands its weight to a function without ever calling it."""
    parent, _, last = name.rpartition(".")
    return last == "out_proj" and f"{parent}.{IN_PROJECTION}" in state


def _keep(scores: Tensor, sparsity: float) -> Tensor:
    """Return which tiles are kept: all whose score is no less than that of the rank that the sparsity makes.

    Ranks are found as in the original, whose rounding keeps two tiles where one is meant; of equal scores all stay.
    """
    number = scores.numel()
    rank = 1 + round(0.01 * (100 * sparsity) * (number - 1))
    return scores >= scores.flatten().kthvalue(rank).values


def _level(name: str, weight: Tensor, given: Levels | None, options: Any) -> float:
    """Return how sparse a layer is: as given, or as the options of its training say."""
    if isinstance(given, Mapping):
        found = [level for glob, level in given.items() if fnmatchcase(name, glob)]
        given = found[-1] if found else None
    if given is None:
        kind = "linear" if weight.ndim == 2 else "conv1x1" if weight.shape[2:].numel() == 1 else "conv"
        given = getattr(options, LEVEL_OF[kind], None)
    if given is None:
        raise ValueError(
            f"{label(name)}: its file does not say how sparse it is; give sparsity=0.9, as the training was told, or "
            "call the file after it, as in sp0.90-ts32.pth"
        )
    if not 0 < given < 1:
        raise ValueError(f"{label(name)}: sparsity={given} is outside (0, 1); 0.9 keeps a tenth of the tiles")
    return float(given)


def _tiles(names: list[str], state: Mapping[str, Tensor], given: int | None) -> dict[str, int]:
    """Return how large the tiles of each layer are; those of linear layers and of convolutions may differ."""
    bounds: dict[str, tuple[int, float]] = {}
    for name in names:
        weight, scores = state.get(f"{name}.weight"), state[f"{name}{SCORES}"]
        if weight is None:
            raise ValueError(f"{label(name)} has scores, but no weight; give a whole state dict of {ORIGIN}")
        bounds[name] = _bounds(weight.shape, scores.shape)
        low, high = bounds[name]
        if low > high or (given is not None and not low <= given <= high):
            what = f"tiles of {given}" if low <= high else "any size of tiles"
            raise ValueError(
                f"{label(name)}: scores of {list(scores.shape)} do not fit a weight of {list(weight.shape)} with {what}"
                + (f"; they would with tiles of {low}" if low <= high else "; the file is of something else")
            )
    if given is not None:
        return dict.fromkeys(names, given)
    kernels = {name: state[f"{name}.weight"].shape[2:] for name in names}
    sizes = {name: max(bounds[each][0] for each in names if kernels[each] == kernels[name]) for name in names}
    if unfit := [name for name, size in sizes.items() if size > bounds[name][1]]:
        raise ValueError(f"no one size of tiles fits all layers, first {label(unfit[0])}; give a file of {ORIGIN}")
    return sizes


def _bounds(shape: torch.Size, grid: torch.Size) -> tuple[int, float]:
    """Return between which sizes tiles must be, to cut a shape into such a grid."""
    if len(shape) != len(grid):
        return 1, 0
    lows = [-(-length // number) for length, number in zip(shape, grid, strict=True)]
    # One tile more would be needed below the one, and one less suffice above the other.
    highs = [
        -(-length // (number - 1)) - 1 if number > 1 else float("inf")
        for length, number in zip(shape, grid, strict=True)
    ]
    return max(lows), min(highs)


def _pattern(name: str, weight: Tensor, tile: int) -> str:
    if tile == 1:
        return "unstructured"
    if weight.ndim == 2:
        return f"block:{tile}"
    if any(tile < side for side in weight.shape[2:]):
        raise ValueError(
            f"{label(name)}: tiles of {tile} cut its kernel of {'x'.join(map(str, weight.shape[2:]))} apart, for which "
            "there is no pattern; tiles of one, or no smaller than the kernel, are read"
        )
    return f"block:{tile}" if weight.shape[2:].numel() == 1 else f"block:{tile}-taps"

"""Making a model sparse."""

import logging
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from cutwork.methods import Method, find_method
from cutwork.methods.foresight import Foresight
from cutwork.methods.schedules import Schedule
from cutwork.methods.scores import SCORES, Score, balanced, magnitude
from cutwork.text import counted, did_you_mean
from cutwork.training.allocation import ALLOCATIONS, Allocation
from cutwork.training.amounts import Amounts, as_density, give_densities, give_densities_of
from cutwork.training.drop_connect import read_drop_connect
from cutwork.training.foreseeing import find_scores
from cutwork.training.freshness import are_fresh
from cutwork.training.install import install
from cutwork.training.selection import Patterns, describe_reasons, match_layers
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
    init: str | Score | Foresight | None = None,
    masks: Mapping[str, Tensor] | None = None,
    rescale: bool | None = None,
    drop_connect: Schedule | float | None = None,
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
    one number for `allocation` to share out, or a mapping from globs to numbers; 2:4 and its like fix their own.

    Fresh and trained weights begin differently; all chosen layers together look like the one or the other. Fresh ones
    get a first mask by chance, `balanced` so that no output is left without inputs, and are scaled so that what the
    mask keeps does what all of them would. Of trained ones the mask keeps the largest, by `magnitude`, and they stay as
    they are. STE begins with the score that it goes on with. `init` names another score for the first mask, which may
    look at the whole model, as `snip(loss)` does; `masks` gives masks, shaped like the weights; and `rescale` says
    whether to scale.

    `drop_connect` is the share of the kept units that each step of training leaves out by chance, a number or a
    schedule. `steps` is the length of the run, needed where the method or a schedule speaks of a share of it. `track`
    keeps count of the masks visited. With `storage="compressed"` linear layers and convolutions in tiles store and
    train only what their masks keep, from the first step: weights, gradients and optimizer state have the size of that.
    A layer that cannot be sparse is an error; with `skip` it stays dense, a warning is logged, and `skipped` of the
    sparsifier says why. Chosen layers on the meta device come into being on `device`, compressed at once: one after the
    other gets the first numbers that its own `reset_parameters` gives it, and keeps what its mask does. All else stays
    on the meta device.

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
    if rescale is not None and not isinstance(rescale, bool):
        raise TypeError(f"rescale is True, False, or None to decide by how the weights look; got {rescale!r}")
    if not isinstance(skip, bool):
        raise TypeError(f"skip is True or False; got {skip!r}; a layer is left out by name with {{'head': 'dense'}}")
    chosen_method = find_method(method).in_steps(None if steps is None else int(steps))
    if not chosen_method.takes_first_mask:
        _refuse_first_mask(chosen_method, init, masks)
    if storage not in STORAGES:
        near = did_you_mean(storage, STORAGES)
        raise ValueError(f"unknown storage {storage!r}{near}; write {', '.join(map(repr, STORAGES))}")
    drops = read_drop_connect(drop_connect, None if steps is None else int(steps))
    wanted_score = chosen_method.first_score if init is None else init
    if not (wanted_score is None or isinstance(wanted_score, Foresight)):
        wanted_score = _find(SCORES, wanted_score, "score")
    share = _find(ALLOCATIONS, allocation, "allocation")
    target = _read_device(device, storage)
    amount = as_density(density, sparsity)
    if masks is not None and (amount is not None or init is not None or allocation != "uniform"):
        raise ValueError(
            "masks bring their own density and need no scores; leave density, sparsity, allocation, init out"
        )
    skipped: dict[str, str] | None = {} if skip else None
    _check_read(allocation, amount, wanted_score)
    choices = match_layers(model, patterns, skipped, target)
    if masks is None:
        choices = give_densities(choices, amount, allocation=share, skipped=skipped)
    else:
        choices = give_densities_of(choices, masks)
    if target is not None and not any(choice.candidate.is_meta for choice in choices.values()):
        raise ValueError(f"device={device!r} is for layers on the meta device, and none of these is; leave it out")
    # Looking reads all weights, so only where something depends on it.
    is_asked = rescale is None or (wanted_score is None and masks is None)
    is_fresh = is_asked and are_fresh(model, choices)
    score = wanted_score or (balanced if is_fresh else magnitude)
    choices, inits = find_scores(model, choices, score, seed=int(seed))
    rescales = is_fresh if rescale is None else rescale
    logger.info(
        "the weights%s are%s scaled to their first masks, which %s",
        f" look {'fresh' if is_fresh else 'trained'}; they" if is_asked else "",
        "" if rescales else " not",
        _tell_masks(chosen_method, score, masks),
    )
    layers = install(
        *(model, choices, chosen_method),
        inits=inits,
        masks=masks,
        rescales=rescales,
        seed=seed,
        is_compressed=storage == "compressed",
        device=target,
    )
    if skipped:
        logger.warning(
            "sparsify leaves %s dense: %s", counted(len(skipped), "layer"), "; ".join(describe_reasons(skipped))
        )
    return Sparsifier(layers, chosen_method, seed=int(seed), track=track, skipped=skipped, drop_connect=drops)


def _tell_masks(method: Method, score: Score | Foresight, masks: Mapping[str, Tensor] | None) -> str:
    if masks is not None:
        return "were given"
    if not method.takes_first_mask:
        return f"{type(method).__name__} chooses itself"
    return f"keep the best by {score.name if isinstance(score, Foresight) else getattr(score, '__name__', score)}"


def _check_whole(name: str, value: object, *, least: int | None, example: str) -> None:
    if value is None and least is not None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is a whole number; got {value!r} ({type(value).__name__}); give {example}")
    if least is not None and value < least:
        raise ValueError(f"{name}={value} is less than {least}; give {example}")


def _read_device(device: str | torch.device | None, storage: str) -> torch.device | None:
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


def _check_read(allocation: str | Allocation, amount: Amounts | None, score: Score | Foresight | None) -> None:
    """Raise ValueError where the first masks say themselves how much each layer keeps, and something else does too."""
    is_one_number = not isinstance(amount, Mapping) and allocation == "uniform"
    if isinstance(score, Foresight) and score.across_layers and not is_one_number:
        given = f"density={dict(amount)}" if isinstance(amount, Mapping) else f"allocation={allocation!r}"
        raise ValueError(
            f"{score.name} ranks the weights of all layers together, and so decides how much each keeps; got {given}, "
            f"which would go unread; leave it out, or write {score.name}(..., across_layers=False)"
        )


def _refuse_first_mask(
    method: Method, init: str | Score | Foresight | None, masks: Mapping[str, Tensor] | None
) -> None:
    name = type(method).__name__
    if init is not None:
        raise ValueError(
            f"init={init!r} does not reach {name}, which chooses its first masks itself: a supermask by scores, for "
            "which there is Supermask(init=...), and Switch by the weights that a dense beginning has left; leave init "
            "out"
        )
    if masks is not None:
        raise ValueError(
            f"masks were given for {counted(len(masks), 'layer')}, but {name} chooses its first masks itself; leave "
            "them out, or use another method"
        )


def _find(table: Mapping[str, Any], value: Any, what: str) -> Any:
    if callable(value):
        return value
    if not isinstance(value, str) or value not in table:
        near = did_you_mean(value, table)
        raise ValueError(f"unknown {what} {value!r}{near}; write {', '.join(map(repr, table))}, or pass a function")
    return table[value]

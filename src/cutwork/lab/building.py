"""A model, sparse as a run's options say, and what trains it."""

import logging
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cutwork.bench.models import names_of
from cutwork.data.feed import Feed
from cutwork.files.checkpoint import load
from cutwork.lab.training import Optimizing, Sparse, Training
from cutwork.layers.storage import compress, why_not_compress
from cutwork.layers.swap import candidates, sparse_layers
from cutwork.methods import Method, Switch, find_method
from cutwork.methods.schedules import cosine
from cutwork.models.zoo import make_model
from cutwork.patterns import parse
from cutwork.text import did_you_mean
from cutwork.training.dsb import dsb_layers
from cutwork.training.param_groups import param_groups
from cutwork.training.sparsifier import Sparsifier
from cutwork.training.sparsify import sparsify
from cutwork.transforms import Larger, doped, factorized, parallel, wide, wide_factorized

logger = logging.getLogger(__name__)

DENSITY = 0.1
# The layers, patterns and densities of the program that shuffled blocks were published with.
AS_PUBLISHED = "dsb"
MEMBERS = {
    "wide": wide,
    "parallel": parallel,
    "factorized": factorized,
    "doped": doped,
    "wide-factorized": wide_factorized,
}
# What stands between factors, or behind branches; the other members have no such choice.
BETWEEN = {"factorized": "between", "wide-factorized": "between", "parallel": "after"}


def build_model(training: Training, feed: Feed, device: torch.device) -> tuple[nn.Module, Larger | None]:
    """Return the model of a run, still dense, with its first weights; and its larger form's table, if it has one."""
    torch.manual_seed(training.running.seed)
    model = make_model(training.model, num_classes=feed.num_classes, example=feed.example)
    if training.weights:
        load(Path(training.weights), model)
    larger = None
    if member := training.sparse.member:
        larger = _enlarge(model, member, training, feed)
        model = larger.model
    # FSDP2 shares out weights that lie in memory in the order of their axes only.
    if feed.example.ndim == 4 and not training.running.shard:
        model.to(memory_format=torch.channels_last)  # pyrefly: ignore
    return model.to(device), larger


def make_sparse(model: nn.Module, training: Training, steps: int, larger: Larger | None = None) -> Sparsifier | None:
    """Make layers of a model sparse as a run's options say, in the storage that they ask for."""
    given = training.sparse
    if given.pattern == "dense":
        if larger is not None and larger.densities:
            raise ValueError(f"the member {given.member!r} is sparse; choose a pattern for it, such as block:16")
        return None
    patterns, densities = _choose(model, given, larger)
    if not patterns:
        return None
    sparsifier = sparsify(
        model,
        patterns,
        density=densities,
        method=make_method(given),
        allocation="uniform" if isinstance(densities, dict) else given.allocation,
        init=given.init,
        drop_connect=given.drop_connect or None,
        steps=steps,
        seed=training.running.seed,
        track=True,
        skip=given.skip,
        storage="compressed" if given.storage == "compressed" else "dense",
    )
    if given.storage == "auto" and training.running.shard and sparsifier.method.moves:
        logger.info(
            "the sparse layers stay in dense storage: of compressed weights that are shared out no mask can move"
        )
    elif given.storage == "auto":
        layers = sparse_layers(model)
        if reasons := [reason for layer in layers.values() if (reason := why_not_compress(layer))]:
            logger.info("the sparse layers stay in dense storage: %s", reasons[0])
        else:
            compress(layers)
    return sparsifier


def make_method(given: Sparse) -> Method:
    """Return the method of these options; one that it does not have is an error.

    >>> make_method(Sparse(method="rigl", every=50, fraction=0.2)).every
    50
    """
    method: Any = find_method(given.method)
    known = {field.name for field in fields(method)}
    wanted: dict[str, Any] = {
        "every": given.every,
        "begin": given.begin,
        "until": given.until,
        "fraction": given.fraction,
    }
    chosen = {name: value for name, value in wanted.items() if value is not None}
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"the method {given.method!r} has no {unknown[0]!r}; leave it out")
    if "fraction" in chosen:
        chosen["fraction"] = cosine(chosen["fraction"])
    for name in ("begin", "until"):
        if name in chosen:
            chosen[name] = _steps_of(chosen[name])
    method = replace(method, **chosen)
    if given.sparse_from or given.dense_from is not None:
        end = None if given.dense_from is None else _steps_of(given.dense_from)
        method = Switch(method, sparse_from=_steps_of(given.sparse_from), dense_from=end)
    return method


def make_optimizer(model: nn.Module, given: Optimizing) -> torch.optim.Optimizer:
    """Return an optimizer whose rates and decays suit each layer."""
    groups = param_groups(
        model, lr=given.lr, weight_decay=given.weight_decay, power=given.lr_power, decay_all=given.decay_all
    )
    return OPTIMIZERS[given.optimizer](groups, given)


def _enlarge(model: nn.Module, member: str, training: Training, feed: Feed) -> Larger:
    if member not in MEMBERS:
        raise ValueError(f"unknown member {member!r}{did_you_mean(member, MEMBERS)}; write {', '.join(MEMBERS)}")
    given = training.sparse
    between = {BETWEEN[member]: given.between} if member in BETWEEN else {}
    make: Any = MEMBERS[member]
    return make(model, given.density or DENSITY, inputs=feed.example, seed=training.running.seed, **between)


def _choose(model: nn.Module, given: Sparse, larger: Larger | None) -> tuple[dict[str, Any], Any]:
    """Return the pattern of each sparse layer, and how much of it is kept."""
    density = parse(given.pattern).density or DENSITY if given.density is None else given.density
    if larger is not None:
        return larger.patterns(given.pattern), larger.densities
    if given.layers == AS_PUBLISHED:
        return dsb_layers(model, density=density)
    chosen = dict.fromkeys(choose_layers(model, given), given.pattern)
    return chosen, None if parse(given.pattern).density is not None else density


def choose_layers(model: nn.Module, given: Sparse) -> list[str]:
    """Return the names of the layers that these options mean: all but the first and the last, unless they say more.

    >>> choose_layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), Sparse())
    ['1']
    """
    names: dict[str, None] = {}
    for choice in given.layers.split(","):
        names |= dict.fromkeys(names_of(model, choice.strip()))
    if given.ends:
        return [*names]
    ends = [*candidates(model)]
    inner = [name for name in names if name not in (ends[0], ends[-1])]
    if not inner:
        raise ValueError(f"layers={given.layers!r} means only the first layer or the last; add --ends to take them")
    return inner


def _steps_of(number: float) -> int | float:
    """Return a share of the run below 1 as it is, and a number of steps as a whole one."""
    return number if number < 1 else round(number)


def _sgd(groups: list[dict[str, Any]], given: Optimizing, *, nesterov: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=given.lr, momentum=given.momentum, nesterov=nesterov)


def _rmsprop(groups: list[dict[str, Any]], given: Optimizing) -> torch.optim.Optimizer:
    # The numbers that torchvision's recipes use.
    return torch.optim.RMSprop(groups, lr=given.lr, momentum=given.momentum, eps=0.0316, alpha=0.9)


OPTIMIZERS = {
    "sgd": partial(_sgd, nesterov=False),
    "nesterov": partial(_sgd, nesterov=True),
    "rmsprop": _rmsprop,
    "adam": lambda groups, given: torch.optim.Adam(groups, lr=given.lr),
    "adamw": lambda groups, given: torch.optim.AdamW(groups, lr=given.lr),
}

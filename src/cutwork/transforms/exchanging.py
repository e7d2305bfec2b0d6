"""Putting composites into the places of single layers, and solving what they may keep."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from cutwork.evaluation import call_of, copy_model
from cutwork.layers.attention import disable_fused_paths
from cutwork.layers.composite import Composite
from cutwork.layers.swap import exchange
from cutwork.patterns import Pattern
from cutwork.transforms.checking import COPY
from cutwork.transforms.choosing import choose
from cutwork.transforms.comparing import compare
from cutwork.transforms.larger import Larger, fit
from cutwork.transforms.place import Place

Make = Callable[[Place], tuple[Composite, Collection[nn.Module]]]


def exchange_layers(
    model: nn.Module,
    make: Make,
    *,
    inputs: Any,
    layers: str | Iterable[str] | None,
    why_not: Callable[[nn.Module], str] = lambda layer: "",
    pattern: str | Pattern | None,
    weights: str,
    counting: str,
    seed: int,
) -> Larger:
    """Return a copy of a model in which composites stand where layers stood, and the density that pays for them.

    `make` returns what comes to a place, and which layers of it are to be sparse.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    call = call_of(model, given)
    chosen = choose(model, call, layers, why_not)
    larger = copy_model(model)
    sparse: set[str] = set()
    origins: dict[str, str] = {}
    for name, candidate in chosen.layers.items():
        old = larger.get_submodule(name)
        composite, to_be_sparse = make(Place(name, old, candidate.layout, seed))
        exchange(larger, old, composite.train(old.training))
        for part, module in composite.named_modules():
            origins[f"{name}.{part}"] = name
            if any(module is each for each in to_be_sparse):
                sparse.add(f"{name}.{part}")
    disable_fused_paths(larger)
    compare(model, larger, call, what="larger", is_copy=weights == COPY)
    found = fit(model, larger, *given, sparse=sparse, origins=origins, pattern=pattern, counting=counting)
    return replace(found, skipped=chosen.skipped)

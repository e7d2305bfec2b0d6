"""Which layers of a model a member of Sparse-IFT takes the place of, and why not of others."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from cutwork.evaluation import Call, first_input, hooked, hooks_of, in_evaluation
from cutwork.layers.sparse_class import why_not_sparsify
from cutwork.layers.swap import Candidate, candidates
from cutwork.text import label
from cutwork.transforms.sizes import tensors_in

STEM = "it reads what the model is given"
HEAD = "it returns what the model does"


@final
class Chosen(NamedTuple):
    """The layers that something takes the place of, by name, and why others stay what they are."""

    layers: dict[str, Candidate]
    skipped: dict[str, str]


def choose(
    model: nn.Module,
    call: Call,
    layers: str | Iterable[str] | None,
    why_not: Callable[[nn.Module], str] = lambda layer: "",
) -> Chosen:
    """Return the layers that these globs name, or all but stem and head; raise ValueError where one cannot be taken.

    `why_not` says why a member cannot take the place of a layer. A stem reads what the model is given; the result of a
    head goes to what the model returns through nothing but functions of one tensor.
    """
    found = candidates(model)
    called, ends = _watch(model, call, found)
    obstacles = {
        name: reason for name, each in found.items() if (reason := _why_not_exchange(model, each, called, why_not))
    }
    if layers is None:
        skipped = {name: obstacles.get(name) or ends.get(name, "") for name in found}
        skipped = {name: reason for name, reason in skipped.items() if reason}
        chosen = {name: each for name, each in found.items() if name not in skipped}
    else:
        chosen = dict(_match(found, [layers] if isinstance(layers, str) else list(layers)))
        skipped = {}
        if refused := [name for name in chosen if name in obstacles]:
            raise ValueError(f"{label(refused[0])}: {obstacles[refused[0]]}; leave it out of layers")
    if not chosen:
        reasons = "; ".join(f"{label(name)}: {reason}" for name, reason in list(skipped.items())[:4])
        raise ValueError(f"no layer of this model can be exchanged ({reasons or 'it has none'}); name some by layers=")
    return Chosen(chosen, skipped)


def _match(found: Mapping[str, Candidate], globs: list[str]) -> Iterator[tuple[str, Candidate]]:
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in found):
            names = ", ".join(map(repr, list(found)[:8])) + (", ..." if len(found) > 8 else "")
            raise ValueError(f"no layer matches {glob!r}; the linear layers and 2-d convolutions are {names or 'none'}")
    yield from ((name, each) for name, each in found.items() if any(fnmatchcase(name, glob) for glob in globs))


def _why_not_exchange(
    model: nn.Module, candidate: Candidate, called: set[str], why_not: Callable[[nn.Module], str]
) -> str:
    """Say why nothing can stand where this layer does; empty where something can."""
    name = candidate.name
    if reason := candidate.obstacle or why_not_sparsify(candidate.kind):
        return reason
    if candidate.attention is not None:
        return f"{label(candidate.attention)} reads its weight itself, as nn.MultiheadAttention does"
    if not name:
        return "nothing can be put in its place in the model; put it into nn.Sequential first"
    if name not in called:
        return "it is not called for these inputs, so other code may read its weight"
    layer = model.get_submodule(name)
    holders = [
        f"{path}.{key}".lstrip(".")
        for path, module in model.named_modules()
        for key, parameter in module._parameters.items()
        if parameter is layer.weight
    ]
    if len(holders) > 1:
        return f"its weight is {next(each for each in holders if each != f'{name}.weight')} too"
    if any(hooks_of(layer)):
        return "it has hooks, which would be lost; take them off"
    if min(candidate.layout.channels) < 2:
        return "it reads or makes a single channel"
    return why_not(layer)


def _watch(model: nn.Module, call: Call, found: Mapping[str, Candidate]) -> tuple[set[str], dict[str, str]]:
    """Run the model once and return which layers are called, and which of these are a stem or a head."""
    # The same numbers, but all of them with a gradient, so that stems alone read something without.
    memo = {id(each): each for each in model.buffers()} | {
        id(each): _with_gradient(each) for each in model.parameters()
    }
    twin = deepcopy(model, memo)
    layers = {twin.get_submodule(name): name for name, each in found.items() if each.attention is None}
    called: set[str] = set()
    ends: dict[str, str] = {}
    made: dict[Node, str] = {}

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        called.add(layers[module])
        if not first_input(args, kwargs).requires_grad:
            ends[layers[module]] = STEM
        if output.grad_fn is not None:
            made[output.grad_fn] = layers[module]

    with in_evaluation(twin), torch.enable_grad(), hooked(layers, after=leave):
        output = call(twin)
    for tensor in tensors_in(output):
        node = tensor.grad_fn
        while node is not None and node not in made:
            sources = [each for each, _ in node.next_functions if each is not None and each.next_functions]
            node = sources[0] if len(sources) == 1 else None
        if node is not None:
            ends.setdefault(made[node], HEAD)
    return called, ends


def _with_gradient(parameter: nn.Parameter) -> Tensor:
    return nn.Parameter(parameter.detach(), requires_grad=parameter.is_floating_point())

"""What an optimizer remembers, in a file: written, checked, and given to another that goes on."""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cutwork.files.schema import COUNT, Named, check_form
from cutwork.files.storage import State
from cutwork.files.tensor_tree import Mask, TensorTable
from cutwork.patterns import Shape
from cutwork.training.sparsifier import STATE_KEY

# What the description of one must look like; what stands for values of any kind is checked by the table of tensors.
OPTIMIZER = {
    "type": str,
    "parameters": [[(str, None)]],
    "state": [[(COUNT, str), Named(object)]],
    "rest": Named(object),
}


def put_optimizer(
    table: TensorTable, optimizer: Optimizer, name: str, *, names: Mapping[int, str], masks: Mapping[int, Mask]
) -> State:
    """Return the description of an optimizer, whose tensors go into a table under a name.

    `names` and `masks` are those of parameters, by their ids.
    """
    whole = optimizer.state_dict()
    held = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    places = chain.from_iterable(group["params"] for group in whole["param_groups"])
    mask_of = {place: masks.get(id(parameter)) for place, parameter in zip(places, held, strict=True)}
    rest = {key: value for key, value in whole.items() if key != "state" and not str(key).startswith(STATE_KEY)}
    return {
        "type": type(optimizer).__name__,
        "parameters": _names_held(optimizer, names),
        "state": [
            [place, table.put(value, f"{name}/{place}", mask_of.get(place))] for place, value in whole["state"].items()
        ],
        "rest": table.put(rest, name),
    }


def check_optimizers(
    saved: Sequence[State], outlines: Sequence[State], optimizers: Sequence[Optimizer], names: Mapping[int, str]
) -> None:
    """Raise ValueError where optimizers are not those that were saved, or could not go on with what is saved."""
    wanted, given = [one["type"] for one in saved], [type(one).__name__ for one in optimizers]
    if optimizers and wanted != given:
        raise ValueError(
            f"the checkpoint holds {', '.join(wanted) or 'no optimizer'}; got {', '.join(given)}; give the same in the "
            "same order, or none"
        )
    for one, taken, optimizer in zip(saved, outlines, optimizers, strict=False):
        if (found := _names_held(optimizer, names)) != one["parameters"]:
            pairs = zip_longest(_flat(one["parameters"]), _flat(found), fillvalue="the end")
            old, new = next(pair for pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f"the {one['type']} given trains other parameters than the one saved, first {new} where that had "
                f"{old}; build it over the same ones in the same groups, after their layers are sparse"
            )
        try:
            _check_places(one, taken)
        except ValueError as error:
            raise ValueError(f"the {one['type']} saved is damaged: {error}; load an earlier file") from error


def load_optimizer(undo: ExitStack, optimizer: Optimizer, taken: State, shapes: Sequence[Sequence[Shape]]) -> None:
    """Load the state of an optimizer of parameters of these shapes; raise ValueError where it could not go on."""
    before = {key: vars(optimizer)[key] for key in ("state", "param_groups")}
    undo.callback(vars(optimizer).update, before)
    name, todo = type(optimizer).__name__, "load an earlier file"
    knows = [_remembered(optimizer, group, 2) is not None for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(taken)
    except Exception as error:
        raise ValueError(f"{name} refuses the state that was saved: {error!r}; {todo}") from error
    for is_known, group, sizes in zip(knows, optimizer.param_groups, shapes, strict=True):
        for parameter, shape in zip(group["params"], sizes, strict=True) if is_known else ():
            needed = _remembered(optimizer, group, len(shape))
            if needed is None:
                raise ValueError(f"{name} can take no step with the settings that were saved; {todo}")
            if held := optimizer.state.get(parameter):
                _check_remembered(name, held, needed, shape)


def shapes_to_be(optimizer: Optimizer, names: Sequence[Sequence[str | None]], state: State) -> list[list[Shape]]:
    """Return the shapes that its parameters, of these names, will have: the number of units of some may change."""
    return [
        [
            state[name].shape if name in state else parameter.shape
            for name, parameter in zip(row, group["params"], strict=True)
        ]
        for row, group in zip(names, optimizer.param_groups, strict=True)
    ]


def _check_places(one: State, taken: State) -> None:
    """Raise ValueError where groups do not say which parameter is which, or a state belongs to none."""
    groups: Any = taken.get("param_groups")
    check_form(groups, [Named(object)], "param_groups")
    for number, group in enumerate(groups):
        check_form(group.get("params"), [(COUNT, str)], f"param_groups/{number}/params")
        for key in group:
            if str(key).startswith(STATE_KEY):
                check_form(group[key], COUNT, f"param_groups/{number}/{key}")
    if more := sorted(str(key) for key in taken if str(key).startswith(STATE_KEY)):
        raise ValueError(f"it holds {more[0]}, which belongs to a sparsifier")
    if [len(group["params"]) for group in groups] != [len(names) for names in one["parameters"]]:
        raise ValueError("its groups have not as many places as parameters")
    places = list(chain.from_iterable(group["params"] for group in groups))
    if len(set(places)) < len(places) or len(taken["state"]) < len(one["state"]):
        raise ValueError("a place stands twice")
    if unknown := [place for place in taken["state"] if place not in places]:
        raise ValueError(f"it remembers something of parameter {unknown[0]}, which it does not have")


def _check_remembered(optimizer: str, held: State, needed: Mapping[str, Shape], shape: Shape) -> None:
    """Raise ValueError unless what is remembered of a parameter has the shapes that were seen on a small one."""
    for key, of_small in needed.items():
        expected = [size if small > 1 else 1 for size, small in zip(shape, of_small, strict=False)]
        found = held.get(key)
        is_tensor = isinstance(found, Tensor)
        # Steps below zero have no roots, and no run has done them.
        if not is_tensor or list(found.shape) != (expected if of_small else []) or (key == "step" and found < 0):
            raise ValueError(
                f"{optimizer} remembers {key} {list(found.shape) if is_tensor and found.ndim else found} of a "
                f"parameter {list(shape)}, where it needs {expected if of_small else 'a number'}; load an earlier file"
            )


def _remembered(optimizer: Optimizer, group: State, ndim: int) -> dict[str, Shape] | None:
    """Return the shapes of what one of torch's optimizers remembers of a small parameter; None where nobody knows.

    It takes steps on one: so no list says what optimizers remember, and settings that forbid a step are found.
    """
    if not f"{type(optimizer).__module__}.".startswith("torch.optim.") or not group["params"]:
        return None
    like = group["params"][0]
    small = nn.Parameter(torch.zeros(tuple(range(2, 2 + ndim)), dtype=like.dtype, device=like.device))
    small.grad = torch.ones_like(small)
    try:
        # Such a copy leaves the hooks behind.
        twin = copy.copy(optimizer)
        twin.state, twin.param_groups = defaultdict(dict), [{**group, "params": [small]}]
        # What the first remembers the second reads.
        twin.step()
        twin.step()
    except Exception:
        return None
    remembered = {key: value.shape for key, value in twin.state[small].items() if isinstance(value, Tensor)}
    return {key: shape for key, shape in remembered.items() if len(shape) in (0, ndim)}


def _names_held(optimizer: Optimizer, names: Mapping[int, str]) -> list[list[str | None]]:
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]


def _flat(groups: list[list[str | None]]) -> list[str]:
    """Return the names with a word where each group begins."""
    return [
        str(name or "a parameter of another model") for group in groups for name in ("the begin of a group", *group)
    ]

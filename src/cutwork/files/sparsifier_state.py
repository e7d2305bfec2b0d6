"""What a sparsifier remembers, in a file: written, and checked before another goes on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cutwork.files.schema import COUNT, Number, check_form
from cutwork.files.storage import State
from cutwork.files.tensor_tree import TensorTable
from cutwork.training.sparsifier import Sparsifier

# What the description of one must look like; what stands for values of any kind is checked by the table of tensors.
SPARSIFIER = {"layers": [str], "method?": str, "state": {"steps_done": COUNT, "exploration?": object}}


def put_sparsifier(table: TensorTable, sparsifier: Sparsifier, name: str) -> State:
    """Return the description of a sparsifier, whose tensors go into a table under a name."""
    return {
        "layers": list(sparsifier.layers),
        "method": _method_of(sparsifier),
        "state": table.put(sparsifier.state_dict(), name),
    }


def check_sparsifiers(saved: Sequence[State], outlines: Sequence[State], sparsifiers: Sequence[Sparsifier]) -> None:
    """Raise ValueError where sparsifiers are not those that were saved, or could not go on with what is saved."""
    if sparsifiers and len(sparsifiers) != len(saved):
        raise ValueError(
            f"the checkpoint holds {len(saved)} sparsifiers; got {len(sparsifiers)}; give as many, or none"
        )
    for one, taken, sparsifier in zip(saved, outlines, sparsifiers, strict=False):
        if differing := sorted(set(one["layers"]) ^ set(sparsifier.layers)):
            raise ValueError(
                "the sparsifier saved and the one given move different layers; they differ in "
                f"{', '.join(differing[:8])}; make it as for the saved run"
            )
        # Older files do not say it.
        if one.get("method", _method_of(sparsifier)) != _method_of(sparsifier):
            raise ValueError(
                f"the sparsifier saved moves masks by {one['method']}, the one given by {_method_of(sparsifier)}; "
                "sparsify() with the same method, or load without it and begin anew"
            )
        given = sparsifier.state_dict()
        if missing := set(given) - set(taken):
            raise ValueError(f"the sparsifier was saved without {', '.join(missing)}; make this with track=False")
        if "exploration" in given:
            _check_exploration(taken["exploration"], given["exploration"])


def _check_exploration(taken: Any, given: State) -> None:
    """Raise ValueError where what was explored is not of the layers that go on exploring."""
    sets = ("first", "ever", "always", "now")
    check_form(taken, {name: {**dict.fromkeys(sets, Tensor), "turnovers": [Number()]} for name in given}, "exploration")
    for name, seen in given.items():
        for key in sets:
            found, mask = taken[name][key], seen[key]
            if found.dtype != torch.bool or found.shape != mask.shape:
                raise ValueError(
                    f"the exploration of {name} is {found.dtype} {list(found.shape)}, where its mask is "
                    f"{list(mask.shape)}; the file is damaged, load an earlier one"
                )


def _method_of(sparsifier: Sparsifier) -> str:
    return type(sparsifier.method).__name__

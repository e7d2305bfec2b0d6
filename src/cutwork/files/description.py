"""The description of a checkpoint: what its JSON must look like, and the values that it stands for."""

from typing import Any

from torch import Tensor, nn

from cutwork.files.optimizer_state import OPTIMIZER
from cutwork.files.schema import COUNT, Named, check_form
from cutwork.files.sparsifier_state import SPARSIFIER
from cutwork.files.storage import State
from cutwork.files.tensor_tree import TensorTable

# Version 2 says of each layer how it is stored; before that there was dense storage only. Version 3 knows layers in
# int8, and such as compute in bfloat16 alone.
VERSION = 3
READABLE = (1, 2, 3)

FORM = {
    "version": COUNT,
    "layers": Named(object),
    "attentions": [str],
    "model": Named(object),
    "optimizers": [OPTIMIZER],
    "sparsifiers": [SPARSIFIER],
    "extra": Named(object),
}
# How many times larger than itself a file may become in memory, where masks of bits become bytes, and how many times
# larger than the model: what is not kept is not in the file, neither of weights nor of what an optimizer remembers.
UNFOLDS, COPIES = 10, 16


def check_description(description: State) -> None:
    """Raise ValueError unless a description has its form."""
    version = description.get("version")
    if version not in READABLE:
        raise ValueError(
            f"it is a checkpoint of version {version!r}; this cutwork reads versions up to {VERSION}; use the one that "
            "wrote it, or a newer one"
        )
    check_form(description, FORM, "the description")


def check_values(table: TensorTable, description: State) -> None:
    """Raise ValueError unless all that stands for values can be taken from a table."""
    for key, node in description["model"].items():
        table.check(node, key)
    for place, one in enumerate(description["optimizers"]):
        table.check(one["rest"], f"optimizers/{place}")
        for number, node in one["state"]:
            table.check(node, f"optimizers/{place}/{number}")
    for place, one in enumerate(description["sparsifiers"]):
        table.check(one["state"], f"sparsifiers/{place}")
    table.check(description["extra"], "extra")


def take_values(table: TensorTable, description: State) -> State:
    """Return the values of a checkpoint, with tensors from a table."""

    def entries(node: Any) -> State:
        value = table.take(node)
        if not isinstance(value, dict):
            raise ValueError(f"the description has {node!r} where names stand; it is damaged, load an earlier file")
        return value

    return {
        "model": {key: table.take(node) for key, node in description["model"].items()},
        "optimizers": [
            {**entries(one["rest"]), "state": {place: entries(node) for place, node in one["state"]}}
            for one in description["optimizers"]
        ],
        "sparsifiers": [table.take(one["state"]) for one in description["sparsifiers"]],
        "extra": entries(description["extra"]),
    }


def check_size(table: TensorTable, outline: TensorTable, model: nn.Module) -> None:
    """Raise ValueError where what was taken from the outline of a table is more than it and the model account for."""
    stored = sum(tensor.nbytes for tensor in table.tensors.values())
    held = sum(tensor.nbytes for tensor in model.state_dict().values() if isinstance(tensor, Tensor))
    if outline.bytes_taken > UNFOLDS * stored + COPIES * held:
        raise ValueError(
            f"its {stored} bytes of tensors ask for {outline.bytes_taken} bytes, more than they and the model account "
            "for; it is damaged, load an earlier file"
        )

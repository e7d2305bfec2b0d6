"""Checkpoints: a sparse model, and what else its training needs to go on, in one safetensors file without pickle."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from cutwork.files.description import VERSION, check_description, check_size, check_values, take_values
from cutwork.files.model_state import check_can_be_given_all, check_is_whole, give_all, load_extra_states, name_tensors
from cutwork.files.optimizer_state import check_optimizers, load_optimizer, put_optimizer, shapes_to_be
from cutwork.files.record import LayerRecord
from cutwork.files.sparsifier_state import check_sparsifiers, put_sparsifier
from cutwork.files.storage import State, under
from cutwork.files.structure import Structure
from cutwork.files.tensor_file import read_description, read_file, write_file
from cutwork.files.tensor_tree import TensorTable
from cutwork.layers.swap import SparseLayer, sparse_layers
from cutwork.sparsity.fixed import Fixed
from cutwork.text import label
from cutwork.training.sparsifier import STATE_KEY, Sparsifier


@final
@dataclass(frozen=True)
class Checkpoint:
    """What `load` returns: the sparse layers of the model, as `Sparsifier` takes them, and what was saved besides."""

    layers: dict[str, SparseLayer]
    extra: dict[str, Any]


@final
@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself; `steps_done` has a number for each sparsifier."""

    version: int
    layers: dict[str, LayerRecord]
    attentions: list[str]
    optimizers: list[str]
    steps_done: list[int]


def save(
    model: nn.Module,
    path: str | Path,
    *,
    sparsifier: Sparsifier | Sequence[Sparsifier] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save a model and, to go on training it, its sparsifier and its optimizer, or several of them.

    Under a fixed mask only what is kept is stored, of weights and of optimizer state, as long as the rest is zero (the
    sign of these zeros is lost). `extra` takes numbers, text, tensors, and lists, tuples and dicts of these: the
    epoch, the state of a learning-rate scheduler, and `torch.get_rng_state()`, which is not saved unless given here.
    Numbers of numpy come back as Python's, paths as text.
    A process killed while it saves leaves the old file as it was. Where several train one model, one of them saves.

    >>> import tempfile
    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.25)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, f"{folder}/model.safetensors", extra={"epoch": 3})
    ...     checkpoint = load(f"{folder}/model.safetensors", nn.Sequential(nn.Linear(64, 64)))
    >>> checkpoint.extra
    {'epoch': 3}
    >>> checkpoint.layers["0"].sparsity
    Fixed(block:16, density 0.25)
    """
    sparsifiers, optimizers = _listed(sparsifier), _listed(optimizer)
    table = TensorTable({})
    with _naming(path):
        description = _describe(table, model, sparsifiers, optimizers, extra or {})
    write_file(Path(path), table.tensors, description)


def load(
    path: str | Path,
    model: nn.Module,
    *,
    sparsifier: Sparsifier | Sequence[Sparsifier] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    device: str | torch.device | None = None,
) -> Checkpoint:
    """Load a checkpoint into a model of the same architecture and dtypes, on whatever device it is.

    A model on the meta device, which has no memory, gets all its tensors from the file, on `device`: so one whose
    dense form does not fit is loaded compressed as it was saved. Build optimizers afterwards, and load again to resume.

    Layers that are dense become sparse as the checkpoint says; those that are sparse must be so in the same way. For
    inference that is all. To resume, give the sparsifier and the optimizer too, made as for a new run: the one by
    `sparsify`, or from what a first `load` has returned by `Sparsifier(checkpoint.layers, method, seed=seed)`; the
    other after the layers are sparse. If anything is wrong, nothing has changed.
    """
    tensors, description = read_file(Path(path))
    with _naming(path):
        check_description(description)
        return _load(TensorTable(tensors), description, model, _listed(sparsifier), _listed(optimizer), device)


def describe(path: str | Path) -> Description:
    """Return what a checkpoint holds, from the head of the file alone.

    >>> import tempfile
    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "2:4")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, f"{folder}/model.safetensors", sparsifier=sparsifier)
    ...     description = describe(f"{folder}/model.safetensors")
    >>> print(description.layers["0"], description.steps_done)
    fixed 2:4 at density 0.5, estimate=False [0]
    """
    description = read_description(Path(path))
    with _naming(path):
        check_description(description)
        structure = Structure.read(description["layers"], description["attentions"])
    return Description(
        version=description["version"],
        layers=structure.layers,
        attentions=structure.attentions,
        optimizers=[saved["type"] for saved in description["optimizers"]],
        steps_done=[saved["state"]["steps_done"] for saved in description["sparsifiers"]],
    )


def read_extra(path: str | Path) -> dict[str, Any]:
    """Return the numbers and the text among what was saved as `extra`, from the head of the file alone."""
    description = read_description(Path(path))
    with _naming(path):
        check_description(description)
    return {name: value for name, value in description["extra"].items() if not isinstance(value, dict | list)}


def _describe(
    table: TensorTable,
    model: nn.Module,
    sparsifiers: list[Sparsifier],
    optimizers: list[Optimizer],
    extra: Mapping[str, Any],
) -> State:
    """Return the description of a checkpoint, whose tensors go into a table."""
    check_is_whole(model)
    _check_belong(model, sparsifiers, optimizers)
    state = model.state_dict(keep_vars=True)
    names = name_tensors(state)
    masks = {
        id(layer.trained): (under(name, "sparsity.mask"), state[under(name, "sparsity.mask")])
        for name, layer in sparse_layers(model).items()
        if isinstance(layer.sparsity, Fixed)
    }
    return {
        "version": VERSION,
        **asdict(Structure.of(model)),
        "model": {key: table.put(value, key, masks.get(id(value))) for key, value in state.items()},
        "optimizers": [
            put_optimizer(table, one, f"@optimizer/{place}", names=names, masks=masks)
            for place, one in enumerate(optimizers)
        ],
        "sparsifiers": [put_sparsifier(table, one, f"@sparsifier/{place}") for place, one in enumerate(sparsifiers)],
        "extra": table.put(extra, "@extra"),
    }


def _load(
    table: TensorTable,
    description: State,
    model: nn.Module,
    sparsifiers: list[Sparsifier],
    optimizers: list[Optimizer],
    device: str | torch.device | None,
) -> Checkpoint:
    """Find out all that could be wrong, at first without memory, then with what the file holds, and only then load."""
    structure = Structure.read(description["layers"], description["attentions"])
    if device is None:
        check_is_whole(model)
    else:
        _check_none_follow([*sparsifiers, *optimizers])
        check_can_be_given_all(model)
    _check_belong(model, sparsifiers, optimizers)
    check_values(table, description)
    # What nobody asks for stays in the file.
    wanted = {
        **description,
        "optimizers": description["optimizers"][: len(optimizers)],
        "sparsifiers": description["sparsifiers"][: len(sparsifiers)],
    }
    outline = table.outline()
    outlines = take_values(outline, wanted)
    rehearsed = structure.rehearse(model, outlines["model"])
    names = name_tensors(model.state_dict(keep_vars=True))
    check_optimizers(description["optimizers"], outlines["optimizers"], optimizers, names)
    check_sparsifiers(description["sparsifiers"], outlines["sparsifiers"], sparsifiers)
    check_size(table, outline, model)

    taken = take_values(table, wanted)
    state = taken["model"]
    structure.check(rehearsed, state)
    with ExitStack() as undo:
        # What code of others may refuse comes first, and is taken back; the rest has been tried.
        load_extra_states(undo, model, state)
        for sparsifier in sparsifiers:
            undo.callback(sparsifier.load_state_dict, sparsifier.state_dict())
        for optimizer, one, saved in zip(optimizers, taken["optimizers"], wanted["optimizers"], strict=True):
            load_optimizer(undo, optimizer, one, shapes_to_be(optimizer, saved["parameters"], state))
        for sparsifier, one in zip(sparsifiers, taken["sparsifiers"], strict=True):
            sparsifier.load_state_dict(one)
        undo.pop_all()
    structure.build(model, state)
    if device is None:
        model.load_state_dict(state)
    else:
        give_all(model, state, torch.device(device))
    layers = sparse_layers(model)
    return Checkpoint({name: layers[name] for name in structure.layers if name in layers}, taken["extra"])


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Name a file in whatever is found wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_none_follow(followers: Sequence[Sparsifier | Optimizer]) -> None:
    if followers:
        raise ValueError(
            "with a device the model gets new parameters, which the optimizers and sparsifiers given do not know; load "
            "without them, build them, then load again without the device"
        )


def _check_belong(model: nn.Module, sparsifiers: list[Sparsifier], optimizers: list[Optimizer]) -> None:
    """Raise ValueError if a sparsifier is of another model, or an optimizer follows one that is not given."""
    layers = sparse_layers(model)
    for sparsifier in sparsifiers:
        for name, layer in sparsifier.layers.items():
            if layers.get(name) is not layer:
                raise ValueError(
                    f"the sparsifier moves {label(name)}, which is no sparse layer of this model; give the model that "
                    "was sparsified, without what wraps it (as in wrapped.module)"
                )
    given = {sparsifier.state_key for sparsifier in sparsifiers}
    for optimizer in optimizers:
        if any(str(key).startswith(STATE_KEY) and key not in given for key in optimizer.state_dict()):
            raise ValueError(
                f"{type(optimizer).__name__} is attached to a sparsifier that is not given, whose count of the steps "
                "would be lost; pass sparsifier=... too"
            )


def _listed(one_or_several: Any) -> list[Any]:
    if one_or_several is None:
        return []
    return list(one_or_several) if isinstance(one_or_several, Sequence) else [one_or_several]
